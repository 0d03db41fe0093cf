"""Configurations whose final weights are recorded: every model family, schedule, optimizer and server layout.

A refactoring must not change a bit of any result; `tests/mpi/test_recorded.py` trains these configurations and compares
the SHA-256 of the weights with `recorded_digests.json`. Values are float32 unless a configuration says otherwise:
float64 activations use the machine's libm, whose last bit may differ between machines.
"""

from typing import Any, NamedTuple

RANKS = (1, 2, 3, 5, 8)
SAMPLES = "synthetic:samples=200,features=11,classes=3,seed=4"
COMMON: dict[str, Any] = {
    "model": "mlp:11-13-9-17x2-8x2-7-3",
    "data": SAMPLES,
    "batch_size": 24,
    "micro_batches": 5,
    "steps": 6,
    "eval_every": 4,
    "lr": 0.01,
    "progress": False,
}
IMAGES = {"data": "digits", "model": "cnn:8x8-4c3-p2-6c3-12-12-12-12-10"}
TEXT = {"data": "text:{text}", "model": "gpt:layers=6,width=8,heads=2,context=6,dropout=0.1"}
BLOCKS = {
    "data": "digits",
    "model": [
        {"type": "conv2d", "filters": 4, "size": 3, "shape": [8, 8, 1], "activation": "silu"},
        {"type": "groupnorm", "groups": 2},
        {"type": "avgpool2d", "size": 2},
        {"type": "flatten"},
        {"type": "dense", "units": 12, "activation": "tanh"},
        {"type": "layernorm"},
        {
            "type": "residual",
            "layers": [{"type": "dense", "units": 9, "activation": "gelu"}, {"type": "dense", "units": 12}],
        },
        {"type": "dropout", "rate": 0.2},
        {"type": "dense", "units": 10},
    ],
}
VALUES = {"data": "diabetes", "model": "mlp:10-9x7-1", "loss": "mse"}
SERVER = {"message_size": "400"}
COLOCATED = SERVER | {"colocate": True}


class Configuration(NamedTuple):
    """One recorded run.

    Attributes
    ----------
    name : str
    settings : dict
        Keyword arguments beside those of `COMMON`.
    program : str
        ringtmp or ps.
    ranks : tuple of int
        Numbers of ranks on which it can run.
    invariant : bool
        Whether the weights are the same on every number of ranks.
    """

    name: str
    settings: dict[str, Any]
    program: str = "ringtmp"
    ranks: tuple[int, ...] = RANKS
    invariant: bool = True


def _ring(name: str, **settings: Any) -> Configuration:
    return Configuration(name, settings)


def _server(name: str, ranks: tuple[int, ...] = (2, 3, 5, 8), **settings: Any) -> Configuration:
    return Configuration(name, SERVER | settings, "ps", ranks, False)


CONFIGURATIONS = [
    # Model families.
    _ring("mlp relu"),
    _ring("mlp tanh", model="mlp:11-13-9-17x2-8x2-7-3,activation=tanh"),
    _ring("mlp gelu", model="mlp:11-13-9-17x2-8x2-7-3,activation=gelu"),
    _ring("cnn", **IMAGES),
    _ring("gpt", **TEXT),
    _ring("blocks", **BLOCKS),
    _ring("regression", **VALUES),
    _ring("sliced", model="mlp:11-24x7-3", slices=2),
    _ring("float64", dtype="float64"),
    # Schedules.
    _ring("ready, held 3", mode="ready", in_flight=3, w_group=2),
    _ring("ready, chunks", mode="ready", chunks=2, model="mlp:11-9x16-3"),
    _ring("naive", schedule="naive"),
    _ring("gpipe", schedule="gpipe"),
    _ring("1f1b", schedule="1f1b"),
    _ring("zb-h1", schedule="zb-h1"),
    _ring("zb-h2", schedule="zb-h2", micro_batches=16),
    _ring("interleaved", schedule="interleaved", model="mlp:11-9x16-3", micro_batches=16),
    _ring("interleaved-zb", schedule="interleaved-zb", model="mlp:11-9x16-3", micro_batches=16),
    _ring("2bw", schedule="2bw"),
    Configuration("pipedream", {"schedule": "pipedream"}, ranks=(1,), invariant=False),
    _ring("synchronous sends", schedule="1f1b", sends="synchronous"),
    _ring("threads", threads=2),
    # Optimizers, rates, limits.
    _ring("sgd", optimizer="sgd", lr=0.1, weight_decay=0.01),
    _ring("momentum", optimizer="momentum", momentum=0.8),
    _ring("adam", optimizer="adam", weight_decay=0.01, lr_schedule="constant"),
    _ring("adamw, warm-up", warmup_steps=3, weight_decay=0.1),
    _ring("rate in steps", lr_schedule="step", lr_every=2, lr_factor=0.5),
    _ring("value limit", clip_value=0.01),
    _ring("norm limit", clip_norm=0.05),
    # Data.
    _ring("scaled by one pair", normalise="global"),
    _ring("unscaled, seed 5", normalise="none", seed=5, test_fraction=0.3),
    # Memory, balance, copies.
    _ring("recomputed", recompute=True),
    _ring("rebalanced", balance="auto", micro_batches=3),
    _ring("layers even", layer_split="even"),
    Configuration("two rings", {"rings": 2}, ranks=(2, 8), invariant=False),
    Configuration(
        "two rings, 2 chunks", {"rings": 2, "chunks": 2, "schedule": "interleaved"}, ranks=(2,), invariant=False
    ),
    # Parameter servers.
    _server("bsp"),
    _server("bsp, two servers", (3, 5, 8), servers=2),
    Configuration("bsp, colocated", COLOCATED, "ps", RANKS, False),
    _server("bsp, sgd", optimizer="sgd", lr=0.1),
    _server("bsp, momentum", optimizer="momentum"),
    _server("bsp, adam", optimizer="adam"),
    _server("bsp, cnn", **IMAGES),
    _server("bsp, gpt", **TEXT),
    _server("ssp 0", consistency="ssp", staleness=0),
    _server("asp, one worker", (2,), consistency="asp"),
    _server("float16", compression="float16"),
    _server("topk", compression="topk", topk=0.1),
    _server("local steps", local_steps=2, steps=6),
    _server("worker micro-batches", worker_micro_batches=2),
    Configuration("all-reduce", {"consistency": "allreduce", "message_size": "400"}, "ps", RANKS, False),
    Configuration("all-reduce, momentum", {"consistency": "allreduce", "optimizer": "momentum"}, "ps", RANKS, False),
]

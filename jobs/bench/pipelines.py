"""Two ranks beside every way in which PyTorch shares a training run between two processes: pipelines and DDP over Gloo.

Usage: make bench-pipelines [ARGS="--rounds 7 --only GPT"]. All train the same network in float32 from the same start
values on batches of the same size, one thread a process, PyTorch in eager mode with fused optimizers; its pipelines are
cut where ours are. A round runs each once, in separate processes, the first steps left out; every other round goes
backwards. The last rows are beside the best of PyTorch's ways, whichever that was.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ringtmp.data.dataset import open_data
from ringtmp.jobs.lib.compare import compared
from ringtmp.jobs.lib.launch import ROOT, launch, rounds, run_json
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.jobs.lib.ways import WAYS

AIM = 3.0  # beside the best
OURS: dict[str, dict[str, str]] = {"ready": {}, "zb-h2": {"schedule": "zb-h2"}, "1f1b": {"schedule": "1f1b"}}
TEXT = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare.txt"


@dataclass
class Case:
    """A network, its batch, and PyTorch's ways with the number of pieces that each takes.

    DDP is fastest with one piece on each rank, and pipelines with larger pieces than ours: both may have them.

    Attributes
    ----------
    net : dict
        The network, in the form of `ringtmp.jobs.bench.torch_job`.
    data : str
        Value of `--data`.
    batch, pieces : int
        Samples of a step, and micro-batches of our runs.
    optimizer : str
        Name of the optimizer.
    ways : list of (str, int)
        PyTorch's ways, and the pieces of each.
    unit : str
        Unit of the rate.
    """

    net: dict[str, Any]  # as `ringtmp.jobs.bench.torch_job` takes it
    data: str
    batch: int
    pieces: int  # ours
    optimizer: str
    ways: list[tuple[str, int]]
    unit: str = "samples/s"


def cases() -> dict[str, Case]:
    """The networks."""
    text = TEXT if TEXT.is_file() else ROOT / "README.md"
    # As many tokens as the text has: our network follows the data, PyTorch's follows ours.
    tokens = open_data(f"text:{text}", dtype=np.dtype(np.float32), context=128).info.outputs
    mlp = {"spec": "mlp:1024-1024x8-10", "shape": [1024], "outputs": 10, "labels": 1}
    gpt = {"spec": "gpt:layers=4,width=256,heads=8,context=128", "shape": [128], "outputs": tokens, "labels": 128}
    return {
        "MLP 8 x 1024, batch 512 in 8": Case(
            mlp,
            "synthetic:samples=5120,features=1024,classes=10",
            512,
            8,
            "momentum",
            [("gpipe", 8), ("1f1b", 8), ("interleaved-zb", 8), ("zbv", 8), ("zbv", 4), ("ddp", 8), ("ddp", 1)],
        ),
        "GPT 4 x 256, context 128, batch 8 in 4": Case(
            gpt,
            f"text:{text}",
            8,
            4,
            "adamw",
            [("gpipe", 4), ("1f1b", 4), ("interleaved-zb", 4), ("zbv", 4), ("ddp", 4), ("ddp", 1)],
            "tokens/s",
        ),
    }


def contestants(case: Case, steps: int) -> dict[str, Callable[[], float]]:
    """Each contestant of `case` by its name: a callable that runs `steps` steps once and returns the rate."""
    skip, scored = steps // 8, case.net["labels"]

    def ours(flags: dict[str, str]) -> float:
        [found] = launch(2, [{"trainer": "ring", "train": train | flags, "skip": skip}])
        return found["samples_per_s"] * scored

    def theirs(settings: dict[str, Any]) -> float:
        return run_json("ringtmp.jobs.bench.torch_job", settings)["samples_per_s"] * scored

    train = {
        "model": case.net["spec"],
        "data": case.data,
        "batch_size": case.batch,
        "micro_batches": case.pieces,
        "optimizer": case.optimizer,
        "steps": steps,
        "eval_every": 0,
        "lr": 1e-3,
        "trace": "off",
        "test_fraction": 0.01,  # a run of ours ends with a test, which is not timed and need not last
    }
    peer = {
        "net": case.net,
        "batch_size": case.batch,
        "optimizer": case.optimizer,
        "steps": steps,
        "skip": skip,
        "ranks": 2,
    }
    found: dict[str, Callable[[], float]] = {}
    for name, flags in OURS.items():
        found[name] = partial(ours, flags)
    for way, pieces in case.ways:
        settings = peer | {"micro_batches": pieces} | dict(WAYS[way].settings)
        found[f"{WAYS[way].label} in {pieces}"] = partial(theirs, settings)
    return found


def measure(name: str, case: Case, count: int, steps: int) -> list[dict[str, Any]]:
    """The rows of a case.

    Parameters
    ----------
    name : str
        Name of the case.
    case : Case
        The case.
    count : int
        Number of rounds.
    steps : int
        Steps of a run.
    """
    runs = contestants(case, steps)
    rates: dict[str, list[float]] = {who: [] for who in runs}
    for number, found in rounds(runs, count, lambda some: [run() for run in some]):
        for who, value in found.items():
            rates[who].append(value)
        print(
            f"{name}, round {number + 1}: " + ", ".join(f"{who} {of[-1]:,.0f}" for who, of in rates.items()), flush=True
        )
    peers = [who for who in runs if who not in OURS]
    best = max(peers, key=lambda who: float(np.median(rates[who])))
    rows = [compared(f"{name}: beside {who}", rates["ready"], rates[who], case.unit, None) for who in peers]
    for mine in OURS:
        how = "" if mine == "ready" else f", ours by schedule {mine}"
        aim = AIM if mine == "ready" else None
        rows.append(compared(f"{name}: beside the best ({best}){how}", rates[mine], rates[best], case.unit, aim))
    return rows


def main() -> None:
    """Measure both cases and publish them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="runs of each for each case [5]")
    arguments.add_argument("--steps", type=int, default=32, help="of a run, an eighth of them left out [32]")
    arguments.add_argument("--only", default="", help="cases whose name holds this text")
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for name, case in cases().items():
        if options.only in name:
            rows += measure(name, case, options.rounds, options.steps)
    publish_benchmark(
        "pipelines",
        rows,
        "Two ranks beside PyTorch's pipelines and DDP",
        peer="torch==2.13.0 (CPU build, MKL), Gloo, eager, fused optimizers",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()

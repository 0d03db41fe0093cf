"""Training steps beside PyTorch on one thread, and the share of the machine's floor that each reaches.

Usage: make bench-kernels [ARGS="--pairs 9 --only GPT"]. Both networks start from the same weights and train on the same
batches in one process, some steps each by turns; their losses are compared on the way. The floor is the larger of what
the floating-point operations take at the core's measured peak and what the bytes that must move take at its measured
bandwidth; each layer's are added up.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ringtmp.data.dataset import epoch_order, open_data
from ringtmp.jobs.bench.torch_nets import Twin
from ringtmp.jobs.lib.compare import compared, measured
from ringtmp.jobs.lib.launch import ROOT, fair_environment
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.kernels.machine import bandwidth, peak_flops
from ringtmp.kernels.tile import simd
from ringtmp.nn.layer import Array, StepContext
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage, Work


@dataclass
class Case:
    """A network and its batch.

    Attributes
    ----------
    spec : str
        The network.
    batch, pieces : int
        Samples of a step, and micro-batches that they are divided into.
    optimizer : str
        Name of the optimizer.
    unit : str
        Unit of the rate.
    shape : tuple of int
        Shape of one sample.
    outputs, labels : int
        Classes, and labels per sample.
    aim : float or None
        Ratio to reach.
    """

    spec: str
    batch: int
    pieces: int = 1
    optimizer: str = "momentum"
    unit: str = "samples/s"
    shape: tuple[int, ...] = ()
    outputs: int = 10
    labels: int = 1
    aim: float | None = 2.0


CASES = {
    "MLP 4 x 256, batch 128": Case("mlp:256-256x4-10", 128, shape=(256,)),
    "MLP 8 x 1024, batch 256": Case("mlp:1024-1024x8-10", 256, shape=(1024,)),
    "MLP 8 x 1024, batch 256 in 8": Case("mlp:1024-1024x8-10", 256, 8, shape=(1024,)),
    "MLP 6 x 2048, batch 512 in 4": Case("mlp:2048-2048x6-10", 512, 4, shape=(2048,)),
    "CNN 32-64, dense 128, batch 64": Case("cnn:28x28-32c3-p2-64c3-p2-128-10", 64, 1, "adamw", shape=(28, 28)),
    "GPT 4 x 256, context 128, batch 8": Case(
        "gpt:layers=4,width=256,heads=8,context=128", 8, 1, "adamw", "tokens/s", (128,), 65, 128
    ),
    "GPT 4 x 256, context 128, batch 8 in 4": Case(
        "gpt:layers=4,width=256,heads=8,context=128", 8, 4, "adamw", "tokens/s", (128,), 65, 128
    ),
}


class Ours:
    """Our network on one rank's stage, stepped like the engine in ready mode.

    Parameters
    ----------
    model : Model
        The network.
    case : Case
        Its batch.
    """

    def __init__(self, model: Model, case: Case) -> None:
        rows = -(-case.batch // case.pieces)
        self.case, self.model = case, model
        self.group = group = model.w_group(rows, case.pieces)
        self.stage = Stage(model, 0, len(model.layers), np.dtype(np.float32), Optimizer(case.optimizer), rows, group)
        self.stage.initialise(0)
        self.rows, self.updates = rows, 0
        self.scale = 1.0 / (case.batch * model.scored)
        self.stage.warm_up([rows])

    def step(self, x: Array, y: Array, lr: float) -> float:
        """Make one optimizer step with learning rate `lr` on samples `x` and labels `y`; return the mean loss."""
        total, fresh = 0.0, True
        waiting: list[Work] = []
        for number in range(self.case.pieces):
            part = slice(number * self.rows, (number + 1) * self.rows)
            work = self.stage.work(len(waiting), self.rows)
            work.x[...], work.labels[...] = x[part], y[part].reshape(work.labels.shape)
            context = StepContext(True, 0, self.updates, part.start)
            self.stage.forward(work, context)
            total += self.stage.loss(work, self.scale)[0]
            self.stage.backward_input(work, context)
            waiting.append(work)
            if len(waiting) == self.group or number == self.case.pieces - 1:
                self.stage.backward_weight(waiting, fresh)
                waiting, fresh = [], False
        self.updates += 1
        self.stage.update(lr, self.updates)
        return total * self.scale


def floor_seconds(model: Model, case: Case, flops: float, bytes_per_s: float) -> float:
    """Least seconds of a step of `case` on this core, for its peak `flops` and memory bandwidth `bytes_per_s`.

    `model` is the network.
    """
    rows = case.batch // case.pieces
    return case.pieces * sum(
        max(layer.flops(rows) / flops, layer.traffic(rows, 4) / bytes_per_s) for layer in model.layers
    )


def batches(model: Model, case: Case, count: int) -> list[tuple[Array, Array]]:
    """`count` batches of random samples and labels for `model` and `case`, the same for both contestants."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        if model.takes_tokens:
            x: Array = rng.integers(0, case.outputs, (case.batch, *case.shape))
        else:
            x = rng.standard_normal((case.batch, int(np.prod(case.shape))), dtype=np.float32)
        made.append((x, rng.integers(0, case.outputs, (case.batch, case.labels))))
    return made


def compare(name: str, case: Case, pairs: int, flops: float, bytes_per_s: float, compiled: bool) -> dict[str, Any]:
    """A row of the table.

    Parameters
    ----------
    name : str
        Name of the case.
    case : Case
        The case.
    pairs : int
        Runs of each contestant.
    flops, bytes_per_s : float
        Peak and memory bandwidth of this core.
    compiled : bool
        Whether PyTorch uses `torch.compile`.
    """
    lr = 1e-3
    model = build_model(case.spec, "auto", case.shape, "classes", case.outputs, case.labels, case.labels > 1)
    ours = Ours(model, case)
    twin = Twin(model, [s.layer.unpack(s.flat) for s in ours.stage.states], case.optimizer, lr)
    if compiled:
        twin.compile()
    data = batches(model, case, 4)
    fed = [(twin.inputs(x), torch.from_numpy(y)) for x, y in data]
    drift = max(
        abs(ours.step(*data[n % 4], lr) - twin.step(*fed[n % 4], case.pieces)) for n in range(4 if not compiled else 8)
    )
    began = time.perf_counter()
    ours.step(*data[0], lr)
    steps = max(1, round(0.3 / (time.perf_counter() - began)))

    def rate(step: Any) -> float:
        began = time.perf_counter()
        for n in range(steps):
            step(n % 4)
        return steps * case.batch * model.scored / (time.perf_counter() - began)

    mine: list[float] = []
    theirs: list[float] = []
    for pair in range(pairs):
        order = [(mine, lambda n: ours.step(*data[n], lr)), (theirs, lambda n: twin.step(*fed[n], case.pieces))]
        for values, step in order if pair % 2 else reversed(order):
            values.append(rate(step))
    row = compared(name, mine, theirs, case.unit, case.aim)
    best = case.batch * model.scored / floor_seconds(model, case, flops, bytes_per_s)
    work = case.pieces * sum(layer.flops(case.batch // case.pieces) for layer in model.layers)
    per_sample = work / (case.batch * model.scored) / 1e9
    row |= {
        "floor_share": row["ours"] / best,
        "peer_floor_share": row["peer"] / best,
        "drift": drift,
        "gflops": row["ours"] * per_sample,
        "peer_gflops": row["peer"] * per_sample,
    }
    print(
        f"{name}: {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}); {row['gflops']:.0f} GFLOP/s beside "
        f"{row['peer_gflops']:.0f}; {row['floor_share']:.0%} of the floor; losses differ by {drift:.0e}",
        flush=True,
    )
    return row


def curve(steps: int = 200) -> dict[str, Any]:
    """Loss of a language model over `steps` steps beside PyTorch's: same start values, same batches of a real text."""
    text = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare.txt"
    source = text if text.is_file() else ROOT / "README.md"
    case = Case("gpt:layers=4,width=128,heads=4,context=64", 8, 2, "adamw", shape=(64,))
    data = open_data(f"text:{source}", dtype=np.dtype(np.float32), context=64)
    case.outputs, case.labels = data.info.outputs, 64
    model = build_model(case.spec, "auto", case.shape, "classes", case.outputs, case.labels, case.labels > 1)
    ours = Ours(model, case)
    twin = Twin(model, [s.layer.unpack(s.flat) for s in ours.stage.states], case.optimizer, 1e-3)
    x, y = (np.empty((case.batch, 64), np.int64) for _ in range(2))
    mine, theirs = [], []
    for step in range(steps):
        order = epoch_order(0, step * case.batch // data.info.n_train, data.info.n_train)
        first = step * case.batch % (data.info.n_train - case.batch)
        data.read("train", order[first : first + case.batch], x, y)
        mine.append(ours.step(x, y, 1e-3))
        theirs.append(twin.step(twin.inputs(x), torch.from_numpy(y), case.pieces))
    difference = float(np.abs(np.subtract(mine, theirs)).max())
    print(
        f"{case.spec} on {source.name}: loss {mine[0]:.3f} to {mine[-1]:.3f}; curves differ by {difference:.1e} at most"
    )
    row = measured(f"language model, {steps} steps: largest difference of the losses", [difference], "nats", 1e-3, True)
    return row | {"first_loss": mine[0], "last_loss": mine[-1]}


def main() -> None:
    """Measure all cases and publish them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=9, help="alternating pairs for each case [9]")
    arguments.add_argument("--only", default="", help="cases whose name holds this text")
    arguments.add_argument("--compile", action="store_true", help="beside torch.compile, not eager mode")
    options = arguments.parse_args()
    if "OPENBLAS_CORETYPE" in os.environ:  # read by libraries when they are loaded: start again without
        raise SystemExit(
            subprocess.run(
                [sys.executable, "-m", "ringtmp.jobs.bench.kernels_peer", *sys.argv[1:]], env=fair_environment()
            ).returncode
        )
    torch.set_num_threads(1)
    flops, bytes_per_s = peak_flops(np.float32), bandwidth()
    print(f"{simd()}: peak {flops / 1e9:.0f} GFLOP/s, memory {bytes_per_s / 1e9:.1f} GB/s")
    chosen = {name: case for name, case in CASES.items() if options.only in name}
    rows = [compare(name, case, options.pairs, flops, bytes_per_s, options.compile) for name, case in chosen.items()]
    if not options.only and not options.compile:
        rows.append(curve())
    ratios = [row["ratio"] for row in rows if row["peer"]]
    mean = float(np.exp(np.mean(np.log(ratios))))
    print(f"geometric mean {mean:.2f}, least {min(ratios):.2f}")
    peer = (
        f"torch=={torch.__version__} (CPU build), {'torch.compile' if options.compile else 'eager'}, fused optimizers"
    )
    publish_benchmark(
        "kernels_compiled" if options.compile else "kernels",
        rows,
        "Training steps beside PyTorch, one thread",
        peer=peer,
        peak_gflops=flops / 1e9,
        memory_gb_s=bytes_per_s / 1e9,
        geometric_mean=mean,
    )


if __name__ == "__main__":
    main()

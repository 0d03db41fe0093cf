"""Our own figures: default job, start, cost of tracing, overhead of the engine.

Usage: make bench [ARGS="--repeats 5"].
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.analysis import open_run
from ringtmp.jobs.lib.compare import alternate, compared, measured
from ringtmp.jobs.lib.launch import MPIRUN, fair_environment, launch, run_json
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.simulate.pipeline import Scene, simulate
from ringtmp.trace.recorder import Recorder

DEFAULT = {"batch_size": 64, "micro_batches": 8, "lr": 1e-3, "eval_every": 0, "steps": 220}


def job(ranks: int, *flags: str) -> tuple[float, float, float]:
    """Run a whole job.

    Parameters
    ----------
    ranks : int
        Ranks of the job.
    *flags : str
        Flags of the trainer.

    Returns
    -------
    float, float, float
        Seconds of the job; seconds from its launch to the end of rank 0's first step; test accuracy in percent.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter_ns()
        done = subprocess.run(
            [MPIRUN, "-n", str(ranks), sys.executable, "-m", "ringtmp.train", "--name", "run", *flags],
            cwd=folder,
            env=fair_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        whole = (time.perf_counter_ns() - began) / 1e9
        run = open_run(Path(folder) / "runs" / "run")
        events, ranks_table = run.events(), run.ranks()
        zero = int(ranks_table["began"].min())  # all processes of a host read one monotonic clock
        first = events[(events["kind"] == "U") & (events["rank"] == 0)]["end"].min() + zero - began
        accuracy = float(re.findall(r"test accuracy ([\d.]+)%", done.stdout)[-1])
    return whole, first / 1e9, accuracy


def overhead(ranks: int) -> tuple[float, float]:
    """Microseconds per action on `ranks` ranks that are neither compute, wait nor reading; and those of messages."""
    with tempfile.TemporaryDirectory() as folder:
        train = DEFAULT | {"model": "mlp:64-64x7-10", "steps": 300, "out": folder}
        launch(ranks, [{"trainer": "ring", "train": train | {"name": "run", "checkpoint_every": 0}, "skip": 20}])
        events = open_run(Path(folder) / "run").events()
    events = events[events["step"].between(20, 280) & (events["rank"] == 0)]
    span = (events["end"] - events["start"]).groupby(events["kind"]).sum()
    wall = events["end"].max() - events["start"].min()
    actions = events["kind"].isin(["F", "I", "W", "U"]).sum()
    transfer = span.get("send", 0) + span.get("receive", 0)
    return (wall - span.sum()) / 1e3 / actions, transfer / 1e3 / actions


def event_cost(repeats: int) -> tuple[list[float], list[float]]:
    """Nanoseconds to record one event, `repeats` times: with a trace file, and without one."""

    def cost(path: Path | None) -> float:
        recorder = Recorder(path, {})
        began = time.perf_counter_ns()
        for step in range(30000):
            recorder.record("F", began, began + 5, step, 3)
        return (time.perf_counter_ns() - began) / 30000

    with tempfile.TemporaryDirectory() as folder:
        paths = iter(Path(folder) / f"{n}.h5" for n in range(repeats))
        return alternate(lambda: cost(next(paths)), lambda: cost(None), repeats)


def simulator(repeats: int) -> tuple[list[float], list[float]]:
    """Millions of actions a second, and seconds for a step of 1024 ranks and 4096 micro-batches, `repeats` times."""
    scene = Scene.even(1024, 4096, latency=0.05)
    simulate(Scene.even(2, 2), steps=1)  # compiles
    rates, whole = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        actions = simulate(scene, steps=1).actions
        whole.append(time.perf_counter() - began)
        rates.append(actions / whole[-1] / 1e6)
    return rates, whole


def main() -> None:
    """Measure everything and publish it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5, help="runs of each case [5]")
    repeats = arguments.parse_args().repeats
    rows: list[dict[str, Any]] = []
    job(2, "--steps", "2")  # fills the cache of compiled kernels
    for ranks in (1, 2, 8):
        runs = [job(ranks, "--seed", str(seed)) for seed in range(repeats)]
        whole, first, accuracy = map(list, zip(*runs, strict=True))
        print(f"default job on {ranks}: {np.median(whole):.1f} s", flush=True)
        rows.append(measured(f"default job, {ranks} ranks: whole job", whole, "s", 60, True))
        aim = 3 if ranks == 2 else None
        rows.append(measured(f"default job, {ranks} ranks: launch to first step", first, "s", aim, True))
        rows.append(measured(f"default job, {ranks} ranks: test accuracy", accuracy, "%", 96, False))
    for ranks in (1, 2):
        own, transfer = map(list, zip(*(overhead(ranks) for _ in range(repeats)), strict=True))
        rows.append(measured(f"engine, {ranks} ranks: own time per action", own, "us", 20, True))
        if ranks > 1:
            rows.append(measured(f"engine, {ranks} ranks: send and receive per action", transfer, "us", 20, True))
    rates, whole = simulator(repeats)
    rows.append(measured("simulator: million actions a second", rates, "M/s", 1, False))
    rows.append(measured("simulator: a step of 1024 ranks, 4096 micro-batches", whole, "s", 10, True))
    on, off = event_cost(repeats)
    rows.append(compared("tracing: one event, recorded beside only summed", on, off, "ns", None, less_is_better=True))
    data = "synthetic:samples=2560,features=1024,classes=10"
    large = {"model": "mlp:1024-1024x8-10", "data": data, "batch_size": 256, "steps": 30}
    for name, ranks, train, pairs in (
        ("default job", 1, {"steps": 220}, 20 * repeats),
        ("default job", 2, {"steps": 220}, 20 * repeats),
        ("8 x 1024", 2, large, 2 * repeats),
    ):
        settings = {"train": DEFAULT | train, "skip": 5, "pairs": pairs}
        values = run_json("ringtmp.jobs.bench.tracing", settings, ranks)
        case = f"tracing on beside off, {name}, {ranks} ranks"
        rows.append(compared(case, values["on"], values["off"], "samples/s", 0.99))
    publish_benchmark("ours", rows, "RingTMP's own figures")


if __name__ == "__main__":
    main()

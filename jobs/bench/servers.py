"""The parameter server in every layout beside all-reduce, the ring and PyTorch's DDP: samples/s of the same training.

Usage: make bench-ps [ARGS="--rounds 3"]. Two networks, one bound by computing and one by the exchange; 2 ranks at full
speed, 4 and 8 ranks as emulated nodes (`--node-speed`), where PyTorch cannot take part. Every way trains the same
network with the same global batch and optimizer, one thread a rank; the rank that only serves is one of the ranks. A
round runs each way once, every other round backwards; the first quarter of each run is left out. The ring's way is
ready mode.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringtmp.jobs.lib.case import Case
from ringtmp.jobs.lib.launch import launch, rounds, run_json
from ringtmp.jobs.lib.on_ranks import waited
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.jobs.lib.ways import WAYS, Way, several_servers

STEPS, SKIP, LAYERS = 24, 6, 8
BSP, DDP = WAYS["bsp"].label, WAYS["ddp"].label


@dataclass(frozen=True)
class Bound:
    """A case, what bounds it (`by`), and GFLOP/s of a node (`pace`; 0: as fast as it is)."""

    by: str
    ranks: int
    width: int
    batch: int
    pace: float = 0.0

    @property
    def case(self) -> Case:
        """What all ways train."""
        samples, speed = 4 * max(self.batch, 64), f"{self.pace:g}" if self.pace else ""
        return Case(self.by, self.ranks, self.width, LAYERS, self.batch, samples, speed)

    def ways(self) -> list[Way]:
        """What is compared, the ring last."""
        servers = [several_servers(self.ranks // 4)] if self.ranks >= 8 else []
        micro = min(self.batch, 4 * self.ranks if self.ranks == 2 else 2 * self.ranks)
        named = [WAYS[name] for name in ("bsp", "ssp", "asp")]
        ring = WAYS["ring"].named("ring", micro_batches=micro)
        return [*named, *servers, WAYS["colocated"], WAYS["allreduce"], ring]

    def peer(self) -> dict[str, Any]:
        """As `ringtmp.jobs.bench.torch_job` takes it."""
        net = {"spec": self.case.spec, "shape": [self.width], "outputs": self.width, "labels": 1}
        return {
            "net": net,
            "batch_size": self.batch,
            "optimizer": "momentum",
            "steps": STEPS,
            "skip": SKIP,
            "ranks": self.ranks,
            "way": "ddp",
            "micro_batches": 1,
        }


CASES = [
    Bound("computing", 2, 1024, 512),
    Bound("exchange", 2, 1024, 32),
    Bound("computing", 4, 256, 128, 2.0),
    Bound("exchange", 4, 512, 32, 2.0),
    Bound("computing", 8, 256, 256, 2.0),
    Bound("exchange", 8, 512, 64, 2.0),
]


def describe(case: Bound) -> str:
    """Ranks, bound, network and batch of `case`, as text."""
    speed = f"nodes of {case.pace:g} GFLOP/s" if case.pace else "full speed"
    return f"{case.ranks} ranks, {speed}, {LAYERS} x {case.width}, batch {case.batch}: bound by {case.by}"


def measure(case: Bound, count: int, torch: bool) -> list[dict[str, Any]]:
    """The rows of `case` in `count` rounds; `torch`: whether to measure PyTorch's DDP too."""
    runs = {way.label: case.case.run(way, STEPS, SKIP) for way in case.ways()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    waits: dict[str, list[float]] = {name: [] for name in runs}
    if torch and not case.pace:
        rates[DDP] = []
    for number, results in rounds(runs, count, lambda some: launch(case.ranks, some)):
        for name, result in results.items():
            rates[name].append(result["samples_per_s"])
            waits[name].append(waited(result))
        if DDP in rates:
            rates[DDP].append(run_json("ringtmp.jobs.bench.torch_job", case.peer())["samples_per_s"])
        said = ", ".join(f"{name} {of[-1]:,.0f}" for name, of in rates.items())
        print(f"{describe(case)} ({number + 1}): {said}", flush=True)
    base = np.asarray(rates[BSP])
    rows = []
    for name, values in rates.items():
        low, high = np.percentile(np.asarray(values) / base, [25, 75])
        rows.append(
            {
                "case": describe(case),
                "ranks": case.ranks,
                "bound_by": case.by,
                "way": name,
                "samples_per_s": float(np.median(values)),
                "times_bsp": float(np.median(values) / np.median(base)),
                "low": float(low),
                "high": float(high),
                "idle": float(np.median(waits[name])) if name in waits else None,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print `rows` as one table."""
    heads = ("case", "way", "samples/s", "times bsp", "quartiles", "idle")
    table = make_table("Samples/s; idle: of the workers", heads, ("case", "way"))
    before = ""
    for row in rows:
        table.add_row(
            row["case"] if row["case"] != before else "",
            row["way"],
            f"{row['samples_per_s']:,.0f}",
            f"{row['times_bsp']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            "" if row["idle"] is None else f"{row['idle']:.1%}",
        )
        before = row["case"]
    Page(150).print(table)


def main() -> None:
    """Measure and publish."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each way [3]")
    arguments.add_argument("--only", default="", help="cases whose description holds this text, such as '8 ranks'")
    arguments.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options = arguments.parse_args()
    chosen = [case for case in CASES if options.only in describe(case)]
    rows = [row for case in chosen for row in measure(case, options.rounds, not options.no_torch)]
    show(rows)
    peer = "torch==2.13.0 (CPU build, MKL), DDP over Gloo, eager"
    keep = not options.only and not options.no_torch
    publish_benchmark("servers", rows, keep=keep, peer=peer, rounds=options.rounds)


if __name__ == "__main__":
    main()

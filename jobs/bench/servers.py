"""The parameter server in every layout beside all-reduce, the ring and PyTorch's DDP: samples/s of the same training.

Usage: make bench-ps [ARGS="--rounds 3"]. Two networks, one bound by computing and one by the exchange; 2 ranks at full
speed, 4 and 8 ranks as emulated nodes (`--node-speed`), where PyTorch cannot take part. Every way trains the same network
with the same global batch and optimizer, one thread a rank; the rank that only serves is one of the ranks. A round runs
each way once, every other round backwards; the first quarter of each run is left out. The ring's way is ready mode.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import ROOT, provenance, run_json

STEPS, SKIP = 24, 6


@dataclass(frozen=True)
class Case:
    """A network on so many ranks: layers of `width`, a global batch, and GFLOP/s of a node (0: as fast as it is)."""

    name: str
    ranks: int
    width: int
    batch: int
    pace: float = 0.0
    layers: int = 8

    def settings(self) -> dict[str, Any]:
        """As `ringtmp.train` and `ps.train` take them."""
        paced = {"node_speed": f"{self.pace:g}"} if self.pace else {}
        return {
            "model": f"mlp:{self.width}-{self.width}x{self.layers}",
            "batch_size": self.batch,
            "optimizer": "momentum",
            "data": f"synthetic:samples={4 * max(self.batch, 64)},features={self.width},classes={self.width}",
            "lr": 1e-3,
            "steps": STEPS,
            "eval_every": 0,
            "checkpoint_every": 0,
            "test_fraction": 0.01,
            **paced,
        }

    def ways(self) -> dict[str, dict[str, Any]]:
        """What is compared, by name."""
        many = self.ranks // 4 if self.ranks > 2 else 1
        found: dict[str, dict[str, Any]] = {
            "bsp": {},
            "ssp 3": {"consistency": "ssp", "staleness": 3},
            "asp": {"consistency": "asp"},
            f"bsp, {many} servers": {"servers": many},
            "colocate": {"colocate": True},
            "all-reduce": {"consistency": "allreduce"},
        }
        if many == 1:
            del found[f"bsp, {many} servers"]
        return found

    def runs(self) -> dict[str, dict[str, Any]]:
        """Of each way, as `jobs.bench.steady` takes them."""
        common = self.settings()
        found = {name: {"trainer": "ps", "train": common | way, "skip": SKIP} for name, way in self.ways().items()}
        micro = min(self.batch, 4 * self.ranks if self.ranks == 2 else 2 * self.ranks)
        return found | {"ring": {"train": common | {"micro_batches": micro}, "skip": SKIP}}

    def peer(self) -> dict[str, Any]:
        """As `jobs.bench.torch_job` takes it."""
        net = {"spec": self.settings()["model"], "shape": [self.width], "outputs": self.width, "labels": 1}
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
    Case("computing", 2, 1024, 512),
    Case("exchange", 2, 1024, 32),
    Case("computing", 4, 256, 128, 2.0),
    Case("exchange", 4, 512, 32, 2.0),
    Case("computing", 8, 256, 256, 2.0),
    Case("exchange", 8, 512, 64, 2.0),
]


def describe(case: Case) -> str:
    """Ranks, what bounds it, network and batch."""
    speed = f"nodes of {case.pace:g} GFLOP/s" if case.pace else "full speed"
    return f"{case.ranks} ranks, {speed}, {case.layers} x {case.width}, batch {case.batch}: bound by {case.name}"


def waited(result: dict[str, Any]) -> float:
    """Share of their time that those who work wait."""
    parts = [part for part, role in zip(result["parts"], result["roles"], strict=True) if role != "server"]
    return sum(part["wait"] for part in parts) / sum(sum(part.values()) for part in parts)


def measure(case: Case, rounds: int, torch: bool) -> list[dict[str, Any]]:
    """The rows of a case."""
    runs = case.runs()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    waits: dict[str, list[float]] = {name: [] for name in runs}
    if torch and not case.pace:
        rates["PyTorch DDP"] = []
    for number in range(rounds):
        names = list(runs) if number % 2 == 0 else list(reversed(runs))
        results: Any = run_json("jobs.bench.steady", {"runs": [runs[name] for name in names]}, case.ranks)
        for name, result in zip(names, results, strict=True):
            rates[name].append(result["samples_per_s"])
            waits[name].append(waited(result))
        if "PyTorch DDP" in rates:
            rates["PyTorch DDP"].append(run_json("jobs.bench.torch_job", case.peer())["samples_per_s"])
        said = ", ".join(f"{name} {of[-1]:,.0f}" for name, of in rates.items())
        print(f"{describe(case)} ({number + 1}): {said}", flush=True)
    base = np.asarray(rates["bsp"])
    rows = []
    for name, values in rates.items():
        low, high = np.percentile(np.asarray(values) / base, [25, 75])
        rows.append(
            {
                "case": describe(case),
                "ranks": case.ranks,
                "bound_by": case.name,
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
    """One table."""
    table = Table(title="Samples/s; idle: of those who work", title_justify="left")
    for head in ("case", "way", "samples/s", "times bsp", "quartiles", "idle"):
        table.add_column(head, justify="left" if head in ("case", "way") else "right")
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
    Console(width=150).print(table)


def main() -> None:
    """Measure and publish."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each way [3]")
    arguments.add_argument("--only", default="", help="cases whose description holds this text, as in '8 ranks'")
    arguments.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options = arguments.parse_args()
    chosen = [case for case in CASES if options.only in describe(case)]
    rows = [row for case in chosen for row in measure(case, options.rounds, not options.no_torch)]
    show(rows)
    if not options.only and not options.no_torch:
        path = ROOT / "jobs" / "bench" / "results" / "servers.json"
        origin = provenance(peer="torch==2.13.0 (CPU build, MKL), DDP over Gloo, eager", rounds=options.rounds)
        path.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n")
        print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

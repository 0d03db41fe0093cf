"""How far each architecture scales: rings, rings side by side, all-reduce and parameter servers on 1 to 8 nodes.

Usage: python -m jobs.experiments.scalability [--quick] [--rounds 2] [--out FOLDER]

Emulated nodes, all equal, and a chain of few equal layers. `strong`: one batch, dealt over more and more nodes; `weak`:
a batch that grows with them. A ring cannot have more nodes than the chain has layers; several rings side by side
(`--replicas`) can, and so can the others. `2 x 4`: two rings of four nodes each. The server's rank is one of the nodes.

Rates are samples a second after the first steps of a run, each way once a round, every other round backwards;
`speed-up` is beside one node, `idle` the share of their time that those who work wait. `simulated` is what the clock
says of the same training, told the nodes' speed alone (of rings side by side: of one of them); the clock goes on where
nodes end, in `jobs.experiments.architectures`. Links are shared memory here; `jobs.experiments.cluster` has slow ones.
Writes results/scalability.h5 and jobs/figures/scalability.png.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance, run_json
from jobs.bench.servers import waited
from jobs.experiments.crossover import Setting, predict
from jobs.experiments.progress import quartiles
from jobs.experiments.store import Page, publish

WIDTH, LAYERS, ROWS = 32, 4, 4  # of the chain, and samples of a micro-batch
SAMPLE = 2e-3  # seconds that one node takes for F of a sample
STRONG, WEAK = 64, 16  # samples of a batch: in all, and for each node
STEPS, SKIP = 24, 6
NODES = (1, 2, 4, 8)
LINK = {"bandwidth": 4e9, "latency": 10e-6}  # bytes a second and seconds of shared memory, for the clock
SIMULATED = {"server, bsp": "server", "every rank serves": "colocated", "all-reduce": "all-reduce"}
SERVERS: dict[str, dict[str, Any]] = {
    "server, bsp": {}, "server, ssp 3": {"consistency": "ssp", "staleness": 3}, "every rank serves": {"colocate": True},
    "all-reduce": {"consistency": "allreduce"},
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """So many nodes and a batch."""

    scaling: str
    nodes: int

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return STRONG if self.scaling == "strong" else WEAK * self.nodes

    @property
    def speed(self) -> float:
        """GFLOP/s of a node."""
        return 2 * WIDTH * WIDTH * LAYERS / SAMPLE / 1e9

    def predicted(self, name: str, settings: dict[str, Any]) -> float | None:
        """Samples a second of a way under the clock; None where it has none."""
        rings = settings.get("replicas", 1)
        way = SIMULATED.get(name, "ring" if "ring" in name else "")
        if not way:
            return None
        batch = self.batch // rings
        setting = Setting(self.nodes // rings, LAYERS, WIDTH, batch, settings.get("micro_batches", 1) , "1MiB",
                          self.speed, "", **LINK)  # fmt: skip
        return self.batch / predict(setting, way, batch, WIDTH, 1)

    def runs(self, steps: int) -> dict[str, dict[str, Any]]:
        """Each way, as `jobs.bench.steady` takes it."""
        common = {
            "model": f"mlp:{WIDTH}-{WIDTH}x{LAYERS}", "batch_size": self.batch, "optimizer": "momentum", "lr": 1e-3,
            "data": f"synthetic:samples={4 * self.batch + 64},features={WIDTH},classes={WIDTH}", "test_fraction": 0.05,
            "steps": steps, "eval_every": 0, "checkpoint_every": 0,
            "pace": f"{self.speed:.6g}",
        }  # fmt: skip
        found = {}
        for rings in (1, 2, 4, 8):
            size = self.nodes // rings
            if self.nodes % rings or size > LAYERS or (size == 1 and self.nodes > 1):
                continue
            ring = {"micro_batches": self.batch // rings // ROWS, **({"replicas": rings} if rings > 1 else {})}
            name = "ring" if rings == 1 else f"{rings} x {size}, rings side by side"
            found[name] = {"train": common | ring, "skip": SKIP}
        for name, server in SERVERS.items():
            if self.nodes > 1:
                found[name] = {"trainer": "ps", "train": common | server, "skip": SKIP}
        return found


def measure(point: Point, rounds: int, steps: int) -> list[dict[str, Any]]:
    """The rows of a point; speed-ups are added when one node is known."""
    runs = point.runs(steps)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    idle: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs) if number % 2 == 0 else list(reversed(runs))
        results: Any = run_json("jobs.bench.steady", {"runs": [runs[name] for name in names]}, point.nodes)
        for name, result in zip(names, results, strict=True):
            rates[name].append(result["samples_per_s"])
            idle[name].append(waited(result))
    said = ", ".join(f"{name} {np.median(of):,.1f}" for name, of in rates.items())
    print(f"{point.scaling}, {point.nodes} nodes: {said}", flush=True)
    return [
        {"scaling": point.scaling, "nodes": point.nodes, "batch": point.batch, "way": name,
         "samples_per_s": quartiles(of), "idle": float(np.median(idle[name])),
         "simulated": point.predicted(name, runs[name]["train"])}
        for name, of in rates.items()
    ]  # fmt: skip


def family(way: str) -> str:
    """What a way's curve in the picture is called."""
    return "rings side by side" if "side by side" in way else way


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    table = Table(title="Samples/s on emulated nodes; a chain of 4 layers", title_justify="left")
    for head in ("scaling", "nodes", "way", "samples/s", "speed-up", "of the nodes", "idle", "simulated"):
        table.add_column(head, justify="left" if head in ("scaling", "way") else "right")
    before = None
    for row in rows:
        new = (row["scaling"], row["nodes"]) != before
        before = row["scaling"], row["nodes"]
        median, low, high = row["samples_per_s"]
        table.add_row(
            row["scaling"] if new else "", str(row["nodes"]) if new else "", row["way"],
            f"{median:,.1f} ({low:,.1f} to {high:,.1f})", f"{row['speed_up']:.2f}",
            f"{row['speed_up'] / row['nodes']:.0%}", f"{row['idle']:.1%}",
            f"{row['simulated']:,.1f} ({row['simulated'] / median - 1:+.1%})" if row["simulated"] else "",
        )  # fmt: skip
    console.print(table)


def draw(table: dict[str, Any], path: Path) -> None:
    """Speed-up over nodes, strong and weak."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    colours = {
        "ring": "#7a1f2b", "rings side by side": "#d1495b", "all-reduce": "#edae49", "every rank serves": "#00798c",
        "server, bsp": "#30638e", "server, ssp 3": "#8fb8de",
    }  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", sharey=True)
    for axis, scaling in zip(axes, ("strong", "weak"), strict=True):
        rows = [row for row in table["rows"] if row["scaling"] == scaling]
        axis.plot([1, 8], [1, 8], color="#bbbbbb", linestyle=":", label="as many times as nodes")
        for name, colour in colours.items():
            best: dict[int, float] = {1: 1.0}
            for row in rows:
                if family(row["way"]) == name:
                    best[row["nodes"]] = max(best.get(row["nodes"], 0.0), row["speed_up"])
            if len(best) > 1:
                axis.plot([*best], [*best.values()], color=colour, marker="o", markersize=4, label=name)
        axis.set_title(f"{scaling} scaling: a batch of {STRONG if scaling == 'strong' else f'{WEAK} for each node'}",
                       loc="left", fontsize=10)  # fmt: skip
        axis.set_xlabel("emulated nodes")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(NODES, [str(n) for n in NODES])
        axis.set_yticks(NODES, [str(n) for n in NODES])
        axis.grid(color="#eeeeee")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("speed-up")
    axes[0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, 4 nodes at most, to --out alone")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way [3]")
    parser.add_argument("--out", help="folder for scalability.h5 and .png, instead of those of the project")
    options = parser.parse_args()
    rounds, steps = (1, 9) if options.quick else (options.rounds, STEPS)
    began, rows = time.perf_counter(), []
    for scaling in ("strong", "weak"):
        for nodes in NODES[:3] if options.quick else NODES:
            rows += measure(Point(scaling, nodes), rounds, steps)
        alone = next(row for row in rows if row["scaling"] == scaling)["samples_per_s"][0]
        for row in rows:
            if row["scaling"] == scaling:
                row["speed_up"] = row["samples_per_s"][0] / alone
    page = Page(150)
    show(rows, page)
    seconds = round(time.perf_counter() - began, 1)
    table = {"provenance": provenance(seconds=seconds, rounds=rounds, steps=steps), "rows": rows}
    if options.out or not options.quick:
        publish("scalability", options.out, table, page, draw)


if __name__ == "__main__":
    main()

"""The ring beside parameter servers and all-reduce, far beyond one machine: simulated steps of 8 to 4096 nodes.

Usage: ringtmp experiment architectures [--width 1024] [--gflops 100] [--bandwidth 10Gbit/s] ...

Every architecture gets the same p nodes, the same dense network and the same batch of each step; the batch grows with
the nodes (weak scaling) or stays (strong). Dedicated servers take nodes away from the workers, colocated ones do not.
Every architecture is tuned: the ring tries several numbers of micro-batches, the others several sizes of messages. A
second part looks for the batch from which the ring is no longer the fastest. Prints tables, writes
results/architectures.h5 and jobs/figures/architectures.png; about three minutes on one core.

The time of a computation is its operations at `--gflops`, whatever the number of rows. Each node has one full-duplex
link, which the ring's two directions share. It is not checked whether a worker's memory can hold the
model. Durations vary only with `--jitter`.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.config.units import parse_rate, parse_seconds
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.simulated import SERVERS, Machine, Row, best_ring, rivals
from ringtmp.jobs.lib.ways import WAYS, colour_of

NAMES = ("ring", WAYS["bsp"].label, SERVERS.label, WAYS["colocated"].label, WAYS["allreduce"].label)


def scale(machine: Machine, nodes: Sequence[int], batches: dict[str, Callable[[int], int]]) -> list[Row]:
    """Simulate all architectures on all numbers of nodes.

    Parameters
    ----------
    machine : Machine
        Network and nodes.
    nodes : sequence of int
        Numbers of nodes, ascending.
    batches : dict of callable
        By scaling: samples of a step as a function of the number of nodes.
    """
    rows = []
    for scaling, batch_of in batches.items():
        ratio = 2
        for p in nodes:
            first, ratio = best_ring(machine, p, batch_of(p), ratio)
            rows += [replace(row, scaling=scaling) for row in (first, *rivals(machine, p, batch_of(p)))]
    return rows


def sweep(machine: Machine, p: int) -> list[Row]:
    """Simulate all architectures on `p` nodes of `machine` for batches of p to 65536 p rows."""
    rows = []
    for batch in (p * 4**n for n in range(9)):
        rows += [best_ring(machine, p, batch, 4)[0], *rivals(machine, p, batch)]
    return [replace(row, scaling=f"width {machine.width}") for row in rows]


def crossovers(rows: Sequence[Row], name: str) -> list[float]:
    """Batches at which a rival and the ring take the same time, interpolated in logarithms between those simulated.

    Parameters
    ----------
    rows : sequence of Row
        Rows of one sweep over batches, ascending.
    name : str
        Label of the rival.
    """
    pairs = [(a, b) for a in rows for b in rows if (a.name, b.name, a.batch) == ("ring", name, b.batch)]
    found = []
    gaps = [(np.log(a.batch), float(np.log(b.step_seconds / a.step_seconds))) for a, b in pairs]
    for (x, gap), (x2, gap2) in zip(gaps, gaps[1:], strict=False):
        if gap * gap2 < 0:
            found.append(float(np.exp(x + (x2 - x) * gap / (gap - gap2))))
    return found


def show(page: Page, title: str, rows: Sequence[dict[str, Any]], by: str) -> None:
    """Print step time and idle share of every way.

    Parameters
    ----------
    page : Page
        Receives the table.
    title : str
        Title of the table.
    rows : sequence of dict
        Simulated steps.
    by : str
        Key of a row by which a line is printed: "nodes" or "batch".
    """
    table = make_table(title, (by, *NAMES), caption="seconds of a step; idle share; * the fastest", wrap=False)
    for key in dict.fromkeys(row[by] for row in rows):
        line = {row["name"]: row for row in rows if row[by] == key}
        least = min(row["step_seconds"] for row in line.values())
        cells = []
        for name in NAMES:
            row = line[name]
            cells.append(f"{'*' * (row['step_seconds'] == least)}{row['step_seconds']:,.4g} {row['idle']:6.1%}")
        table.add_row(f"{key:,}", *cells)
    page.print(table)


@experiment
class Architectures(Experiment):
    """Seconds of a step and idle share of every way, by nodes and by batch."""

    name, order, width = "architectures", 40, 130
    about = "the same far beyond one machine, up to 4096 nodes (simulated)"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Network, nodes and links."""
        parser.add_argument("--width", type=int, default=1024)
        parser.add_argument("--layers", type=int, default=4096, help="a multiple of every number of nodes")
        parser.add_argument("--gflops", type=float, default=100.0, help="of a node")
        parser.add_argument("--bandwidth", default="10Gbit/s", help="of a node's link, each way")
        parser.add_argument("--latency", default="20us")
        parser.add_argument("--message", default="2us", help="that each message takes a link beside its bytes")
        parser.add_argument("--action", default="4us", help="that a rank of the ring spends beside each action")
        parser.add_argument("--jitter", type=float, default=0.0)
        parser.add_argument("--rows", type=int, default=32, help="of the batch for each node, where it grows")
        parser.add_argument("--batch", type=int, default=8192, help="where it stays")
        parser.add_argument(
            "--nodes", type=lambda text: [int(p) for p in text.split(",")], default=[8, 16, 64, 256, 1024, 4096]
        )
        parser.add_argument("--at", type=int, default=64, help="nodes, and layers, of the sweep over batches")
        parser.add_argument("--narrow", type=int, default=64, help="width of the second network of that sweep")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Simulate; --quick: 64 nodes at most."""
        machine, nodes, p = _machine(options), options.nodes, options.at
        if options.quick:
            nodes, p = [p for p in nodes if p <= 64], min(p, 16)
        began = time.perf_counter()
        nodes = [each for each in nodes if each <= machine.layers]
        batches: dict[str, Callable[[int], int]] = {
            "weak": lambda n: options.rows * n,
            "strong": lambda n: options.batch,
        }
        rows = scale(machine, nodes, batches)
        shallow = [replace(machine, width=width, layers=p) for width in (options.narrow, machine.width)]
        swept = {each.width: sweep(each, p) for each in shallow}
        crossing: list[dict[str, Any]] = []
        for each in shallow:
            for rival in NAMES[1:]:
                batches_of = crossovers(swept[each.width], rival)
                crossing.append({"width": each.width, "rival": rival, "batches": batches_of})
            traffic = (p - 1) * each.layers * each.width  # 2 W M = 8 B d
            crossing.append({"width": each.width, "traffic": traffic})
        table.clear()
        table |= {
            "provenance": provenance(
                seconds=round(time.perf_counter() - began, 1),
                links="simulated",
                pace="simulated",
                setting=asdict(machine),
                rows=options.rows,
                batch=options.batch,
            ),
            "rows": [asdict(row) for row in rows],
            "sweep": [asdict(row) for each in swept.values() for row in each],
            "crossovers": crossing,
        }

    def show(self, table: Table, page: Page) -> None:
        """By nodes, by batch, and where other ways take as long as the ring."""
        facts = table["provenance"]
        setting = facts["setting"]
        name = (
            f"{setting['layers']} x {setting['width']}, {setting['gflops']:g} GFLOP/s a "
            f"node, "
            f"{setting['bandwidth'] / 125e6:g} Gbit/s"
        )
        for scaling, text in (("weak", f"{facts['rows']} rows a node"), ("strong", f"{facts['batch']} rows in all")):
            rows = [row for row in table["rows"] if row["scaling"] == scaling]
            show(page, f"{name}; simulated; {text}", rows, "nodes")
        for width in dict.fromkeys(row["scaling"] for row in table["sweep"]):
            rows = [row for row in table["sweep"] if row["scaling"] == width]
            nodes, number = rows[0]["nodes"], int(width.split()[1])
            show(page, f"{nodes} nodes, {nodes} x {number}; simulated; by batch", rows, "batch")
            for each in table["crossovers"]:
                if each["width"] == number and "traffic" in each:
                    print(f"{width}: one server moves as many bytes as a cut of the ring at {each['traffic']:,}")
                elif each["width"] == number:
                    text = " and ".join(f"{batch:,.0f}" for batch in each["batches"]) or "none of these"
                    print(f"{width}: ring and {each['rival']} take the same time at a batch of {text}")

    def draw(self, table: Table, path: Path) -> None:
        """Step time and idle share against nodes, weak and strong; step time against the batch, narrow and wide."""
        facts, rows, sweep = table["provenance"], table["rows"], table["sweep"]
        setting = facts["setting"]
        with figure(path, 2, 3, figsize=(15, 8)) as (made, axes):
            titles = {
                "weak": f"weak scaling: {facts['rows']} rows a node",
                "strong": f"strong scaling: batch {facts['batch']}",
            }
            for column, (scaling, title) in enumerate(titles.items()):
                chosen = [row for row in rows if row["scaling"] == scaling]
                for ax, key in ((axes[0, column], "step_seconds"), (axes[1, column], "idle")):
                    _lines(ax, chosen, "nodes", key)
                    ax.set_xlabel("nodes")
                    ax.set_xticks(
                        sorted({row["nodes"] for row in chosen}), [f"{p}" for p in sorted({r["nodes"] for r in chosen})]
                    )
                    ax.minorticks_off()
                axes[0, column].set_title(title, loc="left", fontsize=10)
                axes[0, column].set_ylabel("seconds of a step")
                axes[1, column].set_ylabel("idle share of ranks or workers")
                axes[1, column].set_ylim(0.001, 1.3)
            for ax, scaling in zip(axes[:, 2], dict.fromkeys(row["scaling"] for row in sweep), strict=False):
                chosen = [row for row in sweep if row["scaling"] == scaling]
                least = {row["batch"]: row["step_seconds"] for row in chosen if row["name"] == "ring"}
                _lines(
                    ax, [row | {"times": row["step_seconds"] / least[row["batch"]]} for row in chosen], "batch", "times"
                )
                nodes = chosen[0]["nodes"]
                ax.set_title(
                    f"{nodes} nodes, {nodes} layers of {scaling}: below 1 the ring loses", loc="left", fontsize=10
                )
                ax.set_xlabel("rows of a batch")
                ax.set_ylabel("seconds of a step, times the ring's")
                width = int(scaling.split()[1])
                for each in table["crossovers"]:
                    if each["width"] == width and "traffic" in each:
                        ax.axvline(
                            each["traffic"],
                            color=colour_of(NAMES[1]),
                            lw=1,
                            ls=":",
                            label="one server moves as\nmany bytes as a cut",
                        )
                ax.legend(*([each[-1]] for each in ax.get_legend_handles_labels()), fontsize=8, frameon=False)
            handles, labels = axes[0, 0].get_legend_handles_labels()
            made.legend(handles, labels, ncols=5, loc="outside lower center", frameon=False)
            made.suptitle(
                f"Simulated: {setting['layers']} dense layers of {setting['width']}, {setting['gflops']:g} GFLOP/s a "
                f"node, "
                f"links of {setting['bandwidth'] / 125e6:g} Gbit/s and {setting['latency'] * 1e6:g} us"
            )

    def claims(self, table: Table) -> list[Claim]:
        """Seconds of a step on 1024 nodes with wide layers."""
        far = [row for row in table["rows"] if row["scaling"] == "weak" and row["nodes"] == 1024]
        if not far:
            return []
        step = {row["name"]: row["step_seconds"] for row in far}
        others = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in step.items() if name != "ring")
        text = f"1024 nodes, wide layers: a step of the ring takes {step['ring']:.1f} s"
        return [Claim(text, others, "simulated", self.name)]


def _lines(ax: Any, rows: list[dict[str, Any]], x: str, y: str) -> None:
    for name in NAMES:
        points = [(row[x], max(row[y], 1e-4)) for row in rows if row["name"] == name]
        ax.plot(
            *zip(*points, strict=True),
            "o-",
            ms=3.5,
            lw=2 if name == "ring" else 1.3,
            color=colour_of(name),
            label=name,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(alpha=0.25)


def _machine(options: argparse.Namespace) -> Machine:
    """The machine and the network that the command line describes."""
    for p in options.nodes:
        if options.layers % p:
            options.error(f"--layers {options.layers}: not a multiple of {p} nodes")
    return Machine(
        options.width,
        options.layers,
        options.gflops,
        parse_rate(options.bandwidth, "bandwidth"),
        parse_seconds(options.latency, "latency"),
        parse_seconds(options.message, "message"),
        parse_seconds(options.action, "action"),
        options.jitter,
    )

"""The ring beside parameter servers and all-reduce, far beyond one machine: simulated steps of 8 to 4096 nodes.

Usage: python -m jobs.experiments.architectures [--width 1024] [--gflops 100] [--bandwidth 10Gbit/s] ...

Every architecture gets the same p nodes, the same dense network and the same batch of each step; the batch grows with
the nodes (weak scaling) or stays (strong). Servers take nodes of their own away from the workers, but for colocated
ones. What is tuned is tuned for everybody: the ring tries several numbers of micro-batches, the others several sizes
of messages. A second part looks for the batch from which the ring is no longer the fastest. Prints tables, writes
results/architectures.h5 and jobs/figures/architectures.png; about three minutes on one core.

What a node computes takes its operations at `--gflops`, whatever the number of rows. Each node has one full-duplex
link, which the ring's two directions share. Whether a worker's memory holds the model is not asked. Nothing varies
unless `--jitter` says so.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance
from jobs.experiments.architectures_figure import draw
from jobs.experiments.store import Page, publish
from ringtmp.config.units import parse_rate, parse_seconds
from ringtmp.emulate.nodes import UPDATE_FLOPS
from ringtmp.simulate.data_parallel import Exchange, cut_bytes, exchange_bytes, simulate_data_parallel
from ringtmp.simulate.pipeline import Scene, Timed, simulate

ITEM = 4  # bytes of a number
NAMES = ("ring", "one server", "servers", "colocated", "all-reduce")
TRIED, MOST_ACTIONS = 1_000_000, 101_000_000  # of a step: for every number of micro-batches tried, and for the only one
MOST_MESSAGES = 1_100_000  # of a step with servers, one way; four times as many were never faster by more than 2 %
PIECES = (4096, 1024, 256, 64, 16, 4, 1)  # that the model is sent in


@dataclass(frozen=True)
class Setting:
    """A dense network and the machine that it is trained on.

    Attributes
    ----------
    width, layers : int
        Of the network: `layers` products with a `width` x `width` matrix.
    gflops : float
        Of a node.
    bandwidth : float
        Bytes a second of a node's link, each way.
    latency, message, action : float
        Seconds a message is under way, seconds that each takes a link beside its bytes, and seconds that a rank of
        the ring spends beside each action.
    jitter : float
    """

    width: int = 1024
    layers: int = 4096
    gflops: float = 100.0
    bandwidth: float = 1.25e9
    latency: float = 20e-6
    message: float = 2e-6
    action: float = 4e-6
    jitter: float = 0.0

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer's parameters."""
        return ITEM * self.width**2

    def seconds(self, rows: float) -> list[float]:
        """F, I and W of so many rows, and U, of one layer."""
        product = 2 * rows * self.width**2 / self.gflops / 1e9
        return [product, product, product, UPDATE_FLOPS * self.width**2 / self.gflops / 1e9]

    def ideal(self, nodes: int, batch: int) -> float:
        """Seconds of a step if `nodes` shared its F, I and W evenly and nothing else took time."""
        return self.layers * sum(self.seconds(batch / nodes)[:3])


@dataclass(frozen=True)
class Row:
    """A step of one architecture; `tuned` is its micro-batches, or the pieces its model is sent in."""

    scaling: str
    nodes: int
    batch: int
    name: str
    step_seconds: float
    idle: float
    link_bytes: float
    tuned: int


def chained(outcome: Timed) -> tuple[float, float]:
    """Seconds of a step after the first one, and the share of it in which workers or ranks do not compute."""
    step = float(outcome.ends[-1] - outcome.ends[0]) / (len(outcome.ends) - 1)
    return step, max(0.0, 1.0 - float(outcome.busy.mean()) / outcome.steps / step)


def ring(setting: Setting, p: int, batch: int, micro_batches: int) -> tuple[float, float, float]:
    """Step, idle share and bytes of a node's link, for layers dealt evenly and the local rule."""
    layers, rows = setting.layers // p, batch / micro_batches
    # A node sends activations to the right and gradients to the left over one link: each takes half of it. Of two
    # nodes each sends one way alone.
    sent = min(2, p - 1) * (setting.message + ITEM * rows * setting.width / setting.bandwidth)
    scene = Scene(
        p,
        1,
        np.ones(micro_batches),
        np.tile(layers * np.array(setting.seconds(rows)), (p, 1)),
        ((1 / layers,) * layers,) * p,
        overhead=setting.action,
        latency=setting.latency,
        transfer=np.full((p, 2), sent),
        jitter=setting.jitter,
    )
    steps = max(2, min(10, 20_000_000 // (3 * p * micro_batches)))
    return *chained(simulate(scene, steps=steps)), 2 * cut_bytes(batch, setting.width, ITEM)


def best_ring(setting: Setting, p: int, batch: int, ratio: int) -> tuple[Row, int]:
    """The fastest of some multiples of p micro-batches; where that takes too long, `ratio` x p or what is left.

    Returns the multiple as well.
    """
    able = [n for n in (1, 2, 4, 8) if 3 * p * p * n <= MOST_ACTIONS and n <= ratio]
    ratios = [n for n in (1, 2, 4, 8) if 3 * p * p * n <= TRIED] or able[-1:]
    tried = {}
    for n in ratios:
        micro_batches = min(n * p, batch)
        if micro_batches not in tried:
            tried[micro_batches] = (*ring(setting, p, batch, micro_batches), n)
    micro_batches, (step, idle, sent, n) = min(tried.items(), key=lambda each: each[1][0])
    return Row("", p, batch, "ring", step, idle, sent, micro_batches), n


def exchanges(setting: Setting, p: int) -> dict[str, tuple[int, Exchange]]:
    """How many workers each rival has on p nodes, and what they exchange."""
    links = Exchange(bandwidth=setting.bandwidth, latency=setting.latency, overhead=setting.message)
    many = max(1, p // 8)
    return {
        "one server": (p - 1, links),
        "servers": (p - many, replace(links, servers=many)),
        "colocated": (p, replace(links, kind="colocate")),
        "all-reduce": (p, replace(links, kind="allreduce")),
    }


def data_parallel(setting: Setting, workers: int, batch: int, exchange: Exchange, steps: int) -> Timed:
    """Workers that share a batch evenly, each with the whole network, and the exchange between them."""
    seconds, sizes = np.tile(setting.seconds(batch / workers), (setting.layers, 1)), [setting.layer_bytes]
    return simulate_data_parallel(
        workers, seconds, sizes * setting.layers, exchange, steps=steps, jitter=setting.jitter
    )


def rivals(setting: Setting, p: int, batch: int) -> list[Row]:
    """A row for each rival, with the pieces that suit it best, of those that we can afford."""
    rows, total = [], setting.layer_bytes * setting.layers
    for name, (workers, exchange) in exchanges(setting, p).items():
        tried: list[Row] = []
        for count in PIECES:
            served, messages = exchange.kind == "server", workers * count
            # What all-reduce and colocated servers send is cut once more, into as many as there are workers.
            if messages > MOST_MESSAGES // (1 if served else 4) or not (served or count <= setting.layers):
                continue
            piece = total / count
            tuned = replace(exchange, chunk=piece, gather=piece)
            steps = 2 if 4 * messages > MOST_MESSAGES else 3
            outcome = data_parallel(setting, workers, batch, tuned, steps)
            tried.append(Row("", p, batch, name, *chained(outcome), exchange_bytes(tuned, workers, total), count))
        rows.append(min(tried, key=lambda row: row.step_seconds))
    return rows


def scale(setting: Setting, nodes: Sequence[int], batches: dict[str, Callable[[int], int]]) -> list[Row]:
    """All architectures on all numbers of nodes."""
    rows = []
    for scaling, batch_of in batches.items():
        ratio = 2
        for p in nodes:
            first, ratio = best_ring(setting, p, batch_of(p), ratio)
            rows += [replace(row, scaling=scaling) for row in (first, *rivals(setting, p, batch_of(p)))]
    return rows


def sweep(setting: Setting, p: int) -> list[Row]:
    """All architectures on p nodes for batches of p to 65536 p rows."""
    rows = []
    for batch in (p * 4**n for n in range(9)):
        rows += [best_ring(setting, p, batch, 4)[0], *rivals(setting, p, batch)]
    return [replace(row, scaling=f"width {setting.width}") for row in rows]


def crossovers(rows: Sequence[Row], name: str) -> list[float]:
    """Batches at which a rival and the ring take the same time, between those simulated (straight in logarithms)."""
    pairs = [(a, b) for a in rows for b in rows if (a.name, b.name, a.batch) == ("ring", name, b.batch)]
    found = []
    gaps = [(np.log(a.batch), float(np.log(b.step_seconds / a.step_seconds))) for a, b in pairs]
    for (x, gap), (x2, gap2) in zip(gaps, gaps[1:], strict=False):
        if gap * gap2 < 0:
            found.append(float(np.exp(x + (x2 - x) * gap / (gap - gap2))))
    return found


def show(console: Console, title: str, rows: Sequence[Row], by_batch: bool = False) -> None:
    """A line for each number of nodes or batch: step time and idle share of every architecture."""
    table = Table(title=title, title_justify="left", caption="seconds of a step; idle share; * the fastest")
    for column in ("batch" if by_batch else "nodes", *NAMES):
        table.add_column(column, justify="right", no_wrap=True)
    for key in dict.fromkeys(row.batch if by_batch else row.nodes for row in rows):
        line = {row.name: row for row in rows if key == (row.batch if by_batch else row.nodes)}
        least = min(row.step_seconds for row in line.values())
        cells = []
        for name in NAMES:
            row = line[name]
            cells.append(f"{'*' * (row.step_seconds == least)}{row.step_seconds:,.4g} {row.idle:6.1%}")
        table.add_row(f"{key:,}", *cells)
    console.print(table)


def main() -> None:
    """Simulate, print, write, draw."""
    setting, options = read_flags()
    began = time.perf_counter()
    nodes = [p for p in options.nodes if p <= setting.layers]
    batches: dict[str, Callable[[int], int]] = {"weak": lambda p: options.rows * p, "strong": lambda p: options.batch}
    rows = scale(setting, nodes, batches)
    p = options.at
    shallow = [replace(setting, width=width, layers=p) for width in (options.narrow, setting.width)]
    swept = {each.width: sweep(each, p) for each in shallow}
    took = time.perf_counter() - began

    console = Page(130)
    name = (
        f"{setting.layers} x {setting.width}, {setting.gflops:g} GFLOP/s a node, {setting.bandwidth / 125e6:g} Gbit/s"
    )
    for scaling, text in (("weak", f"{options.rows} rows a node"), ("strong", f"{options.batch} rows in all")):
        show(console, f"{name}; simulated; {text}", [row for row in rows if row.scaling == scaling])
    crossing: list[dict[str, Any]] = []
    for each in shallow:
        show(console, f"{p} nodes, {each.layers} x {each.width}; simulated; by batch", swept[each.width], True)
        for rival in NAMES[1:]:
            found = crossovers(swept[each.width], rival)
            crossing.append({"width": each.width, "rival": rival, "batches": found})
            text = " and ".join(f"{batch:,.0f}" for batch in found) or "none of these"
            console.print(f"width {each.width}: ring and {rival} take the same time at a batch of {text}")
        traffic = (p - 1) * each.layers * each.width  # 2 W M = 8 B d
        crossing.append({"width": each.width, "traffic": traffic})
        console.print(f"width {each.width}: one server moves as many bytes as a cut of the ring at {traffic:,}")
    facts = provenance(
        seconds=round(took, 1),
        links="simulated",
        pace="simulated",
        setting=asdict(setting),
        rows=options.rows,
        batch=options.batch,
    )
    table = {
        "provenance": facts,
        "rows": [asdict(row) for row in rows],
        "sweep": [asdict(row) for each in swept.values() for row in each],
        "crossovers": crossing,
    }
    if options.out or not options.quick:
        publish("architectures", options.out, table, console, draw)
    console.print(f"{took:.0f} s")


def read_flags() -> tuple[Setting, argparse.Namespace]:
    """The setting, and what is asked of it."""
    parser = argparse.ArgumentParser(description="Simulated steps of the ring, parameter servers and all-reduce.")
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
    parser.add_argument("--quick", action="store_true", help="64 nodes at most; written to --out alone")
    parser.add_argument("--out", help="folder for architectures.h5 and .png, instead of those of the project")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.at = [p for p in options.nodes if p <= 64], min(options.at, 16)
    for p in options.nodes:
        if options.layers % p:
            parser.error(f"--layers {options.layers}: not a multiple of {p} nodes")
    setting = Setting(
        options.width,
        options.layers,
        options.gflops,
        parse_rate(options.bandwidth, "bandwidth"),
        parse_seconds(options.latency, "latency"),
        parse_seconds(options.message, "message"),
        parse_seconds(options.action, "action"),
        options.jitter,
    )
    return setting, options


if __name__ == "__main__":
    main()

"""Where the parameter server and the ring cost the same: the batch and the width, predicted and measured.

Usage: ringtmp experiment crossover [--quick] [--hosts 4] [--width 96] [--batch 1152] [--gflops 10] ...

In a step W M bytes go each way over the link of a server with W workers and M bytes of parameters, which grows with the
width squared and not with the batch; and 4 B d each way over each cut of a ring, which grows with both. So the server
is cheaper with large batches and narrow layers. Both frameworks train the same network with the same global batch and
optimizer on the same hosts with a link each (`ringtmp.jobs.lib.hosts`), one rank a host, as emulated nodes of
`--gflops`: a ring of all hosts in ready mode, and one server (bsp) with workers on all others. Servers on every
worker's host (colocated) and an all-reduce run beside them.

Predicted: `ringtmp.jobs.lib.predict`, from the nodes' speed, the measured latency and bandwidth of a link, and the
micro-batches and messages of the run (layers of less than a quarter of a message travel together, which `ps` does too).
The predicted crossover is where these curves cross. Measured: real runs at three points on each side of it, `--rounds`
times, in turns; the first steps of each run are left out. The measured crossover is where the medians cross, on a
straight line in logarithms between two points.

Micro-batches and chunks are the same at all points: 4 micro-batches a rank, and chunks that the clock finds good for
the server (with those of 1 MiB, the default, most of these networks are one message: pushes and answers take turns). A
host inside the ring has one link for two cuts: bytes over the busiest link are the same at half the batch at which a
server moves as many as one cut (`same_bytes`).

What the clock leaves out: see `CAVEATS`. With `--rate 20mbit --gflops 2 --seconds 2` all takes five times as long, and
the processor hardly matters: the remaining error is that of the links. Prints tables, writes
results/crossover.h5 and jobs/figures/crossover.png; where hosts are not permitted, predictions alone.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.experiments import crossover_figure
from ringtmp.jobs.lib.case import Case
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.hosts import Hosts, why_not
from ringtmp.jobs.lib.launch import launch, measure_link, rounds, steps_for
from ringtmp.jobs.lib.page import Page
from ringtmp.jobs.lib.predict import SHARED, Link
from ringtmp.jobs.lib.predict import predict as predict_step
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.ways import chosen

SWEEPS = ("batch", "width")
WAYS = chosen("ring", "bsp", "colocated", "allreduce")
RING, SERVER = list(WAYS)[:2]
FACTORS = (1 / 3, 1 / 2, 1 / math.sqrt(2), math.sqrt(2), 2, 3)  # times the predicted crossover: where it is measured
SKIP, LEAST, MOST = 3, 5, 30  # steps of a run: left out at its beginning, and timed after them
PAYLOAD, LATENCY = 0.94, 150e-6  # of a link that is not measured: share of its rate, and seconds
CAVEATS = (
    "ring: a host between two neighbours has one link for both. The clock gives each of them half of it all the time; "
    "on a real one whoever sends has all of it while the other is silent: steps are shorter than predicted",
    "server: under the clock workers keep step and share its link evenly. Real ones drift apart, each sends its chunks "
    "in another order, and an answer waits for the last of them: steps are longer than predicted",
    "all: the clock has no processor, and nothing for Python, MPI, TCP and ranks that wake late on shared cores: steps "
    "are longer, short ones and those with many small messages most",
    "all: after a pause a link lets 32 KB pass at once, its token bucket; the clock's links have none",
    "all-reduce: the clock lets one bucket after the other go round, ps several at once",
)


@dataclass(frozen=True)
class Setting:
    """Network, nodes and links; `width` is that of the sweep over batches, `batch` that of the sweep over widths.

    Attributes
    ----------
    hosts : int
        Number of hosts, with one rank on each.
    layers, width, batch, micro_batches : int
        Layers of the network and their width; samples and micro-batches of a step.
    message_size : str
        Most bytes of a message of servers and workers, and of a bucket of the all-reduce.
    gflops : float
        GFLOP/s of each emulated node.
    rate : str
        Rate of each link, in each direction, to which the kernel limits it.
    bandwidth : float
        Bytes a second that messages get while both directions are in use.
    latency : float
        Seconds that a small message is under way.
    """

    hosts: int
    layers: int
    width: int
    batch: int
    micro_batches: int
    message_size: str
    gflops: float
    rate: str
    bandwidth: float = 0.0
    latency: float = LATENCY

    def at(self, sweep: str, value: float) -> tuple[int, int]:
        """Batch and width at the point `value` of `sweep`, rounded so that all workers and micro-batches are equal."""
        if sweep == "width":
            return self.batch, max(2, round(value))
        grain = math.lcm(self.micro_batches, self.hosts, self.hosts - 1)
        return max(1, round(value / grain)) * grain, self.width

    def case(self, batch: int, width: int) -> Case:
        """The training at a point: `batch` samples, and layers of width `width`, the first and the last one too."""
        samples = batch + batch // 16 + 64
        speed = f"{self.gflops:g}"
        return Case("crossover", self.hosts, width, self.layers, batch, samples, speed, message_size=self.message_size)

    def run(self, way: str, batch: int, width: int, steps: int) -> dict[str, Any]:
        """A run of the way labelled `way`, of `steps` steps, at the point (`batch`, `width`)."""
        return self.case(batch, width).run(WAYS[way], steps, SKIP, micro_batches=self.micro_batches)


# ---- predicted ------------------------------------------------------------------------------------------------------


def predict(setting: Setting, way: str, batch: int, width: int, shared: int = SHARED) -> float:
    """Simulated seconds of a step of the way labelled `way` at the point (`batch`, `width`) of `setting`.

    `shared` is explained by `ringtmp.jobs.lib.predict.predict`.
    """
    link = Link(setting.bandwidth, setting.latency)
    return predict_step(setting.case(batch, width), WAYS[way], link, setting.micro_batches, shared)


def curves(setting: Setting, sweep: str) -> list[dict[str, Any]]:
    """Simulated seconds of every way of `setting`, from a fifth of the middle of `sweep` to five times as much."""
    middle, rows = getattr(setting, sweep), []
    for batch, width in dict.fromkeys(setting.at(sweep, middle * 5 ** (n / 20)) for n in range(-20, 21)):
        each = {way: predict(setting, way, batch, width) for way in WAYS}
        alone = predict(setting, "ring", batch, width, 1)
        rows.append({"sweep": sweep, "batch": batch, "width": width, **each, "ring, links of its own": alone})
    return rows


def equal(values: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Value at which a ratio is 1, interpolated linearly in logarithms; of several such values the middle one.

    `ratios` holds the ratio at each of `values`, which ascend. None: the ratio does not cross 1.
    """
    x, y, found = np.log(np.asarray(values, float)), np.log(np.asarray(ratios, float)), []
    for n in range(len(x) - 1):
        if (y[n] < 0) != (y[n + 1] < 0):
            found.append(float(np.exp(x[n] + (x[n + 1] - x[n]) * y[n] / (y[n] - y[n + 1]))))
    return found[len(found) // 2] if found else None


def same_bytes(setting: Setting, sweep: str) -> dict[str, float]:
    """Points of `sweep` at which a server and the ring move the same bytes.

    Over the link of the server W M each way; over a cut of the ring 4 B d each way, and over the link of a host between
    two cuts twice that. M is 4 L (d^2 + d): 2 W M = 8 B d at B = W L (d + 1). `setting` gives W, L, and d or B.
    """
    layers = (setting.hosts - 1) * setting.layers
    if sweep == "batch":
        cut = float(layers * (setting.width + 1))
        return {"cut": cut, "link": cut / SHARED}
    return {"cut": setting.batch / layers - 1, "link": SHARED * setting.batch / layers - 1}


# ---- measured -------------------------------------------------------------------------------------------------------


def measured(run: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step of the run `run` with the result `result`, and how the workers spent their time."""
    workers = [n for n, role in enumerate(result["roles"]) if role != "server"]
    parts = [result["parts"][n] for n in workers]
    return {
        **{key: run[key] for key in ("way", "batch", "width")},
        "seconds": run["batch"] / result["samples_per_s"],
        "late": max(result["late"][n] for n in workers),
        "waiting": sum(part["wait"] for part in parts) / sum(sum(part.values()) for part in parts),
    }


def runs_at(
    setting: Setting, points: Sequence[tuple[int, int]], ways: Sequence[str], seconds: float
) -> tuple[dict[Any, dict[str, Any]], float]:
    """Runs of all `ways` (labels) at all `points` (batch, width) of `setting`; most seconds that all of them may last.

    The runs are keyed by (way, batch, width). About `seconds` of each are timed.
    """
    runs, expected = {}, 60.0
    for batch, width in points:
        for way in ways:
            step = predict(setting, way, batch, width)
            steps = steps_for(step, seconds, SKIP, LEAST, MOST)
            expected += 5 + 4 * steps * step  # on a machine that others use as well
            place = {"way": way, "batch": batch, "width": width}
            runs[way, batch, width] = place | setting.run(way, batch, width, steps)
    return runs, expected


# ---- what is made of them -------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of `values`."""
    return {"measured": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}


def tabulate(
    setting: Setting,
    sweep: str,
    points: Sequence[tuple[int, int]],
    rounds: Sequence[list[dict[str, Any]]],
    ways: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each of `points` (batch, width): predicted and measured seconds of each of `ways`, and server / ring.

    `sweep` is "batch" or "width"; `rounds` holds the measured runs of each round.
    """
    rows = []
    for batch, width in points:
        each = {
            way: [
                run["seconds"]
                for some in rounds
                for run in some
                if (run["way"], run["batch"], run["width"]) == (way, batch, width)
            ]
            for way in ways
        }
        row: dict[str, Any] = {"sweep": sweep, "batch": batch, "width": width}
        for way, values in each.items():
            row[way] = {"predicted": predict(setting, way, batch, width), **(spread(values) if values else {})}
        ratio = {"predicted": row[SERVER]["predicted"] / row[RING]["predicted"]}
        if rounds:
            ratio |= spread([a / b for a, b in zip(each[SERVER], each[RING], strict=True)])
            ratio["measured"] = row[SERVER]["measured"] / row[RING]["measured"]  # of the medians
        rows.append(row | {"ratio": ratio})
    return rows


def crossing(
    sweep: str,
    rival: str,
    curve: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    rounds: Sequence[list[dict[str, Any]]],
) -> dict[str, Any]:
    """Point of `sweep` at which `rival` and the ring take the same time: predicted, measured, and in each round.

    `curve` comes from `curves`, `rows` from `tabulate`; `rounds` holds the measured runs of each round.
    """
    found: dict[str, Any] = {"sweep": sweep, "rival": rival, "measured": None, "rounds": []}
    found["predicted"] = equal([row[sweep] for row in curve], [row[rival] / row[RING] for row in curve])
    measured = [row for row in rows if "measured" in row.get(rival, {})]
    if measured:
        values = [row[sweep] for row in measured]
        found["measured"] = equal(values, [row[rival]["measured"] / row[RING]["measured"] for row in measured])
        for some in rounds:
            each = {(run["way"], run["batch"], run["width"]): run["seconds"] for run in some}
            keys = [(row["batch"], row["width"]) for row in measured]
            found["rounds"].append(equal(values, [each[rival, *key] / each[RING, *key] for key in keys]))
    return found


def predicted(told: Setting, factors: Sequence[float]) -> tuple[list[dict[str, Any]], dict[str, list[tuple[int, int]]]]:
    """The predicted curves of the setting `told`, and the points to measure of each sweep.

    `factors` are the points relative to the predicted crossover. Raises `SystemExit` if the curves do not cross.
    """
    curve, points = [], {}
    for sweep in SWEEPS:
        some = curves(told, sweep)
        curve += some
        middle = equal([row[sweep] for row in some], [row[SERVER] / row[RING] for row in some])
        if middle is None:
            raise SystemExit(f"the predicted curves do not cross within a fifth and five times that {sweep}")
        points[sweep] = list(dict.fromkeys(told.at(sweep, middle * factor) for factor in factors))
    return curve, points


def _bits(rate: str) -> float:
    """Bits a second of a rate such as 100mbit."""
    return float(rate[:-4]) * {"k": 1e3, "m": 1e6, "g": 1e9}[rate[-4]]


@experiment
class Crossover(Experiment):
    """Batch and width at which the server and the ring take the same time, predicted and measured."""

    name, order, width = "crossover", 90, 140
    about = "where the server wins, and why: predicted and measured over links"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Network, nodes, links, and how much is measured."""
        parser.add_argument("--hosts", type=int, default=4, help="ranks, one on each [4]")
        parser.add_argument("--layers", type=int, default=8)
        parser.add_argument(
            "--width", type=int, default=96, help="where the batch varies; middle of the sweep over widths"
        )
        parser.add_argument(
            "--batch", type=int, default=1152, help="where the width varies; middle of that over batches"
        )
        parser.add_argument("--micro-batches", type=int, default=16, help="of the ring")
        parser.add_argument("--message-size", default="32KiB", help="of servers, and buckets of the all-reduce")
        parser.add_argument("--gflops", type=float, default=10.0, help="of an emulated node")
        parser.add_argument("--rate", default="100mbit", help="of every link, each way")
        parser.add_argument("--rounds", type=int, help="runs of each way at each point [3; quick: 1]")
        parser.add_argument("--seconds", type=float, help="of a run that are timed, about [0.8; quick: 0.4]")

    def setting(self, options: argparse.Namespace) -> Setting:
        """The setting that the command line `options` describes."""
        options.rounds = options.rounds or (1 if options.quick else 3)
        options.seconds = options.seconds or (0.4 if options.quick else 0.8)
        if options.hosts < 3 or options.layers < options.hosts or options.batch < 1:
            options.error("expected 3 hosts or more, and a layer for each")
        return Setting(
            options.hosts,
            options.layers,
            options.width,
            options.batch,
            options.micro_batches,
            options.message_size,
            options.gflops,
            options.rate,
        )

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Predict, then measure on both sides of the crossover; --quick: server and ring at two points on each side."""
        setting = self.setting(options)
        began, found = time.perf_counter(), []
        factors, ways = (FACTORS[1:-1], list(WAYS)[:2]) if options.quick else (FACTORS, list(WAYS))
        reason = why_not()
        if reason:
            print(f"not measured, predicted alone: {reason}", flush=True)
            setting = replace(setting, bandwidth=_bits(setting.rate) / 8 * PAYLOAD)
            curve, points = predicted(setting, factors)
        else:
            with Hosts(setting.hosts, setting.rate) as hosts:
                link = measure_link(hosts)
                setting = replace(setting, bandwidth=link["bandwidth"], latency=link["latency"])
                curve, points = predicted(setting, factors)
                print(f"a link: {setting.bandwidth / 1e6:.2f} MB/s, {setting.latency * 1e6:.0f} us", flush=True)
                every = list(dict.fromkeys(point for sweep in SWEEPS for point in points[sweep]))
                runs, longest = runs_at(setting, every, ways, options.seconds)
                for number, results in rounds(
                    runs, options.rounds, lambda some: launch(setting.hosts, some, hosts, longest)
                ):
                    found.append([measured(runs[key], result) for key, result in results.items()])
                    took = time.perf_counter() - began
                    print(f"round {number + 1} of {options.rounds} done after {took:.0f} s", flush=True)
        table.clear()
        table |= self._table(setting, curve, points, found, ways)
        table["provenance"] = provenance(
            seconds=round(time.perf_counter() - began, 1),
            rounds=len(found),
            not_measured=reason,
            links=setting.rate,
            pace=f"{setting.gflops:g}",
        )

    def _table(self, setting: Setting, curve: Any, points: Any, found: Any, ways: Sequence[str]) -> Table:
        rows, crossings = [], []
        for sweep in SWEEPS:
            mine = [row for row in curve if row["sweep"] == sweep]
            some = tabulate(setting, sweep, points[sweep], found, ways)
            rows += some
            crossings += [crossing(sweep, rival, mine, some, found) for rival in list(WAYS)[1:]]
        return {
            "setting": asdict(setting),
            "caveats": list(CAVEATS),
            "crossings": crossings,
            "same_bytes": {sweep: same_bytes(setting, sweep) for sweep in SWEEPS},
            "rows": rows,
            "curves": curve,
            "runs": [{"round": n, **run} for n, some in enumerate(found) for run in some],
        }

    def show(self, table: Table, page: Page) -> None:
        """Every point, predicted and measured, and where the curves cross."""
        crossover_figure.show(table, page)

    def draw(self, table: Table, path: Path) -> None:
        """Seconds of a step against batch and width."""
        crossover_figure.draw(table, path)

    def claims(self, table: Table) -> list[Claim]:
        """From which batch, and up to which width, the server is faster."""
        return [
            Claim(
                "**where the server wins**, links of 100 Mbit/s, 4 hosts",
                f"{'from batches of' if row['sweep'] == 'batch' else 'up to layers of'} {row['measured']:,.0f} "
                f"(simulated {row['predicted']:,.0f})",
                "measured",
                self.name,
            )
            for row in table["crossings"]
            if row["rival"] == SERVER and row.get("measured")
        ]

"""Work in proportion to what each node can do: unequal and changing nodes, the ring beside the parameter server.

Usage: ringtmp experiment balance [--quick] [--only TEXT] [--rounds 3] [--out FOLDER]

Emulated nodes, 4 and 8 of them, and a chain of equal layers, 12 for each. Cases: one node 2 or 4 times slower from the
start; one that becomes 4 times slower in mid-run; one that does so gradually; speeds drawn from 0.25 to 1; all equal,
with 10 % of noise. Ways: `even` (equal numbers of layers), `measured` (each node times its layers before the start),
`auto` (even, and rebalanced while training); of the server `bsp` and `ssp 3`, with even shares of a batch and with
shares in proportion (`measured` at the start: servers do not change them later). The server's rank is one of the nodes.

The equal nodes of `auto` run for 50 more windows: no layer may move there. Each case is written as soon as it is
measured; --only measures some of them again and keeps the others.

A rate is steps a second in the last third of the run, or in the rest of it after the last move. `gain` is the
rate beside that of `even` (of the server: with even shares); `possible` is what the best cut between whole layers
would give, and `ceiling` what any cut could, by the nodes' speeds at the end: (sum of speeds) / (number x slowest).
`settled` is the number of windows of 8 steps from the change to the last move.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.emulate.nodes import parse_courses
from ringtmp.jobs.lib.case import CHAIN_LAYERS, MICRO, chain_on_nodes
from ringtmp.jobs.lib.case import Case as Training
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.launch import launch, rounds
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.store import plain, renewed
from ringtmp.jobs.lib.ways import WAYS, Way, colour_of
from ringtmp.ring.load_balance import WARM, WINDOW
from ringtmp.schedule.partition import StageCosts, split_layers

LAST = 9  # steps at the end of a run, of which a rate is taken in any case
QUICK = ("one 4 times slower in mid-run", "all equal, noise of 10 %")
CALM = 50 * WINDOW  # further steps in which equal nodes are watched
CURVES = {  # drawn, with the share of their colour
    "ring even": 0.35,
    "ring measured": 0.65,
    "ring auto": 1.0,
    "server bsp even": 0.5,
    "server bsp measured": 1.0,
}


@dataclass(frozen=True)
class Case:
    """Nodes whose speeds, relative to a node that is not slowed, follow `courses`.

    Parameters
    ----------
    name : str
        Name in tables and result files.
    ranks : int
        Number of nodes, that of `courses`.
    courses : tuple of str
        Speed of each node over the steps; see `ringtmp.jobs.lib.case.chain_on_nodes`.
    change : int
        Step of the change; 0: none.
    jitter : float
        Bound of the relative change of each action's duration, from 0 to below 1.
    """

    name: str
    ranks: int
    courses: tuple[str, ...]
    change: int
    jitter: float = 0.0

    @property
    def training(self) -> Training:
        """The training of all ways."""
        return chain_on_nodes(self.name, self.courses, self.jitter)

    def speeds(self, step: int) -> np.ndarray:
        """Speed of each node in step `step`, relative to one that is not slowed."""
        courses = parse_courses(",".join(self.courses), self.ranks)
        return np.array([course.first / course.slowness(step) for course in courses])

    def possible(self, step: int) -> tuple[float, float]:
        """Speed-up over an even split in step `step`: with the best split of whole layers, and with any split."""
        speeds, count = self.speeds(step), CHAIN_LAYERS * self.ranks
        best = split_layers([StageCosts.of(np.full(count, 1.0 / speed)) for speed in speeds]).slowest
        return CHAIN_LAYERS / speeds.min() / best, speeds.sum() / (self.ranks * speeds.min())

    def ways(self, steps: int) -> list[Way]:
        """The ways that are compared, for runs of `steps` steps."""
        ring, calm = WAYS["ring"].named("ring", micro_batches=MICRO * self.ranks), CALM if self.jitter else 0
        found = [
            ring.variant("even", layer_split="even"),
            ring.variant("measured", layer_split="measured"),
            ring.variant("auto", layer_split="even", balance="auto", steps=steps + calm),
        ]
        return found + [
            WAYS[server].variant(shares, batch_split=shares)
            for server in ("bsp", "ssp")
            for shares in ("even", "measured")
        ]


def cases(steps: int) -> list[Case]:
    """All cases, for runs of `steps` steps."""
    found = []
    for ranks in (4, 8):
        rest, at, over = ("1",) * (ranks - 1), steps // 4, steps // 2
        drawn = np.random.default_rng(ranks).uniform(0.25, 1.0, ranks)
        found += [
            Case("one 2 times slower", ranks, (*rest[1:], "0.5", "1"), 0),
            Case("one 4 times slower", ranks, (*rest[1:], "0.25", "1"), 0),
            Case("one 4 times slower in mid-run", ranks, (*rest[1:], f"1@{at}:0.25", "1"), at),
            Case("one 4 times slower by degrees", ranks, (*rest[1:], f"1@{at}-{over}:0.25", "1"), over),
            Case("drawn from 0.25 to 1", ranks, tuple(f"{speed:.3f}" for speed in drawn), 0),
            Case("all equal, noise of 10 %", ranks, ("1", *rest), 0, 0.1),
        ]
    return found


def rate(run: dict[str, Any]) -> float:
    """Steps a second of the result `run`, in the last third or, if later, once no layer moves any more.

    The last `LAST` steps always count.
    """
    seconds = run["seconds"]
    first = min(max([len(seconds) * 2 // 3, *(step + WARM for step in run["moves"])]), len(seconds) - LAST)
    return (len(seconds) - 1 - first) / (seconds[-1] - seconds[first])


def tabulate(case: Case, steps: int, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a case.

    Parameters
    ----------
    case : Case
        The case.
    steps : int
        Steps of a run.
    found : list of dict
        For each round: result of each way, by label.
    """
    possible, ceiling = case.possible(steps)
    rows = []
    for name in found[0]:
        base = "ring even" if name.startswith("ring") else f"{name.rsplit(' ', 1)[0]} even"
        gains = [rate(each[name]) / rate(each[base]) for each in found]
        moves = [each[name]["moves"] for each in found]
        rows.append(
            {
                "case": case.name,
                "ranks": case.ranks,
                "way": name,
                "steps_per_s": quartiles([rate(each[name]) for each in found]),
                "gain": quartiles(gains),
                "possible": possible if name.startswith("ring") else None,
                "ceiling": ceiling if name.startswith("ring") else None,
                "moves": max(len(each) for each in moves),
                "windows": len(found[0][name]["seconds"]) // WINDOW,
                "settled": max(((each[-1] - case.change) / WINDOW for each in moves if each), default=0.0),
                "late": max(max(each[name]["late"]) for each in found),
            }
        )
    return rows


def order(measured: dict[str, Any]) -> int:
    """Place among all cases of the case whose results are `measured`."""
    every = [(case.ranks, case.name) for case in cases(1)]
    return every.index((measured["case"]["ranks"], measured["case"]["name"]))


def measure(case: Case, steps: int, count: int) -> dict[str, Any]:
    """Measure one case: a row for each way, and the course of each way in the first round.

    Parameters
    ----------
    case : Case
        The case.
    steps : int
        Steps of a run.
    count : int
        Number of rounds.
    """
    began, results = time.perf_counter(), []
    runs = {way.label: case.training.run(way, steps, 0) for way in case.ways(steps)}
    for number, found in rounds(runs, count, lambda some: launch(case.ranks, some)):
        results.append({name: {key: found[name][key] for key in ("seconds", "moves", "late")} for name in found})
        said = ", ".join(f"{name} {rate(found[name]):.2f}" for name in found)
        print(f"{case.ranks} nodes, {case.name} ({number + 1} of {count}): {said}", flush=True)
    seconds = round(time.perf_counter() - began, 1)
    return plain(
        {
            "case": asdict(case),
            "provenance": provenance(seconds=seconds, steps=steps, rounds=count, pace=case.training.node_speed),
            "rows": tabulate(case, steps, results),
            "ways": {name: run | {"late": max(run["late"])} for name, run in results[0].items()},
        }
    )


@experiment
class Balance(Experiment):
    """Steps a second on unequal nodes, and how soon the ring has moved its layers."""

    name, about, order, width = "balance", "work in proportion on unequal and changing nodes", 70, 150

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Which cases, how often and how long."""
        parser.add_argument("--only", default="", help="cases whose description holds this text, such as '8 nodes'")
        parser.add_argument("--rounds", type=int, default=2, help="runs of each way, every other round backwards [2]")
        parser.add_argument("--steps", type=int, default=96, help="of a run [96]")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Case by case; --quick: one round of few steps on 4 nodes."""
        steps, count = (60, 1) if options.quick else (options.steps, options.rounds)
        found = table.setdefault("cases", [])
        for case in cases(steps):
            quick = case.ranks == 4 and case.name in QUICK
            if options.only in f"{case.ranks} nodes, {case.name}" and (quick or not options.quick):
                found[:] = renewed(found, measure(case, steps, count), order)
                save()

    def show(self, table: Table, page: Page) -> None:
        """One table."""
        heads = ("nodes", "case", "way", "steps/s", "gain", "possible", "ceiling", "of the ceiling", "moves", "settled")
        title = "Steps a second on unequal nodes; gain: beside even layers or shares"
        shown = make_table(title, heads, ("case", "way"))
        before = None
        for row in (row for case in table["cases"] for row in case["rows"]):
            new = (row["ranks"], row["case"]) != before
            before = row["ranks"], row["case"]
            gain, limit = row["gain"], row["ceiling"]
            shown.add_row(
                str(row["ranks"]) if new else "",
                row["case"] if new else "",
                row["way"],
                f"{row['steps_per_s'][0]:.2f}",
                f"{gain[0]:.2f} ({gain[1]:.2f} to {gain[2]:.2f})",
                f"{row['possible']:.2f}" if limit else "",
                f"{limit:.2f}" if limit else "",
                f"{gain[0] / limit:.0%}" if limit else "",
                str(row["moves"]),
                f"{row['settled']:.1f}" if row["moves"] else "",
            )
        page.print(shown)

    def draw(self, table: Table, path: Path) -> None:
        """Steps a second over the steps of a run, where nodes change in mid-run or are unequal from the start."""
        curves = [each for each in table["cases"] if "equal" not in each["case"]["name"]]
        columns = -(-len(curves) // 2)
        with figure(path, 2, columns, 160, figsize=(3.2 * columns, 5.6)) as (made, axes):
            for axis in axes.flat[len(curves) :]:
                axis.axis("off")
            for axis, each in zip(axes.flat, curves, strict=False):
                for way, share in CURVES.items():
                    seconds = np.array(each["ways"][way]["seconds"])
                    pace = 4 / (seconds[4:] - seconds[:-4])
                    axis.plot(
                        np.arange(4, len(seconds)), pace, color=colour_of(way), alpha=share, label=way, linewidth=1.4
                    )
                for step in each["ways"]["ring auto"]["moves"]:
                    axis.axvline(step, color=colour_of("ring"), linestyle=":", linewidth=1)
                axis.set_title(f"{each['case']['ranks']} nodes: {each['case']['name']}", fontsize=8, loc="left")
                axis.set_ylim(bottom=0)
                axis.tick_params(labelsize=7)
                frame(axis)
            axes[0, 0].legend(fontsize=7, frameon=False)
            made.supxlabel("step (dotted: layers move)", fontsize=8)
            made.supylabel("steps a second (mean of 4)", fontsize=8)

    def claims(self, table: Table) -> list[Claim]:
        """What work in proportion gains where one node is 4 times slower."""
        found = []
        for case in table["cases"]:
            rows = {row["way"]: row for row in case["rows"]}
            if case["case"]["name"] not in ("one 4 times slower", "one 4 times slower in mid-run"):
                continue
            ring = rows["ring auto"]
            servers = [WAYS[name].variant("measured").label for name in ("bsp", "ssp")]
            found.append(
                Claim(
                    f"{case['case']['ranks']} nodes, {case['case']['name']}: work in proportion makes the ring "
                    f"{ring['gain'][0]:.2f} times as fast (upper bound {ring['ceiling']:.2f})",
                    ", ".join(f"{way} {rows[way]['gain'][0]:.2f}" for way in servers),
                    "emulated nodes",
                    self.name,
                )
            )
        return found

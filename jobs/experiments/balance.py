"""Work in proportion to what each node can do: unequal and changing nodes, the ring beside the parameter server.

Usage: python -m jobs.experiments.balance [--quick] [--only TEXT] [--rounds 3] [--out FOLDER]

Emulated nodes, 4 and 8 of them, and a chain of equal layers, 12 for each. Cases: one node 2 or 4 times slower from the
start; one that becomes 4 times slower in mid-run; one that does so by degrees; speeds drawn from 0.25 to 1; all equal,
with 10 % of noise. Ways: `even` (as many layers each), `measured` (each node times its layers before the start), `auto`
(even, and dealt anew while training); of the server `bsp` and `ssp 3`, with even shares of a batch and with shares in
proportion (`measured` at the start: servers do not change them later). The server's rank is one of the nodes.

The equal nodes of `auto` go on for 50 windows more: no layer may move there. Each case is written as soon as it is
measured; --only measures some of them anew and leaves the others as they are.

A rate is steps a second in the last third of the run, or in what is left of it after the last move. `gain` is the
rate beside that of `even` (of the server: with even shares); `possible` is what the best cut between whole layers
would give, and `ceiling` what any cut could, by the nodes' speeds at the end: (sum of speeds) / (number x slowest).
`settled` is the number of windows of 8 steps from the change to the last move.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance, run_json
from jobs.experiments.progress import quartiles
from jobs.experiments.store import Page, places, plain, publish, read, renewed, write
from ringtmp.emulate.nodes import parse_courses
from ringtmp.ring.load_balance import WARM, WINDOW
from ringtmp.schedule.partition import StageCosts, split_layers

WIDTH, LAYERS = 32, 12  # of each node
MICRO, ROWS = 2, 4  # micro-batches for each rank, and samples of one
ACTION = 2e-3  # seconds of F of a node's layers for one micro-batch, at speed 1
LAST = 9  # steps at the end of a run, of which a rate is taken in any case
QUICK = ("one 4 times slower in mid-run", "all equal, noise of 10 %")
CALM = 50 * WINDOW  # further steps in which equal nodes are watched
SERVER: dict[str, dict[str, Any]] = {"bsp": {"consistency": "bsp"}, "ssp 3": {"consistency": "ssp", "staleness": 3}}


@dataclass(frozen=True)
class Case:
    """Nodes whose speeds, beside that of a node that is not slowed, follow `courses`."""

    name: str
    ranks: int
    courses: tuple[str, ...]
    change: int  # step of the change, or 0
    jitter: float = 0.0

    @property
    def speed(self) -> float:
        """GFLOP/s of a node that is not slowed."""
        return 2 * ROWS * WIDTH * WIDTH * LAYERS / ACTION / 1e9

    @property
    def pace(self) -> str:
        """As `--node-speed` takes it."""
        scaled = []
        for course in self.courses:
            first, *turns = course.split("@")
            words = [f"{float(first) * self.speed:.6g}"]
            for turn in turns:
                when, speed = turn.split(":")
                words.append(f"{when}:{float(speed) * self.speed:.6g}")
            scaled.append("@".join(words))
        return ",".join(scaled)

    def speeds(self, step: int) -> np.ndarray:
        """Of each node in a step, beside one that is not slowed."""
        courses = parse_courses(",".join(self.courses), self.ranks)
        return np.array([course.first / course.slowness(step) for course in courses])

    def possible(self, step: int) -> tuple[float, float]:
        """Times the rate of an even cut: with the best cut of whole layers, and with any."""
        speeds, count = self.speeds(step), LAYERS * self.ranks
        best = split_layers([StageCosts.of(np.full(count, 1.0 / speed)) for speed in speeds]).slowest
        return LAYERS / speeds.min() / best, speeds.sum() / (self.ranks * speeds.min())

    def settings(self, steps: int) -> dict[str, Any]:
        """What all ways have in common."""
        batch = MICRO * ROWS * self.ranks
        return {
            "model": f"mlp:{WIDTH}-{WIDTH}x{LAYERS * self.ranks}",
            "batch_size": batch,
            "optimizer": "momentum",
            "data": f"synthetic:samples={4 * batch},features={WIDTH},classes={WIDTH}",
            "lr": 1e-3,
            "steps": steps,
            "eval_every": 0,
            "test_fraction": 0.01,
            "node_speed": self.pace,
            "jitter": self.jitter,
        }

    def runs(self, steps: int) -> dict[str, dict[str, Any]]:
        """Settings of each way."""
        common = self.settings(steps)
        ring = common | {"micro_batches": MICRO * self.ranks}
        ways: dict[str, dict[str, Any]] = {
            "ring even": ring | {"layer_split": "even"},
            "ring measured": ring | {"layer_split": "measured"},
            "ring auto": ring
            | {"layer_split": "even", "balance": "auto", "steps": steps + (CALM if self.jitter else 0)},
        }
        for name, server in SERVER.items():
            for shares in ("even", "measured"):
                ways[f"{name} {shares}"] = common | server | {"batch_split": shares}
        return ways


def cases(steps: int) -> list[Case]:
    """All of them."""
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


def train_all(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each way once: seconds at the end of each step, and where layers moved. Collective over the world."""
    from mpi4py import MPI

    import ps
    import ringtmp
    from ringtmp.ring.rebalance import Rebalancer

    moves: list[int] = []
    whole = Rebalancer._move

    def note(self: Rebalancer, before: Any, after: Any, step: int) -> None:
        moves.append(step)
        whole(self, before, after, step)

    Rebalancer._move = note  # type: ignore[method-assign]
    results = {}
    for name, settings in runs.items():
        moves.clear()
        trainer = ringtmp.train if name.startswith("ring") else ps.train
        result = trainer(progress=False, **settings)
        if MPI.COMM_WORLD.rank == 0:
            seconds = [row["seconds"] for row in result.rows if row["kind"] == "train"]
            late = max(rank["late"] for rank in result.ranks)
            results[name] = {"seconds": seconds, "moves": list(moves), "late": late}
    return results


def rate(run: dict[str, Any]) -> float:
    """Steps a second in the last third, or once nothing moves any more (but for the last few steps, then in those)."""
    seconds = run["seconds"]
    first = min(max([len(seconds) * 2 // 3, *(step + WARM for step in run["moves"])]), len(seconds) - LAST)
    return (len(seconds) - 1 - first) / (seconds[-1] - seconds[first])


def tabulate(case: Case, steps: int, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a case."""
    possible, ceiling = case.possible(steps)
    rows = []
    for name in rounds[0]:
        base = "ring even" if name.startswith("ring") else f"{name.rsplit(' ', 1)[0]} even"
        gains = [rate(each[name]) / rate(each[base]) for each in rounds]
        moves = [each[name]["moves"] for each in rounds]
        rows.append(
            {
                "case": case.name,
                "ranks": case.ranks,
                "way": name,
                "steps_per_s": quartiles([rate(each[name]) for each in rounds]),
                "gain": quartiles(gains),
                "possible": possible if name.startswith("ring") else None,
                "ceiling": ceiling if name.startswith("ring") else None,
                "moves": max(len(each) for each in moves),
                "windows": len(rounds[0][name]["seconds"]) // WINDOW,
                "settled": max(((each[-1] - case.change) / WINDOW for each in moves if each), default=0.0),
                "late": max(each[name]["late"] for each in rounds),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    title = "Steps a second on unequal nodes; gain: beside even layers or shares"
    table = Table(title=title, title_justify="left")
    heads = ("nodes", "case", "way", "steps/s", "gain", "possible", "ceiling", "of the ceiling", "moves", "settled")
    for head in heads:
        table.add_column(head, justify="left" if head in ("case", "way") else "right")
    before = None
    for row in rows:
        new = (row["ranks"], row["case"]) != before
        before = row["ranks"], row["case"]
        gain, limit = row["gain"], row["ceiling"]
        table.add_row(
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
    console.print(table)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one round of few steps on 4 nodes; written to --out alone"
    )
    parser.add_argument("--only", default="", help="cases whose description holds this text, as in '8 nodes'")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way, every other round backwards [2]")
    parser.add_argument("--steps", type=int, default=96, help="of a run [96]")
    parser.add_argument("--out", help="folder for balance.h5 and balance.png, instead of those of the project")
    options = parser.parse_args()
    steps, rounds = (60, 1) if options.quick else (options.steps, options.rounds)
    result, _ = places("balance", options.out)
    table = read(result) if result.exists() else {"cases": []}
    chosen = [case for case in cases(steps) if options.only in f"{case.ranks} nodes, {case.name}"]
    if options.quick:
        chosen = [case for case in chosen if case.ranks == 4 and case.name in QUICK]
    shown = []
    for case in chosen:
        began, runs, results = time.perf_counter(), case.runs(steps), []
        for number in range(rounds):
            names = list(runs) if number % 2 == 0 else list(reversed(runs))
            made = run_json("jobs.experiments.balance", {name: runs[name] for name in names}, case.ranks)
            results.append({name: made[name] for name in runs})
            said = ", ".join(f"{name} {rate(made[name]):.2f}" for name in runs)
            print(f"{case.ranks} nodes, {case.name} ({number + 1} of {rounds}): {said}", flush=True)
        seconds = round(time.perf_counter() - began, 1)
        measured = plain(
            {
                "case": asdict(case),
                "provenance": provenance(seconds=seconds, steps=steps, rounds=rounds, pace=case.pace),
                "rows": tabulate(case, steps, results),
                "ways": results[0],
            }
        )
        shown += measured["rows"]
        table["cases"] = renewed(table["cases"], measured, order)
        if options.out or not options.quick:
            write(table, result)
    keeps = options.out or not options.quick
    page = Page(150)
    show([row for case in table["cases"] for row in case["rows"]] if keeps else shown, page)
    if keeps:
        publish("balance", options.out, table, page, draw)


def order(measured: dict[str, Any]) -> int:
    """Where the case stands among all."""
    every = [(case.ranks, case.name) for case in cases(1)]
    return every.index((measured["case"]["ranks"], measured["case"]["name"]))


def draw(table: dict[str, Any], path: Path) -> None:
    """Steps a second over the steps of a run, where nodes change in mid-run or are unequal from the start."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    colours = {
        "ring even": "#999999",
        "ring measured": "#d1495b",
        "ring auto": "#7a1f2b",
        "bsp even": "#56b4e9",
        "bsp measured": "#30638e",
    }
    curves = [each for each in table["cases"] if "equal" not in each["case"]["name"]]
    figure, axes = plt.subplots(
        2, -(-len(curves) // 2), figsize=(3.2 * -(-len(curves) // 2), 5.6), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, each in zip(axes.flat, curves, strict=False):
        for way, colour in colours.items():
            seconds = np.array(each["ways"][way]["seconds"])
            pace = 4 / (seconds[4:] - seconds[:-4])
            axis.plot(np.arange(4, len(seconds)), pace, color=colour, label=way, linewidth=1.4)
        for step in each["ways"]["ring auto"]["moves"]:
            axis.axvline(step, color=colours["ring auto"], linestyle=":", linewidth=1)
        axis.set_title(f"{each['case']['ranks']} nodes: {each['case']['name']}", fontsize=8, loc="left")
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.supxlabel("step (dotted: layers move)", fontsize=8)
    figure.supylabel("steps a second (mean of 4)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # the ranks of a launch
        found = train_all(json.loads(sys.argv[1]))
        if found:
            print(json.dumps(found))
    else:
        main()

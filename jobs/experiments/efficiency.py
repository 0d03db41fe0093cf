"""How long workers compute, transfer and wait: the ring beside every server mode and all-reduce.

Usage: ringtmp experiment efficiency [--quick] [--only TEXT] [--rounds 2] [--out FOLDER]

Emulated nodes, 2, 4 and 8 of them, and 16 on as many cores: all equal, and with one of them half as fast. Every node
gets work in proportion to its speed, which it has measured at the start (`--layer-split measured`, `--batch-split
measured`); the network is a chain of equal layers, 12 for each node. Shares are of the wall time of the steps, means
over the workers: a rank that only serves is a node but not a worker. Each way once a round, every other round
backwards; medians.

`other` is the time of the program itself: choosing actions, logging, sleeping too long.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.lib.case import MICRO, Case, chain_on_nodes
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.launch import launch, rounds
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.store import plain, renewed
from ringtmp.jobs.lib.ways import WAYS, Way, several_servers

SKIP = 6  # steps at the beginning that do not count for the rate
PARTS = ("compute", "transfer", "wait", "other")
COLOURS = {"compute": "#2a6f97", "transfer": "#e9c46a", "wait": "#d1495b", "other": "#bbbbbb"}


def cases() -> list[Case]:
    """All cases: equal nodes, and nodes of which one is half as fast."""
    found = []
    for ranks in (2, 4, 8, 16)[: 4 if (os.cpu_count() or 1) >= 16 else 3]:
        found.append(chain_on_nodes("all equal", ("1",) * ranks))
        found.append(chain_on_nodes("one half as fast", ("1",) * (ranks - 1) + ("0.5",)))
    return found


def ways(ranks: int) -> list[Way]:
    """The ways that are compared on `ranks` ranks, with work in proportion to the nodes' speed."""
    servers = [several_servers(2)] if ranks >= 4 else []
    ring = WAYS["ring"].named("ring", micro_batches=MICRO * ranks, layer_split="measured")
    others = [WAYS["bsp"], WAYS["ssp"], WAYS["asp"], *servers, WAYS["colocated"], WAYS["allreduce"]]
    return [ring, *(way.named(way.label, batch_split="measured") for way in others)]


def shares(result: dict[str, Any]) -> list[dict[str, float]]:
    """Shares of the wall time of each worker in `result`.

    `other` includes checkpoints and tests, which these runs do not have.
    """
    found = []
    for part, role in zip(result["parts"], result["roles"], strict=True):
        if role != "server":
            whole = sum(part.values())
            known = {name: part[name] / whole for name in PARTS[:3]}
            found.append(known | {"other": 1 - sum(known.values())})
    return found


def measure(case: Case, count: int, steps: int) -> dict[str, Any]:
    """Measure one case: a row for each way, and the shares of each worker in the first round.

    Parameters
    ----------
    case : Case
        The case.
    count : int
        Number of rounds.
    steps : int
        Steps of a run.
    """
    began = time.perf_counter()
    runs = {way.label: case.run(way, steps, SKIP) for way in ways(case.ranks)}
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for _, found in rounds(runs, count, lambda some: launch(case.ranks, some)):
        for name, result in found.items():
            seen[name].append({"rate": result["samples_per_s"], "shares": shares(result)})
    rows = []
    for name, rounds_of in seen.items():
        means = {part: [float(np.mean([one[part] for one in each["shares"]])) for each in rounds_of] for part in PARTS}
        rows.append(
            {
                "ranks": case.ranks,
                "case": case.name,
                "way": name,
                "samples_per_s": quartiles([each["rate"] for each in rounds_of]),
                **{part: float(np.median(values)) for part, values in means.items()},
                "wait_least_and_most": [
                    min(one["wait"] for one in rounds_of[0]["shares"]),
                    max(one["wait"] for one in rounds_of[0]["shares"]),
                ],
                "workers": rounds_of[0]["shares"],
            }
        )
    said = ", ".join(f"{row['way']} {row['wait']:.1%}" for row in rows)
    print(f"{case.ranks} nodes, {case.name}: waiting: {said}", flush=True)
    seconds = round(time.perf_counter() - began, 1)
    facts = provenance(seconds=seconds, rounds=count, steps=steps, pace=case.node_speed)
    return {"ranks": case.ranks, "name": case.name, "rows": rows, "provenance": facts}


@experiment
class Efficiency(Experiment):
    """Shares of the workers' wall time, by way and case."""

    name, order, width = "efficiency", 10, 140
    about = "how long workers compute, transfer and wait: ring, every server mode, all-reduce"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Which cases, and how often."""
        parser.add_argument("--only", default="", help="cases whose description holds this text, such as '8 nodes'")
        parser.add_argument("--rounds", type=int, default=2, help="runs of each way [2]")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Case by case; --quick: one round of few steps, one case."""
        count, steps = (1, 16) if options.quick else (options.rounds, 48)
        every, found = cases(), table.setdefault("cases", [])
        for case in every[3:4] if options.quick else every:
            if options.only in f"{case.ranks} nodes, {case.name}":
                measured = plain(measure(case, count, steps))
                found[:] = renewed(found, measured, lambda each: (each["ranks"], each["name"]))
                save()

    def show(self, table: Table, page: Page) -> None:
        """One table."""
        heads = ("nodes", "case", "way", "samples/s", "compute", "transfer", "wait", "(least to most)", "other")
        shown = make_table("Shares of the workers' wall time; emulated nodes", heads, ("case", "way"))
        for case in table["cases"]:
            for number, row in enumerate(case["rows"]):
                least, most = row["wait_least_and_most"]
                shown.add_row(
                    "" if number else str(case["ranks"]),
                    "" if number else case["name"],
                    row["way"],
                    f"{row['samples_per_s'][0]:.1f}",
                    f"{row['compute']:.1%}",
                    f"{row['transfer']:.1%}",
                    f"{row['wait']:.1%}",
                    f"{least:.1%} to {most:.1%}",
                    f"{row['other']:.1%}",
                )
        page.print(shown)

    def draw(self, table: Table, path: Path) -> None:
        """For each case a bar for each way: where the workers' time goes."""
        found = table["cases"]
        columns = max(1, -(-len(found) // 2))
        order = sorted(found, key=lambda case: (case["name"], case["ranks"]))
        with figure(path, 2, columns, 160, figsize=(3.6 * columns, 5.4), sharex=True) as (made, axes):
            for axis in axes.flat[len(found) :]:
                axis.axis("off")
            for axis, case in zip(axes.flat, order, strict=False):
                rows, left = case["rows"], np.zeros(len(case["rows"]))
                for part, colour in COLOURS.items():
                    values = np.array([100 * row[part] for row in rows])
                    axis.barh([row["way"] for row in rows], values, left=left, color=colour, label=part, height=0.7)
                    left += values
                for number, row in enumerate(rows):
                    axis.text(
                        101, number, f"{row['wait']:.0%}", ha="left", va="center", fontsize=7, color=COLOURS["wait"]
                    )
                axis.set_title(f"{case['ranks']} nodes, {case['name']}", fontsize=9, loc="left")
                axis.invert_yaxis()
                axis.set_xlim(0, 110)
                axis.set_xticks(range(0, 101, 20))
                axis.tick_params(labelsize=7)
                frame(axis)
            handles, labels = axes[0, 0].get_legend_handles_labels()
            made.legend(handles, labels, ncols=4, loc="outside upper left", frameon=False, fontsize=8)
            made.supxlabel("percent of the workers' wall time; in red: waiting", fontsize=9)

    def claims(self, table: Table) -> list[Claim]:
        """How long workers wait, on the most nodes that were measured."""
        found = []
        most = max(case["ranks"] for case in table["cases"])
        for case in table["cases"]:
            if case["ranks"] != most:
                continue
            rows = {row["way"]: row for row in case["rows"]}
            ring, others = rows.pop("ring"), [f"{way} {row['wait']:.0%}" for way, row in rows.items()]
            found.append(
                Claim(
                    f"{case['ranks']} nodes, {case['name']}: workers of the ring wait {ring['wait']:.0%} of the time",
                    ", ".join(others),
                    f"emulated nodes, {case['provenance']['cores']} cores",
                    self.name,
                )
            )
        return found

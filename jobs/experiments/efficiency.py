"""How long workers compute, transfer and wait: the ring beside every server mode and all-reduce.

Usage: python -m jobs.experiments efficiency [--quick] [--only TEXT] [--rounds 2] [--out FOLDER]

Emulated nodes, 2, 4 and 8 of them, and 16 on as many cores: all equal, and with one of them half as fast. Everybody
gets work in proportion to speed, as each node has timed itself at the start (`--layer-split measured`, `--batch-split measured`);
the network is a chain of equal layers, 12 for each node. Shares are of the wall time of the steps, means over those who
work: a rank that only serves is none of them, though it is one of the nodes. Each way once a round, every other round
backwards; medians.

`other` is what the program itself takes: choosing, logging, sleeping too long.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance, run_json
from jobs.experiments.balance import MICRO, Case
from jobs.experiments.progress import quartiles
from jobs.experiments.store import Page, places, plain, publish, read, renewed, write

SKIP = 6  # steps at the beginning that do not count for the rate
PARTS = ("compute", "transfer", "wait", "other")
SERVERS: dict[str, dict[str, Any]] = {
    "bsp": {"consistency": "bsp"},
    "ssp 3": {"consistency": "ssp", "staleness": 3},
    "asp": {"consistency": "asp"},
    "bsp, 2 servers": {"servers": 2},
    "every rank serves": {"colocate": True},
    "all-reduce": {"consistency": "allreduce"},
}


def cases() -> list[Case]:
    """All of them."""
    found = []
    for ranks in (2, 4, 8, 16)[: 4 if (os.cpu_count() or 1) >= 16 else 3]:
        found.append(Case("all equal", ranks, ("1",) * ranks, 0))
        found.append(Case("one half as fast", ranks, ("1",) * (ranks - 1) + ("0.5",), 0))
    return found


QUICK = cases()[3]


def runs_of(case: Case, steps: int) -> dict[str, dict[str, Any]]:
    """Each way, as `jobs.bench.steady` takes it."""
    common = case.settings(steps)
    ring = common | {"micro_batches": MICRO * case.ranks, "layer_split": "measured"}
    found: dict[str, dict[str, Any]] = {"ring": {"train": ring, "skip": SKIP}}
    for name, server in SERVERS.items():
        if "2 servers" in name and case.ranks < 4:
            continue
        found[name] = {"trainer": "ps", "train": common | server | {"shares": "measured"}, "skip": SKIP}
    return found


def shares(result: dict[str, Any]) -> list[dict[str, float]]:
    """Of each rank that works: shares of its wall time; checkpoints and tests, which there are none of, in `other`."""
    found = []
    for part, role in zip(result["parts"], result["roles"], strict=True):
        if role != "server":
            whole = sum(part.values())
            known = {name: part[name] / whole for name in PARTS[:3]}
            found.append(known | {"other": 1 - sum(known.values())})
    return found


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """One case: a row for each way, and the shares of each worker in the first round."""
    began, runs = time.perf_counter(), runs_of(case, steps)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs) if number % 2 == 0 else list(reversed(runs))
        results: Any = run_json("jobs.bench.steady", {"runs": [runs[name] for name in names]}, case.ranks)
        for name, result in zip(names, results, strict=True):
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
    facts = provenance(seconds=seconds, rounds=rounds, steps=steps, pace=case.pace)
    return {"ranks": case.ranks, "name": case.name, "rows": rows, "provenance": facts}


def show(found: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    table = Table(title="Shares of the workers' wall time; emulated nodes", title_justify="left")
    for head in ("nodes", "case", "way", "samples/s", "compute", "transfer", "wait", "(least to most)", "other"):
        table.add_column(head, justify="left" if head in ("case", "way") else "right")
    for case in found:
        for number, row in enumerate(case["rows"]):
            least, most = row["wait_least_and_most"]
            table.add_row(
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
    console.print(table)


def draw(table: dict[str, Any], path: Path) -> None:
    """For each case a bar for each way: where the workers' time goes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    colours = {"compute": "#2a6f97", "transfer": "#e9c46a", "wait": "#d1495b", "other": "#bbbbbb"}
    found = table["cases"]
    columns = max(1, -(-len(found) // 2))
    figure, axes = plt.subplots(
        2, columns, figsize=(3.6 * columns, 5.4), layout="constrained", squeeze=False, sharex=True
    )
    order = sorted(found, key=lambda case: (case["name"], case["ranks"]))
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, case in zip(axes.flat, order, strict=False):
        rows, left = case["rows"], np.zeros(len(case["rows"]))
        for part, colour in colours.items():
            values = np.array([100 * row[part] for row in rows])
            axis.barh([row["way"] for row in rows], values, left=left, color=colour, label=part, height=0.7)
            left += values
        for number, row in enumerate(rows):
            axis.text(101, number, f"{row['wait']:.0%}", ha="left", va="center", fontsize=7, color=colours["wait"])
        axis.set_title(f"{case['ranks']} nodes, {case['name']}", fontsize=9, loc="left")
        axis.invert_yaxis()
        axis.set_xlim(0, 110)
        axis.set_xticks(range(0, 101, 20))
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, loc="outside upper left", frameon=False, fontsize=8)
    figure.supxlabel("percent of the workers' wall time; in red: waiting", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    """Measure and publish, case by case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, one case; written to --out alone")
    parser.add_argument("--only", default="", help="cases whose description holds this text, as in '8 nodes'")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way [2]")
    parser.add_argument("--out", help="folder for efficiency.h5 and .png, instead of those of the project")
    options = parser.parse_args()
    rounds, steps = (1, 16) if options.quick else (options.rounds, 48)
    result, _ = places("efficiency", options.out)
    table: dict[str, Any] = read(result) if result.exists() else {"cases": []}
    keeps = bool(options.out) or not options.quick
    for case in cases():
        if options.only not in f"{case.ranks} nodes, {case.name}" or (options.quick and case != QUICK):
            continue
        measured = plain(measure(case, rounds, steps))
        table["cases"] = renewed(table["cases"], measured, lambda each: (each["ranks"], each["name"]))
        if keeps:
            write(table, result)
    page = Page(140)
    show(table["cases"], page)
    if keeps:
        publish("efficiency", options.out, table, page, draw)


if __name__ == "__main__":
    main()

"""The tables and the figure of `ringtmp.jobs.experiments.scalability`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame, legend_below
from ringtmp.jobs.lib.ways import WAYS as EVERY
from ringtmp.jobs.lib.ways import colour_of

SIDE = EVERY["rings"].label
WAYS = ["ring", SIDE, *(EVERY[name].label for name in ("bsp", "ssp", "colocated", "allreduce"))]
FAR = ["ring", *(EVERY[name].label for name in ("bsp", "colocated", "allreduce"))]


def family(way: str) -> str:
    """Label of the curve of the way `way`."""
    return SIDE if "rings of" in way else way


def best(rows: Sequence[dict[str, Any]], scaling: str, nodes: int) -> dict[str, dict[str, Any]]:
    """The fastest way of each kind, among `rows`, on `nodes` nodes with `scaling` "strong" or "weak"."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        way = family(row["way"])
        if (row["scaling"], row["nodes"]) == (scaling, nodes):
            found[way] = max(row, found.get(way, row), key=lambda each: each["speed_up"])
    return found


def points(case: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Scalings and numbers of nodes of the scene `case`, except one node."""
    yield from dict.fromkeys((row["scaling"], row["nodes"]) for row in case["rows"] if row["nodes"] > 1)


def errors(cases: Sequence[dict[str, Any]], way: str) -> list[float]:
    """Relative errors of the simulator for `way` at each point of `cases`, except those at full speed.

    The simulator has no cores that share caches and memory.
    """
    return [
        row["simulated"] / row["samples_per_s"][0] - 1
        for case in cases
        for row in case["rows"]
        if case["name"].partition(",")[0] != "full speed"
        and row["nodes"] > 1
        and row["way"] == way
        and row["simulated"]
    ]


def show(cases: Sequence[dict[str, Any]], page: Page) -> None:
    """Print on `page` the results `cases`: speed-ups, errors of the simulator, and simulated speeds of many nodes."""
    table = make_table(
        "Times as fast as one node (simulated: so much faster); * the fastest",
        ("network and links", "scaling", "nodes", *WAYS),
        ("network and links", "scaling"),
    )
    for case in cases:
        before = ""
        for scaling, nodes in points(case):
            there = best(case["rows"], scaling, nodes)
            most, cells = max(row["speed_up"] for row in there.values()), []
            for way in WAYS:
                if way not in there:
                    cells.append("")
                    continue
                row = there[way]
                error = f" ({row['simulated'] / row['samples_per_s'][0] - 1:+.0%})" if row["simulated"] else ""
                cells.append(f"{'*' * (row['speed_up'] == most)}{row['speed_up']:.2f}{error}")
            table.add_row("" if before else case["name"], "" if scaling == before else scaling, str(nodes), *cells)
            before = scaling
    page.print(table)
    heads = ("way", "points", "median error", "within 10 %", "worst")
    table = make_table("Simulated beside measured on emulated nodes, all points above", heads, ("way",))
    for way in WAYS:
        wrong = errors(cases, way)
        if wrong:
            within = sum(abs(each) <= 0.1 for each in wrong)
            table.add_row(way, str(len(wrong)), f"{np.median(wrong):+.1%}", str(within), f"{max(wrong, key=abs):+.1%}")
    page.print(table)
    title = "Weak scaling of the wide network, simulated: used of the nodes' speed"
    table = make_table(title, ("links", "nodes", *FAR), ("links",))
    for case in cases:
        rows = case.get("far") or []
        for number, nodes in enumerate(dict.fromkeys(row["nodes"] for row in rows)):
            used = {row["way"]: row["used"] for row in rows if row["nodes"] == nodes}
            link = "" if number else case["name"].partition(", ")[2]
            table.add_row(link, f"{nodes:,}", *(f"{used[way]:.2%}" for way in FAR))
    if table.row_count:
        page.print(table)


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw the results `table` into the file `path`.

    Used share of the nodes' speed over nodes: a column for each scene, strong scaling above, weak scaling below.
    """
    cases = table["cases"]
    with figure(path, 2, len(cases), 140, figsize=(2.9 * len(cases) + 0.6, 6), sharey=True) as (made, axes):
        for column, case in zip(axes.T, cases, strict=True):
            for axis, scaling in zip(column, ("strong", "weak"), strict=True):
                _draw_scaling(axis, case, scaling)
            column[-1].set_xlabel("nodes", fontsize=9)
        for axis in axes[:, 0]:
            axis.set_ylabel("percent of the nodes' speed", fontsize=9)
        legend_below(made, axes.flat, fontsize=9)


def _draw_scaling(axis: Any, case: dict[str, Any], scaling: str) -> None:
    """One scene and scaling: measured (lines) and simulated (dashed)."""
    counts = [nodes for each, nodes in points(case) if each == scaling]
    for way in WAYS:
        rows = [found[way] for nodes in counts if way in (found := best(case["rows"], scaling, nodes))]
        if not rows:
            continue
        axis.plot(
            [1, *(row["nodes"] for row in rows)],
            [100, *(100 * row["speed_up"] / row["nodes"] for row in rows)],
            color=colour_of(way),
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            label=way,
        )
        dashed = [
            (row["nodes"], 100 * row["simulated_speed_up"] / row["nodes"]) for row in rows if row["simulated_speed_up"]
        ]
        if scaling == "weak":
            dashed += [(row["nodes"], 100 * row["used"]) for row in case.get("far") or [] if row["way"] == way]
        if dashed:
            axis.plot(*zip(*dashed, strict=True), color=colour_of(way), linestyle="--", linewidth=0.9)
    axis.set_xscale("log", base=2)
    most = max([*counts, *(row["nodes"] for row in case.get("far") or [] if scaling == "weak")], default=1)
    ticks = [n for n in ((1, 2, 4, 8, 16) if most <= 16 else (1, 4, 16, 64, 256, 1024, 4096)) if n <= most]
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.grid(color="#eeeeee")
    frame(axis)
    axis.set_ylim(0, 112)
    axis.set_title(f"{case['name']}: {scaling}", loc="left", fontsize=9)

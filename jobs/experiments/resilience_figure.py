"""The tables and the figure of `ringtmp.jobs.experiments.resilience`."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.ways import colour_of

PHASES = {
    "detect": "#7a1f2b",
    "clear": "#d1495b",
    "start": "#30638e",
    "agree": "#00a6a6",
    "split": "#56b4e9",
    "restore": "#edae49",
    "redo": "#8f8f8f",
}
KILL = "#222222"


def show(table: dict[str, Any], page: Page) -> None:
    """Print on `page` the parts that the results `table` has."""
    for part, print_it in (
        ("recovery", _recovery),
        ("throughput", _throughput),
        ("efficiency", _efficiency),
        ("outcomes", _outcomes),
    ):
        if table.get(part):
            page.print(print_it(table[part]))
    for part, origin in table["provenance"].items():
        quick = "; QUICK: small and few runs, no figures to cite" if origin["quick"] else ""
        page.print(
            f"{part}: {origin['date']}, {origin['commit']}, {origin['cpu']}, {origin['cores']} cores, load "
            f"{origin['load']:.1f}, {origin['seconds']} s{quick}",
            highlight=False,
        )


def _columns(title: str, caption: str, *heads: str) -> Table:
    return make_table(title, heads, heads[:1], caption=caption)


def _recovery(rows: list[dict[str, Any]]) -> Table:
    shown = _columns(
        f"Seconds from the kill of a rank to the first new step, {rows[0]['ranks']} ranks: median (quartiles)",
        "phases: medians; detect: until it is known, so far as the others do not account for it",
        "state",
        "way",
        "kills",
        "in all",
        "aim",
        *PHASES,
    )
    for row in rows:
        middle, low, high = row["total"]
        shown.add_row(
            row["size"],
            row["way"],
            str(row["kills"]),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{row['aim']:g}",
            *(f"{row['phases'][phase][0]:.2f}" for phase in PHASES),
        )
    return shown


def _throughput(rows: list[dict[str, Any]]) -> Table:
    shown = _columns(
        "Steps a second before and after one of R emulated nodes is lost for good",
        "of ideal: after / before / ((R - 1) / R); aim 95 %",
        "R",
        "layers",
        "lost rank",
        "before",
        "after",
        "of ideal",
    )
    for row in rows:
        shown.add_row(
            str(row["ranks"]),
            str(row["layers"]),
            str(row["lost"]),
            f"{row['before']:.2f}",
            f"{row['after']:.2f}",
            f"{row['share_of_ideal']:.1%}",
        )
    return shown


def _efficiency(rows: list[dict[str, Any]]) -> Table:
    shown = _columns(
        "Useful steps per wall time against the undisturbed run, with failures at random (Poisson)",
        "long run: 1 - cost of a failure / mean time between two; measured: with the failures that this run saw; aim "
        "of the ring at 60 s: 81 %",
        "way",
        "a failure in",
        "kills",
        "seconds",
        "measured",
        "s lost by each",
        "long run",
        "steps again",
        "finished",
    )
    for row in rows:
        shown.add_row(
            row["way"],
            f"{row['mean']:g} s",
            str(row["kills"]),
            f"{row['seconds']:.0f}",
            f"{row['efficiency']:.1%}",
            _number(row["cost"], ".2f"),
            _number(row["expected"], ".1%"),
            str(row["again"]),
            "yes" if row["finished"] else "NO",
        )
    return shown


def _outcomes(rows: list[dict[str, Any]]) -> Table:
    shown = _columns(
        "What each fault leaves",
        "loss: of the last test, beside that of the undisturbed run; again: steps made twice",
        "role",
        "fault",
        "survived",
        "again",
        "pause, s",
        "final loss",
        "report",
    )
    shown.columns[-1].justify = shown.columns[1].justify = "left"
    for row in rows:
        if row["survived"] is None:
            shown.add_row(row["role"], row["fault"], "not measured", "", "", "", row["why"])
            continue
        verdict = "yes" if row["survived"] else "NO"
        verdict += ", but the job did not end" if row["survived"] and not row["ended"] else ""
        off = "same bits" if row["same"] else _number(row["off"], "+.2g")
        shown.add_row(
            row["role"],
            row["fault"],
            verdict,
            str(row["again"]),
            _number(row["pause"], ".2f"),
            off,
            "; ".join(filter(None, (row["how"], row["why"]))),
        )
    return shown


def _number(value: float | None, how: str) -> str:
    return "never" if value is None or value != value else format(value, how)


# ---- the picture ----------------------------------------------------------------------------------------------------


def shown_mean(rows: list[dict[str, Any]]) -> float:
    """Mean time between failures whose runs are drawn: the middle one of those in `rows`."""
    means = sorted({row["mean"] for row in rows})
    return means[len(means) // 2]


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw the results `table` into the file `path`.

    Throughput over time with kill marks, one strip for each way; efficiency by failure rate; recovery by phase.
    """
    efficiency, recovery = table.get("efficiency") or [], table.get("recovery") or []
    mean = shown_mean(efficiency) if efficiency else 0.0
    strips = [row for row in efficiency if row["mean"] == mean]
    strips = list({row["way"]: row for row in reversed(strips)}.values())[::-1]  # one seed of each way
    number = max(2, len(strips))
    with figure(path, 0, figsize=(14, 1.4 + 1.7 * max(number, 3))) as (made, _):
        halves: Any = made.subfigures(1, 2, width_ratios=[1.75, 1])  # each with spaces of its own
        left, right = halves
        _draw_strips(left, left.add_gridspec(number, 1), strips, mean)
        grid = right.add_gridspec(2, 1)
        if efficiency:
            _draw_efficiency(right.add_subplot(grid[0]), efficiency)
        if recovery:
            _draw_recovery(right.add_subplot(grid[1]), recovery)
        origins = table["provenance"]
        quick = " (QUICK: small and few runs)" if any(origin["quick"] for origin in origins.values()) else ""
        made.suptitle(
            "Killed ranks: 4 ranks under the supervisor, throughput and efficiency on emulated nodes, recovery "
            f"with real computing{quick}",
            fontsize=11,
        )


def _draw_strips(figure: Any, grid: Any, strips: list[dict[str, Any]], mean: float) -> None:
    import numpy as np

    longest = max((row["seconds"] for row in strips), default=1.0)
    before = None
    for number, row in enumerate(strips):
        ax = before = figure.add_subplot(grid[number], sharex=before)
        made = np.array(row["course"], float) / row["undisturbed"]
        edges = np.arange(len(made) + 1)
        ax.stairs(made, edges, fill=True, color=colour_of(row["way"]), alpha=0.85, lw=0)
        ax.axhline(1, color="black", lw=0.7, ls=":")
        for at in row["strikes"]:
            ax.axvline(at, color=KILL, lw=0.8, alpha=0.7)
        ax.plot(row["strikes"], [1.38] * len(row["strikes"]), ls="", marker="v", ms=6, color=KILL, clip_on=False)
        ax.set(ylim=(0, 1.35), xlim=(0, longest), yticks=[0, 0.5, 1])
        ax.set_yticklabels(["0", "50 %", "100 %"])
        ax.set_ylabel(row["way"], fontsize=11, color=colour_of(row["way"]), fontweight="bold")
        words = f"efficiency {row['efficiency']:.0%}; {_number(row['cost'], '.1f')} s lost by each kill"
        words += "" if row["finished"] else "; NOT FINISHED"
        ax.text(
            0.995,
            0.93,
            words,
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5},
        )
        frame(ax)
        ax.tick_params(labelbottom=number == len(strips) - 1)
        if not number:
            ax.set_title(
                f"New steps a second beside the undisturbed run; a rank is killed every {mean:g} s on average "
                "(triangles)",
                loc="left",
                fontsize=11,
                pad=12,
            )
        if number == len(strips) - 1:
            ax.set_xlabel("seconds since the first step (each run makes the steps that undisturbed take the same time)")


def _draw_efficiency(ax: Any, rows: list[dict[str, Any]]) -> None:
    for way in dict.fromkeys(row["way"] for row in rows):
        some = sorted((row for row in rows if row["way"] == way), key=lambda row: row["mean"])
        colour = colour_of(way)
        means = [row["mean"] for row in some]
        ax.plot(means, [row["efficiency"] for row in some], "o-", color=colour, lw=1.8, ms=5, label=way)
        ax.plot(means, [row["expected"] for row in some], "--", color=colour, lw=1)
    ticks = sorted({row["mean"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    if 60 in ticks:
        ax.plot([60], [0.81], marker="_", ms=22, mew=2, color="black", ls="")
        ax.annotate(
            "aim 81 %", (60, 0.81), xytext=(-14, -4), textcoords="offset points", ha="right", va="top", fontsize=9
        )
    least = min(min(row["efficiency"], row["expected"] or 1) for row in rows)
    bottom = 0.5 if least > 0.55 else 0.0
    marks = [bottom + (1 - bottom) * n / 5 for n in range(6)]
    ax.set_ylim(bottom, 1.01)
    ax.set_yticks(marks, [f"{mark:.0%}" for mark in marks])
    ax.set_title("Efficiency (dashed: in the long run)", loc="left", fontsize=11)
    ax.set_xlabel("mean seconds between two failures")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.grid(alpha=0.25, lw=0.5)
    frame(ax)


def _draw_recovery(ax: Any, rows: list[dict[str, Any]]) -> None:
    labels = [f"{row['size']},\n{row['way']}" for row in rows]
    for number, row in enumerate(rows):
        left = 0.0
        for phase, colour in PHASES.items():
            width = row["phases"][phase][0]
            ax.barh(number, width, left=left, color=colour, height=0.6, label=phase if not number else None)
            left += width
        middle, low, high = row["total"]
        ax.errorbar(
            middle, number, xerr=[[middle - low], [high - middle]], fmt="|", color="black", ms=14, capsize=3, lw=1
        )
        ax.annotate(
            f"{middle:.2f} s",
            (max(high, left), number),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    for aim in sorted({row["aim"] for row in rows}):
        ax.axvline(aim, color="black", lw=0.8, ls=":")
    ax.set_yticks(range(len(rows)), labels, fontsize=9)
    ax.invert_yaxis()
    right = max(max(row["total"][2], row["aim"]) for row in rows)
    ax.set_xlim(0, 1.22 * right)
    ax.set_title("From a kill to the first new step (dotted: aim)", loc="left", fontsize=11)
    ax.set_xlabel("seconds; medians of phases, quartiles of all")
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    frame(ax)

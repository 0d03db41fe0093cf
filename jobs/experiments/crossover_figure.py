"""The tables and the figure of `ringtmp.jobs.experiments.crossover`."""

from pathlib import Path
from typing import Any

from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame, legend_below
from ringtmp.jobs.lib.ways import chosen

RING, SERVER, *OTHERS = WAYS = list(chosen("ring", "bsp", "colocated", "allreduce"))
COLOURS = {label: way.colour for label, way in chosen("ring", "bsp", "colocated", "allreduce").items()}
CROSSING = "#2a7f3f"
TICKS = {
    "batch": (100, 200, 300, 500, 1000, 2000, 3000, 5000, 10000, 20000),
    "width": (10, 20, 30, 50, 100, 200, 300, 500, 1000),
}
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def show(table: dict[str, Any], page: Page) -> None:
    """Print on `page` every point of the results `table`, predicted and measured, and the crossovers."""
    setting, measured = table["setting"], table["provenance"]["rounds"] > 0
    for sweep in table["same_bytes"]:
        rows = [row for row in table["rows"] if row["sweep"] == sweep]
        fixed = "width" if sweep == "batch" else "batch"
        ways = [way for way in WAYS if way in rows[0]]
        shown = make_table(
            f"By {sweep}, {fixed} {setting[fixed]}: milliseconds of a step predicted -> measured (error of the "
            "prediction)",
            (sweep, *ways, "server / ring", "in rounds"),
            caption=f"medians of {table['provenance']['rounds']} runs, in turns; in rounds: least and most of it"
            if measured
            else "not measured",
            wrap=False,
        )
        for row in rows:
            ratio = row["ratio"]
            rounds = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if measured else ""
            steps = [_pair(row[way], 1e3, ".0f") for way in ways]
            shown.add_row(f"{row[sweep]:,}", *steps, _pair(ratio, 1, ".2f"), rounds)
        page.print(shown)
        same = table["same_bytes"][sweep]
        for each in table["crossings"]:
            if each["sweep"] == sweep:
                page.print(
                    f"  ring and {each['rival']} cost the same at {sweep} {crossed(each)}",
                    highlight=False,
                )
        page.print(
            f"  one server moves as many bytes as the link of a host inside the ring at {sweep} "
            f"{same['link']:,.0f}, as one cut of it at {same['cut']:,.0f}\n",
            highlight=False,
        )
    if measured:
        late = sorted(run["late"] for run in table["runs"])
        page.print(
            f"computing took {late[len(late) // 2]:.0%} (median of runs) to {late[-1]:.0%} longer than it is "
            "to on these nodes",
            highlight=False,
        )
    page.print("what the clock leaves out:")
    for line in table["caveats"]:
        page.print(f"  {line}", highlight=False)


def _pair(value: dict[str, float], unit: float, how: str) -> str:
    """Predicted -> measured (error)."""
    predicted = format(value["predicted"] * unit, how)
    if "measured" not in value:
        return predicted
    error = value["predicted"] / value["measured"] - 1
    return f"{predicted} -> {value['measured'] * unit:{how}} ({error:+.0%})"


def crossed(each: dict[str, Any]) -> str:
    """The crossover `each` in words: predicted, measured, and their difference."""
    predicted, measured = each["predicted"], each["measured"]
    words = f"{predicted:,.0f} (predicted)" if predicted else "none in sight (predicted)"
    if measured:
        alone = [value for value in each["rounds"] if value]
        between = f"; in single rounds {min(alone):,.0f} to {max(alone):,.0f}" if alone else ""
        words += f", {measured:,.0f} (measured{between})"
        if predicted:
            words += f": the prediction is {predicted / measured - 1:+.0%} off"
    elif each["rounds"]:
        words += ", none between the points measured"
    return words


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw the results `table` into the file `path`.

    Seconds of a step against batch and width, lines predicted and points measured; below, server / ring.
    """
    from matplotlib.lines import Line2D

    with figure(path, 2, 2, figsize=(13, 8.6), sharex="col", height_ratios=(5, 3)) as (made, axes):
        for column, sweep in enumerate(table["same_bytes"]):
            _draw_sweep(table, sweep, *axes[:, column])
        axes[0, 0].set_ylabel("seconds of a step")
        axes[1, 0].set_ylabel("one server / ring\n(below 1: the server is faster)")
        lines = {
            "crossover, predicted": (CROSSING, "--"),
            "crossover, measured": (CROSSING, "-"),
            "same bytes over the busiest link": ("#999999", ":"),
        }
        if not any(each["measured"] for each in table["crossings"] if each["rival"] == SERVER):
            del lines["crossover, measured"]
        for label, (colour, style) in lines.items():
            axes[0, 0].add_line(Line2D([], [], color=colour, lw=1.3, ls=style, label=label))
        legend_below(made, [axes[0, 0]], 4, fontsize=9)
        made.suptitle(_heading(table), fontsize=11)


def _heading(table: dict[str, Any]) -> str:
    setting, rounds = table["setting"], table["provenance"]["rounds"]
    how = f"lines predicted, points measured: medians of {rounds} runs, in turns, with least and most"
    return (
        f"{setting['hosts']} hosts, links of {setting['rate']} each way, emulated nodes of {setting['gflops']:g} "
        f"GFLOP/s, {setting['layers']} dense layers; ring of {setting['hosts']} in {setting['micro_batches']} "
        f"micro-batches, 1 server + {setting['hosts'] - 1} workers\n" + (how if rounds else "predicted, not measured")
    )


def _draw_sweep(table: dict[str, Any], sweep: str, top: Any, below: Any) -> None:
    """One column: steps above, their ratio below."""
    fixed = "width" if sweep == "batch" else "batch"
    curve = [row for row in table["curves"] if row["sweep"] == sweep]
    rows = [row for row in table["rows"] if row["sweep"] == sweep]
    cross = next(each for each in table["crossings"] if (each["sweep"], each["rival"]) == (sweep, SERVER))
    x = [row[sweep] for row in curve]
    unshared = [row["ring, links of its own"] for row in curve]
    top.fill_between(
        x,
        unshared,
        [row[RING] for row in curve],
        color=COLOURS[RING],
        alpha=0.13,
        lw=0,
        label="ring, down to links not shared",
    )
    for way in sorted(COLOURS, key=OTHERS.__contains__, reverse=True):
        main = way not in OTHERS
        look = {"lw": 2, "ls": "-", "zorder": 3} if main else {"lw": 1.2, "ls": "--", "zorder": 2}
        top.plot(x, [row[way] for row in curve], color=COLOURS[way], label=f"{way}, predicted", **look)
        points = [row for row in rows if "measured" in row.get(way, {})]
        if points:
            _points(
                top,
                [row[sweep] for row in points],
                [row[way] for row in points],
                COLOURS[way],
                main,
                f"{way}, measured",
            )
    below.plot(x, [row[SERVER] / row[RING] for row in curve], color="black", lw=1.6, label="predicted")
    points = [row for row in rows if "measured" in row["ratio"]]
    if points:
        _points(below, [row[sweep] for row in points], [row["ratio"] for row in points], "black", True, "measured")
    below.axhline(1, color="black", lw=0.8)
    for ax in (top, below):
        ax.axvline(table["same_bytes"][sweep]["link"], color="#999999", lw=1, ls=":")
        if cross["predicted"]:
            ax.axvline(cross["predicted"], color=CROSSING, lw=1.3, ls="--")
        if cross["measured"]:
            ax.axvline(cross["measured"], color=CROSSING, lw=1.3)
    below.set_xlabel({"batch": "rows of a batch", "width": "width of the layers"}[sweep])
    top.set_title(f"{fixed} {table['setting'][fixed]}: same cost at {sweep} {_short(cross)}", loc="left", fontsize=11)
    _scale(top, below, sweep, x, rows)


def _points(ax: Any, x: list[float], values: list[dict[str, float]], colour: str, main: bool, label: str) -> None:
    middle = [value["measured"] for value in values]
    bars = [
        [value["measured"] - min(value["low"], value["measured"]) for value in values],
        [max(value["high"], value["measured"]) - value["measured"] for value in values],
    ]
    ax.errorbar(
        x,
        middle,
        bars,
        fmt="o" if main else "s",
        ms=6 if main else 4,
        color=colour,
        mfc=colour if main else "white",
        capsize=3,
        lw=1.2,
        zorder=4 if main else 2.5,
        label=label,
    )


def _short(cross: dict[str, Any]) -> str:
    words = [f"{cross[key]:,.0f} {key}" for key in ("predicted", "measured") if cross[key]]
    off = f" ({cross['predicted'] / cross['measured'] - 1:+.0%})" if len(words) == 2 else ""
    return ", ".join(words) + off or "none in sight"


def _scale(top: Any, below: Any, sweep: str, x: list[float], rows: list[dict[str, Any]]) -> None:
    """Logarithmic axes with plain numbers, about as wide as the points."""
    top.set(xscale="log", yscale="log")
    below.set(yscale="log")
    left, right = max(x[0], rows[0][sweep] / 1.35), min(x[-1], rows[-1][sweep] * 1.35)
    for ax, ticks in ((top, SECONDS), (below, RATIOS)):
        ax.set_xlim(left, right)
        low, high = _limits(ax, left, right)
        ax.set_yticks(
            [tick for tick in ticks if low <= tick <= high], [f"{tick:g}" for tick in ticks if low <= tick <= high]
        )
        ax.set_ylim(low, high)
        ax.minorticks_off()
        ax.grid(alpha=0.25, lw=0.5)
        frame(ax)
    shown = [tick for tick in TICKS[sweep] if left <= tick <= right]
    below.set_xticks(shown, [f"{tick:,}" for tick in shown])


def _limits(ax: Any, left: float, right: float) -> tuple[float, float]:
    """Of what is drawn between two values of x."""
    seen = [
        y
        for line in ax.get_lines()
        for x, y in zip(*line.get_data(), strict=True)
        if len(line.get_xdata()) > 2 and left <= x <= right
    ]
    return min(seen) / 1.2, max(seen) * 1.2

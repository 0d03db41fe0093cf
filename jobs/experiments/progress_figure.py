"""The tables and the figure of `ringtmp.jobs.experiments.progress`."""

from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.ways import WAYS, colour_of

LINES = {WAYS["bsp"].label: (3.0, "-"), WAYS["ring"].label: (1.3, "--")}  # one lies on the other; width and dashes
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def show(table: dict[str, Any], page: Page) -> None:
    """Print on `page` the results `table`: quality and cost of each way, and differences beyond the spread."""
    setting, rows = table["setting"], table["rows"]
    first = rows[0]["way"]
    reached = _reached(setting, first)
    heads = [head for to in setting["targets"] for head in (f"steps to {to:g}", "samples", f"times {first}")]
    taken = make_table(
        f"Steps until the mean training loss of {setting['window']} of them was at a target",
        ("way", *heads),
        ("way",),
        caption=f"* beyond the spread of {first}",
    )
    for row in rows:
        star = {key: "*" * bool(_verdict(row, rows[0], key)) for key in _keys(setting)}
        error = row["test_error"]
        right = [100 * (1 - each) for each in (error[0], error[2], error[1])]
        reached.add_row(
            row["way"],
            f"{row['lr']:g}{'!' * row['edge']}",
            _spread(row["train_loss"], ".3g") + star["train_loss"],
            _spread(row["test_loss"], ".3g") + star["test_loss"],
            _spread(right, ".1f"),
            _number(row["updates"], ".3g"),
            f"{_number(row['staleness'], '.2f')} ({row['oldest']})",
            _number(row["staleness"] and row["staleness"] / row["updates"], ".2f"),
        )
        cells = []
        for target in setting["targets"]:
            key = f"samples to {target:g}"
            samples = row[key]
            cells.append(_spread([each and each / setting["batch"] for each in samples], ".0f") + star[key])
            cells += [_number(samples[0], ",.0f"), _spread(row[f"{key}: times {first}"], ".2f")]
        taken.add_row(row["way"], *cells)
    page.print(reached)
    page.print(taken)
    for key in _keys(setting):
        _compare(rows, key, page)


def _reached(setting: dict[str, Any], first: str) -> Any:
    """The empty table of what each way reached."""
    steps = setting["epochs"] * setting["steps_per_epoch"]
    loss = f"training loss, last {setting['tail'] * setting['steps_per_epoch']} steps"
    return make_table(
        f"After {steps} steps of {setting['batch']} samples: {setting['data']}, {setting['model']}, "
        f"{setting['optimizer']}, {setting['ranks']} ranks; median (quartiles) of {len(setting['seeds'])} seeds",
        ("way", "lr", loss, "test loss", "test accuracy %", "updates a step", "staleness", "in steps"),
        ("way",),
        caption=f"lr: tuned, ! at the edge of the grid; * beyond the spread of {first}; staleness: how many updates "
        "the weights of a gradient were behind when it was used, mean (most); and the mean in steps",
    )


def _compare(rows: list[dict[str, Any]], key: str, page: Page) -> None:
    """Say which ways have more or less of `key` than the first way beyond the spread."""
    first, others = rows[0]["way"], rows[1:]
    name = "training loss" if key == "train_loss" else key.replace("_", " ")
    words: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for row in others:
        words[_verdict(row, rows[0], key)].append(row["way"])
    page.print(
        f"{name} beside {first}: more in {_listed(words[1])}; less in {_listed(words[-1])}; within the spread in "
        f"{_listed(words[0])}",
        highlight=False,
    )
    pairs = [
        f"{a['way']} / {b['way']}"
        for n, a in enumerate(others)
        for b in others[n + 1 :]
        if not _verdict(a, b, key) and None not in (a[key][0], b[key][0])
    ]
    page.print(f"   other pairs within the spread: {'; '.join(pairs) or 'none'}", highlight=False)


def _keys(setting: dict[str, Any]) -> list[str]:
    """What ways are compared by."""
    return ["train_loss", "test_loss", *(f"samples to {target:g}" for target in setting["targets"])]


def _verdict(one: dict[str, Any], other: dict[str, Any], key: str) -> int:
    """1 or -1 if one way has more or less of it than another beyond the spread, else 0."""
    return (other["way"] in one[f"{key}: more than"]) - (one["way"] in other[f"{key}: more than"])


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _number(value: float | None, how: str) -> str:
    return "never" if value is None else format(value, how)


def _spread(three: list[float | None], how: str) -> str:
    median, low, high = (_number(value, how) for value in three)
    return median if median == low == high else f"{median} ({low} to {high})"


def curves(runs: list[dict[str, Any]], window: int) -> np.ndarray:
    """Quartiles and median (rows 0, 2 and 1) over `runs` of the loss, a mean of the last `window` steps."""
    steps = max(len(run["loss"]) for run in runs)
    smooth = []
    for run in runs:
        losses = np.array([inf if loss is None else loss for loss in run["loss"]] + [inf] * (steps - len(run["loss"])))
        smooth.append([losses[max(0, n + 1 - window) : n + 1].mean() for n in range(steps)])
    return np.percentile(smooth, [25, 50, 75], axis=0, method="nearest")


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw the results `table` into the file `path`.

    Loss against samples and updates, tests against samples, and the losses of tuning.
    """
    setting, rows = table["setting"], {row["way"]: row for row in table["rows"]}
    batch, window = setting["batch"], setting["window"]
    with figure(path, 2, 2, figsize=(13, 9)) as (made, axes):
        (samples, updates), (tests, tuning) = axes
        for way, row in rows.items():
            _draw_way(table, way, row, axes)
        for target in setting["targets"]:
            for ax in (samples, updates):
                ax.axhline(target, color="black", lw=0.7, ls=":")
        smoothed = f"training loss, mean of the last {window} steps"
        updates.set_xscale("log")
        tuning.set_xscale("log", base=2)
        tuning.set_xticks(setting["rates"], [f"{rate:g}" for rate in setting["rates"]])
        for ax, title, x, y in (
            (
                samples,
                "Loss against samples",
                "samples that gradients were computed of (every way: a batch a step)",
                smoothed,
            ),
            (
                updates,
                "Loss against updates",
                "updates of each parameter (in asp one of every worker's share of a batch)",
                smoothed,
            ),
            (tests, "Test loss against samples", "samples", "test loss"),
            (
                tuning,
                "Tuning: the same rates and seeds for all",
                "learning rate (circles: taken)",
                f"training loss, last {setting['tail'] * setting['steps_per_epoch']} steps, "
                "mean of seeds\n(missing: nan)",
            ),
        ):
            ax.set_title(title, loc="left", fontsize=11)
            ax.set(xlabel=x, ylabel=y, yscale="log")
            low, high = ax.get_ylim()
            ax.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            ax.set_ylim(low, high)
            ax.minorticks_off()
            ax.grid(alpha=0.25, which="both", lw=0.5)
            frame(ax)
        handles, labels = samples.get_legend_handles_labels()
        made.legend(handles, labels, ncols=7, loc="outside lower center", frameon=False)
        made.suptitle(
            f"{setting['data']}, {setting['model']}, batch {batch}, {setting['optimizer']}, {setting['ranks']} ranks "
            "on "
            f"emulated nodes; each way with its own tuned rate; median and quartiles of {len(setting['seeds'])} seeds",
            fontsize=11,
        )


def _draw_way(table: dict[str, Any], way: str, row: dict[str, Any], axes: Any) -> None:
    """The curves of one way in all four axes."""
    (samples, updates), (tests, tuning) = axes
    batch, window = table["setting"]["batch"], table["setting"]["window"]
    runs = [run for run in table["runs"] if run["way"] == way]
    width, dashes = LINES.get(way, (1.6, "-"))
    look = {"color": colour_of(way), "lw": width, "ls": dashes}
    low, middle, high = curves(runs, window)
    steps = np.arange(1, len(middle) + 1)
    for ax, x in ((samples, steps * batch), (updates, steps * (row["updates"] or 1))):
        ax.plot(x, middle, label=way, zorder=3, **look)
        ax.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    found = {
        int(step): [run["tests"][n][1] for run in runs if len(run["tests"]) > n]
        for n, (step, *_) in enumerate(runs[0]["tests"])
    }
    spread = np.array([np.percentile(values, [25, 50, 75]) for values in found.values()]).reshape(-1, 3)
    x = np.array(list(found)) * batch
    tests.plot(x, spread[:, 1], marker="o", ms=4, label=way, **look)
    tests.fill_between(x, spread[:, 0], spread[:, 2], color=look["color"], alpha=0.15, lw=0)
    tried = [trial for trial in table["tuning"] if trial["way"] == way]
    rates = sorted({trial["lr"] for trial in tried})
    means = [_mean([trial["train_loss"] for trial in tried if trial["lr"] == rate]) for rate in rates]
    tuning.plot(rates, means, marker=".", label=way, **look)
    tuning.plot(row["lr"], means[rates.index(row["lr"])], "o", ms=9, mfc="none", mew=1.8, color=look["color"])


def _mean(values: list[float | None]) -> float:
    return float(np.mean([np.nan if value is None else value for value in values]))

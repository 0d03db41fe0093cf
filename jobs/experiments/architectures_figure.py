"""The picture of `jobs.experiments.architectures`, drawn from its file of results.

Usage: python -m jobs.experiments.architectures_figure
"""

from pathlib import Path
from typing import Any

from jobs.experiments.store import places, read

COLOURS = {
    "ring": "#d1495b",
    "one server": "#30638e",
    "servers": "#00a6a6",
    "colocated": "#edae49",
    "all-reduce": "#555555",
}
LABELS = {"servers": "p/8 servers"}


def draw(table: dict[str, Any], path: Path) -> None:
    """Step time and idle share against nodes, weak and strong; step time against the batch, narrow and wide."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    facts, rows, sweep = table["provenance"], table["rows"], table["sweep"]
    setting = facts["setting"]
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    titles = {"weak": f"weak scaling: {facts['rows']} rows a node", "strong": f"strong scaling: batch {facts['batch']}"}
    for column, (scaling, title) in enumerate(titles.items()):
        chosen = [row for row in rows if row["scaling"] == scaling]
        for ax, key in ((axes[0, column], "step_seconds"), (axes[1, column], "idle")):
            _lines(ax, chosen, "nodes", key)
            ax.set_xlabel("nodes")
            ax.set_xticks(
                sorted({row["nodes"] for row in chosen}), [f"{p}" for p in sorted({r["nodes"] for r in chosen})]
            )
            ax.minorticks_off()
        axes[0, column].set_title(title, loc="left", fontsize=10)
        axes[0, column].set_ylabel("seconds of a step")
        axes[1, column].set_ylabel("idle share of ranks or workers")
        axes[1, column].set_ylim(0.001, 1.3)
    for ax, scaling in zip(axes[:, 2], dict.fromkeys(row["scaling"] for row in sweep), strict=False):
        chosen = [row for row in sweep if row["scaling"] == scaling]
        least = {row["batch"]: row["step_seconds"] for row in chosen if row["name"] == "ring"}
        _lines(ax, [row | {"times": row["step_seconds"] / least[row["batch"]]} for row in chosen], "batch", "times")
        nodes = chosen[0]["nodes"]
        ax.set_title(f"{nodes} nodes, {nodes} layers of {scaling}: below 1 the ring loses", loc="left", fontsize=10)
        ax.set_xlabel("rows of a batch")
        ax.set_ylabel("seconds of a step, times the ring's")
        width = int(scaling.split()[1])
        for each in table["crossovers"]:
            if each["width"] == width and "traffic" in each:
                ax.axvline(
                    each["traffic"],
                    color=COLOURS["one server"],
                    lw=1,
                    ls=":",
                    label="one server moves as\nmany bytes as a cut",
                )
        ax.legend(*([each[-1]] for each in ax.get_legend_handles_labels()), fontsize=8, frameon=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="outside lower center", frameon=False)
    figure.suptitle(
        f"Simulated: {setting['layers']} dense layers of {setting['width']}, {setting['gflops']:g} GFLOP/s a node, "
        f"links of {setting['bandwidth'] / 125e6:g} Gbit/s and {setting['latency'] * 1e6:g} us"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(ax: Any, rows: list[dict[str, Any]], x: str, y: str) -> None:
    for name, colour in COLOURS.items():
        points = [(row[x], max(row[y], 1e-4)) for row in rows if row["name"] == name]
        ax.plot(
            *zip(*points, strict=True),
            "o-",
            ms=3.5,
            lw=2 if name == "ring" else 1.3,
            color=colour,
            label=LABELS.get(name, name),
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(alpha=0.25)


if __name__ == "__main__":
    result, figure = places("architectures")
    draw(read(result), figure)

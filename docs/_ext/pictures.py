"""The pictures of the explanations, drawn from the product itself whenever the pages are built.

Plans and the local rule run under the simulator's clock, as `ringtmp draw` shows them; where the ring and the server
differ a small drawing shows who talks to whom. The files lie in docs/_generated, which git ignores.
"""

import io
import math
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

FOLDER = Path(__file__).resolve().parents[1] / "_generated"
RANKS, MICRO_BATCHES = 4, 6
ACTION = 1e-3  # seconds of an action, so that the axis of milliseconds counts actions

RING, SERVER, BACK, GREY = "#0072B2", "#30638e", "#009E73", "#888888"


def _events(order: str, steps: int = 1, ranks: int = RANKS, micro_batches: int = MICRO_BATCHES) -> Any:
    """Events of `steps` chained steps of a plan, or of the local rule (``rule``)."""
    from ringtmp.schedule.registry import build
    from ringtmp.simulate.pipeline import Scene, simulate

    plan = None if order == "rule" else build(order, ranks, micro_batches, 1)
    scene = Scene.even(ranks, micro_batches, times=(ACTION, ACTION, ACTION))
    return simulate(scene, plan, steps=steps, log=True).events()


def _save(figure: Any, name: str) -> None:
    """Write the figure as SVG, unless the file has these contents already: Sphinx would read its pages again."""
    import matplotlib.pyplot as plt

    made = io.StringIO()
    figure.savefig(made, format="svg", metadata={"Date": None})
    plt.close(figure)
    path = FOLDER / f"{name}.svg"
    if not path.exists() or path.read_text() != made.getvalue():
        path.write_text(made.getvalue())


# ---- Gantt charts ----------------------------------------------------------------------------------------------------


def _charts(name: str, rows: list[tuple[str, Any]], until: float = 0.0) -> None:
    """Gantt charts below each other on one time scale: a title and the events of each; cut off at `until` if not 0."""
    import matplotlib.pyplot as plt

    from ringtmp.analysis import draw_gantt

    figure, grid = plt.subplots(
        len(rows), 1, figsize=(9.0, 0.5 + 1.5 * len(rows)), layout="constrained", squeeze=False, sharex=True
    )
    axes = grid[:, 0]
    span = 0.0
    for ax, (title, events) in zip(axes, rows, strict=True):
        draw_gantt(events, ax)
        span = max(span, ax.get_xlim()[1])
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("")
    legends = [ax.get_legend_handles_labels() for ax in axes]
    entries = {label: handle for found in legends for handle, label in zip(*found, strict=True)}
    for ax in axes:
        ax.get_legend().remove()
        ax.set_xlim(0, until or span)
    axes[-1].set_xlabel("time; F, I and W of a micro-batch take a rank 1 each")
    figure.legend(entries.values(), entries.keys(), ncols=5, loc="outside upper center", frameon=False, fontsize=8)
    _save(figure, name)


def plans() -> None:
    """One step of four plans, and of the local rule."""
    names = {
        "naive": "naive: one rank works, the others wait (72 in all)",
        "gpipe": "GPipe: all forwards, then all backwards",
        "1f1b": "1F1B: a backward as soon as there is one",
        "zb-h2": "ZB-H2: W is put off into the gaps",
        "rule": "no plan: the local rule of each rank",
    }
    _charts("plans", [(title, _events(name)) for name, title in names.items()], until=30)


def steps() -> None:
    """Three chained steps of 1F1B and of the rule: where a step's end is filled by the next one."""
    rows = [(title, _events(name, 3)) for name, title in (("1f1b", "1F1B"), ("rule", "the local rule"))]
    _charts("steps", rows)


def moments() -> None:
    """The same step of the rule at four moments: what has been run so far."""
    events = _events("rule", 2)
    titles = {
        4: "after 4 actions: the first micro-batch has reached the last rank",
        7: "after 7: its gradient has reached rank 1; rank 0 has no forward left, and waits for it",
        14: "after 14: input gradients go first, and W fills the time in which a rank would wait",
        24: "after 24: each rank has updated when its own W were done, rank 0 first, and runs the next step",
    }
    _charts("moments", [(title, events[events["end"] <= until * 1e6 + 1]) for until, title in titles.items()])


# ---- who talks to whom -----------------------------------------------------------------------------------------------


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set_aspect("equal")
    ax.axis("off")
    return figure, ax


def _node(ax: Any, x: float, y: float, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6}
    ax.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box, zorder=3)


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    style = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.5}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, shrinkA=30, shrinkB=30, zorder=2, **style))


def ring() -> None:
    """Four ranks in a ring: activations, gradients, labels."""
    figure, ax = _canvas(6.4, 4.6)
    radius = 2.0
    places = [(radius * math.sin(a), radius * math.cos(a)) for a in (-math.pi / 4, math.pi / 4, 2.356, -2.356)]
    for rank, place in enumerate(places):
        _node(ax, *place, f"rank {rank}\nlayers {3 * rank} to {3 * rank + 2}", RING)
    for rank in range(3):
        _arrow(ax, places[rank], places[rank + 1], RING, -0.22)
        _arrow(ax, places[rank + 1], places[rank], BACK, -0.22)
    _arrow(ax, places[0], places[3], GREY, 0.22)
    _arrow(ax, places[3], places[0], GREY, 0.22)
    ax.text(0, radius * 0.98, "activations", color=RING, ha="center", fontsize=10)
    ax.text(0, radius * 0.38, "gradients", color=BACK, ha="center", fontsize=10)
    ax.text(-2.35, 0, "labels,\norders", color=GREY, ha="center", va="center", fontsize=10)
    ax.text(-0.52, 0, "losses,\nwaits", color=GREY, ha="center", va="center", fontsize=10)
    ax.text(-radius * 0.71 - 1.55, radius * 0.71, "data", color=GREY, ha="center", va="center", fontsize=10)
    height, arrow = radius * 0.71, {"arrowstyle": "-|>", "color": GREY}
    ax.annotate("", (-height - 0.75, height), (-height - 1.3, height), arrowprops=arrow)
    ax.set_xlim(-3.3, 2.9)
    ax.set_ylim(-2.2, 2.4)
    _save(figure, "ring")


def server() -> None:
    """One server: a star."""
    figure, ax = _canvas(4.6, 3.4)
    _node(ax, 0, 1.7, "rank 0: server\nall parameters", SERVER)
    for rank, x in enumerate((-2.0, 0.0, 2.0), 1):
        _node(ax, x, -1.2, f"rank {rank}\nall layers", RING)
        _arrow(ax, (x, -1.2), (0.15 * x, 1.7), BACK, 0.12)
        _arrow(ax, (0.15 * x, 1.7), (x, -1.2), SERVER, 0.12)
    ax.text(-2.1, 0.5, "gradients", color=BACK, fontsize=10, ha="center")
    ax.text(2.1, 0.5, "weights", color=SERVER, fontsize=10, ha="center")
    ax.set_xlim(-2.9, 2.9)
    ax.set_ylim(-2.0, 2.5)
    _save(figure, "server")


def colocated() -> None:
    """Colocated servers: everybody sends to everybody."""
    figure, ax = _canvas(4.6, 3.4)
    places = [(-1.7, 1.5), (1.7, 1.5), (1.7, -1.2), (-1.7, -1.2)]
    for rank, place in enumerate(places):
        _node(ax, *place, f"rank {rank}: all layers\nserves 1/4", RING)
        for other in range(4):
            if other != rank:
                _arrow(ax, place, places[other], GREY, 0.1)
    ax.set_xlim(-2.9, 2.9)
    ax.set_ylim(-2.0, 2.5)
    _save(figure, "colocated")


def draw(app: Sphinx) -> None:
    """Draw all pictures."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "ringtmp", "svg.fonttype": "path"})
    FOLDER.mkdir(exist_ok=True)
    for picture in (ring, plans, moments, steps, server, colocated):
        picture()


def setup(app: Sphinx) -> dict[str, Any]:
    """Draw before the pages are read."""
    app.connect("builder-inited", draw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

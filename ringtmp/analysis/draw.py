"""Pictures of events with Matplotlib: plans, simulations and traces as the same Gantt chart."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ringtmp.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RGB = tuple[float, float, float]
Shades = dict[tuple[str, int], RGB]  # by kind and chunk

# Okabe-Ito: distinguishable for colour-blind readers and in print. B (I and W in one action) lies between these two.
COLOURS = {
    "F": "#0072B2",
    "B": "#7A9A2E",
    "I": "#009E73",
    "W": "#E69F00",
    "U": "#CC79A7",
    "E": "#56B4E9",
    "send": "#000000",
    "replicate": "#5B4B8A",
    "receive": "#777777",
    "wait": "#EEEEEE",
    "data": "#F0E442",
    "checkpoint": "#D55E00",
    "trace": "#A0522D",
    "balance": "#B22222",
    "across": "#33302E",
}
_NAMES = {
    "F": "F forward",
    "B": "B input and weight gradient",
    "I": "I input gradient",
    "W": "W weight gradient",
    "U": "U update",
    "E": "E evaluation",
}
_NUMBERED = "FBIW"  # kinds that show their micro-batch and have a shade per chunk
_HEIGHT = 0.8  # of a bar; rows are 1 apart
_FONT, _SMALLEST = 6.0, 4.5  # points, of micro-batch numbers
_EDGE = 0.3  # points


def draw_gantt(
    events: pd.DataFrame, ax: "Axes | None" = None, *, steps: tuple[int, int] | None = None, numbers: bool = True
) -> "Axes":
    """Draw the events of each rank as a row of a Gantt chart.

    Later chunks of a rank have lighter shades; for data-parallel workers, later layers.

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.
    ax : Axes, optional
        Axes to draw on; default: a new figure.
    steps : (int, int), optional
        First and last step to show.
    numbers : bool
        Write micro-batch numbers into bars that are wide enough (for workers only if they have several).

    Raises
    ------
    UserError
        There are no events, or none of `steps`.

    Returns
    -------
    Axes
        Time in milliseconds on the x axis, ranks downwards on the y axis.
    """
    if events.empty:
        raise UserError("there are no events to draw")
    workers = _are_workers(events)
    events = events.assign(chunk=_chunks(events))
    chunks = int(events["chunk"].max()) + 1
    if steps:
        first, last = events["step"].min(), events["step"].max()
        events = events[events["step"].between(*steps)]
        if events.empty:
            raise UserError(f"steps {steps[0]} to {steps[1]}: the trace holds steps {first} to {last}")
    ranks = sorted(events["rank"].unique())
    zero = events["start"].min()
    bars = events.assign(left=(events["start"] - zero) / 1e6, right=(events["end"] - zero) / 1e6)
    span = max(bars["right"].max(), 1e-6)
    ax = _prepared(ax, ranks, span)
    points = ax.bbox.width / ax.figure.dpi * 72 / span  # printer's points per millisecond
    shades = {
        (kind, chunk): _shade(colour, chunk, chunks) for kind, colour in COLOURS.items() for chunk in range(chunks)
    }
    _add_bars(ax, bars, points, shades)
    if numbers and not (workers and bars.loc[bars["kind"] == "F", "micro_batch"].nunique() <= 1):
        _write_numbers(ax, bars, points, shades)
    _add_legend(ax, chunks, "layers" if workers else "chunks")
    return ax


def _are_workers(events: pd.DataFrame) -> bool:
    """Whether several ranks run the same stage: data-parallel workers, whose stages are layers."""
    forwards = events[events["kind"] == "F"]
    return bool((forwards.groupby("stage")["rank"].nunique() > 1).any())


def _chunks(events: pd.DataFrame) -> pd.Series:
    """The chunk of each numbered event: the index of its stage among the stages of its rank; 0 for other events."""
    numbered = events[events["kind"].isin(list(_NUMBERED))]
    chunk = numbered.groupby("rank")["stage"].rank("dense").astype(int) - 1
    return chunk.reindex(events.index, fill_value=0)


def _prepared(ax: "Axes | None", ranks: list[int], span: float) -> "Axes":
    """Axes with a row per rank; a new figure is laid out at once, so that the width of bars is known."""
    import matplotlib.pyplot as plt

    figure = None
    if ax is None:
        height = 0.5 if len(ranks) <= 16 else 0.25
        figure, ax = plt.subplots(figsize=(12, 1.0 + height * len(ranks)), layout="constrained")
    ax.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlim(0, 1.002 * span)  # an update at the very end is a line
    ax.set_ylim(max(ranks) + 0.5, min(ranks) - 0.5)
    ax.set_xlabel("milliseconds")
    if figure is not None:
        figure.draw_without_rendering()
    return ax


def _add_bars(ax: "Axes", bars: pd.DataFrame, points: float, shades: Shades) -> None:
    """Add one collection per kind and chunk: 25,000 bars are drawn and saved in 0.6 s."""
    from matplotlib.collections import PolyCollection

    for kind, colour in COLOURS.items():
        some = bars[bars["kind"] == kind]
        for number, (chunk, mine) in enumerate(some.groupby("chunk")):
            width = (mine["right"] - mine["left"]).to_numpy() * points
            # A narrow bar would consist of its edge only, so it has none; an update stays visible however short it is.
            edged = width > 8 * _EDGE if kind in _NUMBERED else (width < 1) & (kind == "U")
            rectangles = PolyCollection(
                _rectangles(mine),
                facecolors=shades[kind, chunk],
                edgecolors="white" if kind in _NUMBERED else colour,
                linewidths=np.where(edged, _EDGE if kind in _NUMBERED else 1.0, 0.0),
                label=_NAMES.get(kind, kind) if number == 0 else "_",
            )
            ax.add_collection(rectangles, autolim=False)


def _rectangles(bars: pd.DataFrame) -> Any:
    """Corners of the bars, array [bars, 4, 2]."""
    left, right = bars["left"].to_numpy(), bars["right"].to_numpy()
    top, bottom = bars["rank"].to_numpy() - _HEIGHT / 2, bars["rank"].to_numpy() + _HEIGHT / 2
    return np.stack([np.stack([left, left, right, right], 1), np.stack([top, bottom, bottom, top], 1)], 2)


def _write_numbers(ax: "Axes", bars: pd.DataFrame, points: float, shades: Shades) -> None:
    """Write the micro-batch on each bar that is wide enough; consecutive parts of one W share a number."""
    bars = bars[bars["kind"].isin(list(_NUMBERED))].sort_values(["rank", "left"])
    same = ["rank", "kind", "stage", "step", "micro_batch"]
    apart = (bars[same] != bars[same].shift()).any(axis=1) | (bars["left"] - bars["right"].shift() > 0.5 / points)
    runs = bars.groupby(apart.cumsum()).agg(
        {"rank": "first", "kind": "first", "chunk": "first", "micro_batch": "first", "left": "first", "right": "last"}
    )
    digits = runs["micro_batch"].astype(str).str.len()
    runs["font"] = (((runs["right"] - runs["left"]) * points - 1.4) / (0.64 * digits)).clip(upper=_FONT)
    for run in runs[runs["font"] >= _SMALLEST].itertuples():
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": run.font, "clip_on": True}
        middle = (run.left + run.right) / 2
        ax.text(middle, run.rank, str(run.micro_batch), color=_ink(shades[run.kind, run.chunk]), **style)


def _shade(colour: str, chunk: int, chunks: int) -> RGB:
    """The colour of a kind on a chunk: later chunks are closer to white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - (1 - part) * (1 - 0.9 * chunk / chunks) for part in to_rgb(colour))
    return red, green, blue


def _ink(background: RGB) -> str:
    """Black or white, whichever has the higher contrast to `background` (relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.35 else "white"


def _add_legend(ax: "Axes", chunks: int, name: str) -> None:
    """Add a patch per kind, and one that shows the shades of the chunks (or layers: `name`)."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    colours = {_NAMES.get(kind, kind): colour for kind, colour in COLOURS.items()}
    labels = ax.get_legend_handles_labels()[1]
    handles: list[Any] = [Patch(facecolor=colours[label]) for label in labels]
    if chunks > 1:
        handles.append(tuple(Patch(facecolor=_shade("#555555", chunk, chunks)) for chunk in range(chunks)))
        labels.append(f"{name} 0 to {chunks - 1}")
    inches = ax.bbox.width / ax.figure.dpi
    ax.legend(
        handles,
        labels,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        fontsize=8,
        frameon=False,
        ncols=max(1, min(len(labels), int(inches / 1.3))),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )

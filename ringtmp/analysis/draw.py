"""Pictures of events with Matplotlib."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from ringtmp.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito: told apart by colour-blind readers and in print.
COLOURS = {
    "F": "#0072B2", "I": "#009E73", "W": "#E69F00", "U": "#CC79A7", "E": "#56B4E9", "send": "#000000",
    "receive": "#555555", "wait": "#EEEEEE", "checkpoint": "#D55E00", "data": "#F0E442",
}  # fmt: skip
_NAMES = {
    "F": "F forward", "I": "I input gradient", "W": "W weight gradient", "U": "U update", "E": "E evaluation",
}  # fmt: skip


def draw_gantt(
    events: pd.DataFrame, ax: "Axes | None" = None, *, steps: tuple[int, int] | None = None, numbers: bool = True
) -> "Axes":
    """Draw what each rank did, one row a rank.

    Parameters
    ----------
    events : DataFrame
        As `Run.events` gives it.
    ax : Axes, optional
        Where to draw; by default a new figure.
    steps : (int, int), optional
        First and last step to show.
    numbers : bool
        Whether to write micro-batch numbers into bars that have room.

    Raises
    ------
    UserError
        The trace holds none of these steps.

    Returns
    -------
    Axes
        Time in milliseconds to the right, ranks downwards.
    """
    import matplotlib.pyplot as plt

    if steps:
        first, last = events["step"].min(), events["step"].max()
        events = events[events["step"].between(*steps)]
        if events.empty:
            raise UserError(f"steps {steps[0]} to {steps[1]}: the trace holds steps {first} to {last}")
    ranks = sorted(events["rank"].unique())
    if ax is None:
        _, ax = plt.subplots(figsize=(12, 0.6 + 0.5 * len(ranks)), layout="constrained")
    zero = events["start"].min()
    span = max(events["end"].max() - zero, 1)
    for kind, colour in COLOURS.items():
        some = events[events["kind"] == kind]
        if some.empty:
            continue
        for rank in ranks:
            mine = some[some["rank"] == rank]
            bars = list(zip((mine["start"] - zero) / 1e6, (mine["end"] - mine["start"]) / 1e6, strict=True))
            style: dict[str, Any] = {"facecolors": colour, "edgecolor": "white" if kind in "FIW" else "none"}
            ax.broken_barh(
                bars,
                (rank - 0.4, 0.8),
                linewidth=0.3,
                label=_NAMES.get(kind, kind) if rank == ranks[0] else None,
                **style,
            )
            if numbers and kind in "FIW":
                _write_numbers(ax, mine, zero, span, rank)
    ax.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    ax.set_xlim(0, span / 1e6)
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds")
    ax.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    return ax


def _write_numbers(ax: "Axes", bars: pd.DataFrame, zero: int, span: int, rank: int) -> None:
    for bar in bars[(bars["end"] - bars["start"]) > 0.008 * span].itertuples():
        middle = (bar.start + bar.end) / 2 - zero
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6, "color": "white", "clip_on": True}
        ax.text(middle / 1e6, rank, str(bar.micro_batch), **style)

"""One style for every figure: Matplotlib without a screen, axes with two spines, a file that is complete or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, dpi: int = 110, **more: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its array of axes [rows, columns]; write the figure to `path` at the end of the block.

    Parameters
    ----------
    path : Path
        File of the picture; its folder is made.
    rows, columns : int
        Rows and columns of axes; 0 rows: no axes.
    dpi : int
        Pixels per inch.
    **more
        For `matplotlib.pyplot.subplots` (or `figure`), such as `figsize` and `sharex`.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    if rows:
        made, axes = plt.subplots(rows, columns, layout="constrained", squeeze=False, **more)
    else:
        made, axes = plt.figure(layout="constrained", **more), None
    yield made, axes
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=dpi)
    plt.close(made)


def frame(*axes: Any) -> None:
    """Hide the upper and the right spine of each of `axes`."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


def legend_below(made: Any, axes: Any, columns: int = 0, **more: Any) -> None:
    """Draw one legend for a figure, below it, with every label of its axes once.

    Parameters
    ----------
    made : Figure
        The figure.
    axes : iterable of Axes
        Axes whose labels are shown.
    columns : int
        Columns of the legend; 0: one for each label.
    **more
        For `Figure.legend`.
    """
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    made.legend(
        entries.values(), entries, ncols=columns or len(entries), loc="outside lower center", frameon=False, **more
    )

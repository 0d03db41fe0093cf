"""One style for every figure: Matplotlib without a screen, axes with two spines, a file that is whole or absent."""

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
        Of a picture; its folder is made.
    rows, columns : int
        Of axes; 0 rows: no axes.
    dpi : int
        Pixels per inch.
    **more
        For `matplotlib.pyplot.subplots` (or `figure`), as `figsize` and `sharex`.
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
    """Take the upper and the right spine from axes."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


def legend_below(made: Any, axes: Any, columns: int = 0, **more: Any) -> None:
    """One legend for a figure, below it, with every label of its axes once."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    made.legend(
        entries.values(), entries, ncols=columns or len(entries), loc="outside lower center", frameon=False, **more
    )

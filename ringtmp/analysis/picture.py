"""Events as a file: a Gantt chart, or a trace for ui.perfetto.dev, by the ending of the file's name."""

from typing import TYPE_CHECKING

from ringtmp.analysis import draw_gantt, perfetto, write_perfetto
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

ENDINGS = (".png", ".svg", ".pdf", *perfetto.ENDINGS)


def write(events: "DataFrame", path: str, steps: tuple[int, int] | None = None, label: str = "") -> None:
    """Write events as a Gantt chart or for Perfetto, by the ending of `path`, and print the path.

    Parameters
    ----------
    events : DataFrame
        Table with columns `rank`, `kind`, `start`, `end` (nanoseconds), `step`, `micro_batch` and `stage`.
    path : str
        File name that ends in one of `ENDINGS`; an existing file is replaced.
    steps : (int, int), optional
        First and last step to show; by default all.
    label : str
        Label of the chart's time axis; empty: the usual one.

    Raises
    ------
    UserError
        `path` has another ending, or cannot be written.
    """
    check_ending(path)
    if path.endswith(perfetto.ENDINGS):
        write_perfetto(events[events["step"].between(*steps)] if steps else events, path)
    else:
        _picture(events, steps, path, label)
    print(f"written to {path}")


def check_ending(path: str) -> None:
    """Raise `UserError` unless `path` ends in one of `ENDINGS`."""
    if not path.endswith(ENDINGS):
        endings = ", ".join(ENDINGS)
        raise UserError(f"out: expected a file that ends in {endings}, got {path!r}")


def _picture(events: "DataFrame", steps: tuple[int, int] | None, path: str, label: str) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    ax = draw_gantt(events, steps=steps)
    if label:
        ax.set_xlabel(label)
    try:
        plt.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"out: {path} cannot be written: {error.strerror or error}") from None
    finally:
        plt.close()

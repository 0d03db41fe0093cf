"""The registry of data formats: what a format returns, and how one is added.

A format is one function in one file. It is added by a decorator, here or in a module outside ringtmp that is imported
before the data are opened, or that an installed plug-in names (`ringtmp.kernels.registry`):

    from ringtmp.data.registry import Request, Source, data_format

    @data_format("a .csv file with the label in its last column", suffixes=(".csv",))
    def open_csv(request: Request) -> Source:
        table = np.loadtxt(request.path, delimiter=",")
        return Source(request.spec, table[:, :-1], table[:, -1].astype(np.int64))
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ringtmp.errors import UserError
from ringtmp.kernels.registry import load_plugins

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Samples and targets, as a format returns them.

    Each of `x`, `y`, `x_test` and `y_test` is an array, or, for data that are read row by row while training, an
    object with `shape`, `dtype` and `len` that takes slices and ascending row numbers, such as an HDF5 data set.

    Attributes
    ----------
    name : str
        Name of the data in messages.
    x : array [n, ...]
        Samples, numbers of any type.
    y : array [n] or [n, outputs]
        Targets: whole numbers from 0 for classes, else values.
    x_test, y_test : array or None
        A separate test set, if the data have one.
    images : bool
        Whether samples are images, which are normalised with one mean and deviation.
    alphabet : str
        Characters of a text, in the order of their tokens; its `x` and `y` are tokens [n, places].
    """

    name: str
    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    _: KW_ONLY
    images: bool = False
    alphabet: str = ""


class Request(NamedTuple):
    """The data that a format has to open.

    Attributes
    ----------
    spec : str
        The setting `data`.
    test_fraction : float
        Share of samples to hold out, in 0..1. Only a format whose test set is no random choice needs it.
    context : int
        Characters of a sample of text that the model states; 0: none.
    """

    spec: str
    test_fraction: float = 0.2
    context: int = 0

    @property
    def path(self) -> Path:
        """`spec` as a path."""
        return Path(self.spec)


class Format(NamedTuple):
    """A registered format; see `data_format`."""

    open: Callable[[Request], Source]
    shown: str
    matches: Callable[[str], bool]
    name: str


formats: list[Format] = []  # in the order in which they are tried


def format_of(spec: str) -> Format | None:
    """The first format that accepts the setting `spec`, or None; if no known one does, plug-ins are imported."""
    for _ in range(2):
        for each in formats:
            if each.matches(spec):
                return each
        load_plugins()
    return None


def data_format(
    shown: str,
    *,
    name: str = "",
    prefix: str = "",
    suffixes: Sequence[str] = (),
    matches: Callable[[str], bool] | None = None,
) -> Callable[[Callable[[Request], Source]], Callable[[Request], Source]]:
    """Register the function below as a data format. Exactly one of the last four parameters is given.

    Parameters
    ----------
    shown : str
        Form of `--data` in messages: "a .npz file".
    name : str
        The whole setting, of a data set with a name.
    prefix : str
        Beginning of the setting.
    suffixes : sequence of str
        Endings of the names of files, each with its dot.
    matches : callable
        Whether a setting is of this format.
    """

    def is_of_format(spec: str) -> bool:
        if name:
            return spec == name
        if prefix:
            return spec.startswith(prefix)
        return matches(spec) if matches else Path(spec).suffix in suffixes and not Path(spec).is_dir()

    def register(function: Callable[[Request], Source]) -> Callable[[Request], Source]:
        formats.append(Format(function, shown, is_of_format, name))
        return function

    return register


_KEYS = ("x", "y", "x_test", "y_test")


def source_by_keys(path: Path, keys: Sequence[str], get: Callable[[str], Any]) -> Source:
    """Make the source of a file that holds arrays by name: x and y, and perhaps x_test and y_test.

    Parameters
    ----------
    path : Path
        Path of the file, for messages.
    keys : sequence of str
        Names that the file holds.
    get : callable
        Returns the array of a name.

    Raises
    ------
    UserError
        The file lacks an array.
    """
    for key in ("x", "y"):
        if key not in keys:
            raise UserError(f"{path}: has no {key!r}; it holds {', '.join(keys) or 'nothing'}")
    if ("x_test" in keys) != ("y_test" in keys):
        raise UserError(f"{path}: has one of 'x_test' and 'y_test'; expected both or neither")
    return Source(str(path), *(get(key) for key in _KEYS if key in keys))

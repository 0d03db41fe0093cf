"""Data sets as trainers see them: a fixed split, a stated normalisation, and rows on request.

Only rank 0 of a ring opens data. Arrays in memory are normalised once; an HDF5 file is read row by row, so that it may
be larger than memory.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringtmp.data.measure import Measure
from ringtmp.data.registry import Source
from ringtmp.data.sources import open_source
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Array = NDArray[Any]

_COUNTED = 10_000_000  # most labels that `DataSet.most_frequent` counts
_SPLIT_KEY = np.array([0x52494E47, 0], np.uint64)  # fixed, so that runs with different seeds hold out the same samples


@dataclass(frozen=True)
class DataInfo:
    """Facts on the data that every rank needs; run folder and checkpoint store them.

    Attributes
    ----------
    name : str
        The setting `data`.
    sample_shape : tuple of int
        Shape of one sample, such as (64,) or (28, 28).
    target : str
        `classes` or `values`.
    outputs : int
        Number of classes, or of values per sample.
    labels : int
        Labels per sample: 1, or the characters of a sample of text.
    n_train, n_test : int
        Samples of each split.
    normalisation : dict
        `kind` (feature, global or none), `mean` and `std` of x over the training samples, and for values
        `target_mean` and `target_std`.
    digest : str
        SHA-256 of all samples and targets.
    alphabet : str
        Characters of a text, in the order of their tokens; empty for other data.
    """

    name: str
    sample_shape: tuple[int, ...]
    target: str
    outputs: int
    n_train: int
    n_test: int
    normalisation: dict[str, Any]
    digest: str
    labels: int = 1
    alphabet: str = ""

    def to_json(self) -> dict[str, Any]:
        """Convert to a dict of plain values."""
        return asdict(self) | {"sample_shape": list(self.sample_shape)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataInfo":
        """The reverse of `to_json`, from its result `values`."""
        return cls(**values | {"sample_shape": tuple(values["sample_shape"])})


class DataSet:
    """An open data set.

    Parameters
    ----------
    info : DataInfo
        Facts on the data.
    dtype : numpy dtype
        Floating-point type of the samples as they are read.
    parts : dict
        The splits, `train` and `test`.
    """

    def __init__(self, info: DataInfo, dtype: np.dtype, parts: "dict[str, _Part]") -> None:
        self.info, self.dtype, self._parts = info, dtype, parts
        self._scale = Scale(info.normalisation, dtype)

    def read(self, split: str, indices: NDArray[np.int64], x_out: Array, y_out: Array) -> None:
        """Read samples. Only their rows are read from a file.

        Parameters
        ----------
        split : {"train", "test"}
            Split to read from.
        indices : int64 array [m]
            Numbers of the samples within the split, from 0.
        x_out : array [m, features]
            Receives samples of type `dtype`; of a text int64 tokens.
        y_out : array [m, labels] or [m, outputs]
            Receives int64 labels, or values of type `dtype`.
        """
        part = self._parts[split]
        rows = indices if part.rows is None else part.rows[indices]
        if part.ready:
            # Indices are in range: mode="clip" spares the buffered, checking path (3 times slower).
            part.x.take(rows, axis=0, out=x_out, mode="clip")
            part.y.take(rows, axis=0, out=y_out.reshape(len(rows), *part.y.shape[1:]), mode="clip")
            return
        x_out[...] = self._scale.inputs(_rows(part.x, rows).reshape(len(rows), -1))
        y = _rows(part.y, rows)
        y = y.reshape(len(rows), -1)
        y_out.reshape(len(rows), -1)[...] = y if y_out.dtype.kind == "i" else self._scale.targets(y)

    def most_frequent(self, split: str) -> float:
        """Share of the most frequent class among the labels of `split`; NaN for values, and for very many labels."""
        part = self._parts[split]
        count = len(part.y if part.rows is None else part.rows) * self.info.labels
        if self.info.target != "classes" or not 0 < count <= _COUNTED:
            return float("nan")
        labels = part.y[...] if part.rows is None else _rows(part.y, part.rows)
        return float(np.bincount(np.asarray(labels, dtype=np.int64).ravel()).max() / labels.size)


@dataclass
class _Part:
    """One split.

    Attributes
    ----------
    x, y : array or HDF5 data set
        Samples and targets.
    rows : int64 array or None
        The rows of `x` and `y` that belong to the split; None: all.
    ready : bool
        Whether they are normalised, arrays in memory, and all belong to the split.
    """

    x: Any
    y: Any
    rows: NDArray[np.int64] | None
    ready: bool


class Scale:
    """Applies a stated normalisation.

    Parameters
    ----------
    stated : dict
        See `DataInfo.normalisation`.
    dtype : numpy dtype
        Type of the results.
    """

    def __init__(self, stated: dict[str, Any], dtype: np.dtype) -> None:
        self.dtype = dtype
        self.plain = stated["kind"] == "none"
        self.mean, self.std = np.asarray(stated.get("mean", 0.0)), np.asarray(stated.get("std", 1.0))
        self.target_mean = np.asarray(stated.get("target_mean", 0.0))
        self.target_std = np.asarray(stated.get("target_std", 1.0))

    def inputs(self, x: Array) -> Array:
        """Normalise samples `x` [n, features]."""
        return x.astype(self.dtype) if self.plain else ((x - self.mean) / self.std).astype(self.dtype)

    def targets(self, y: Array) -> Array:
        """Normalise values `y` [n, outputs]."""
        return ((y - self.target_mean) / self.target_std).astype(self.dtype)

    def values(self, y: Array) -> Array:
        """Convert normalised values `y` [n, outputs] back to the units of the data."""
        return (y * self.target_std + self.target_mean).astype(self.dtype)


def open_data(
    spec: str | tuple[Array, ...],
    *,
    dtype: np.dtype,
    normalise: str = "auto",
    test_fraction: float = 0.2,
    context: int = 0,
    like: DataInfo | None = None,
    same: bool = True,
) -> DataSet:
    """Open and check a data set.

    Parameters
    ----------
    spec : str or tuple of arrays
        The setting `data`; or (x, y) or (x, y, x_test, y_test) with the sample axis first.
    dtype : numpy dtype
        Floating-point type of the samples as they are read.
    normalise : str
        `auto` (global for images, else feature), `feature`, `global` or `none`.
    context : int
        Characters of a sample of text; 0: `spec` states it.
    test_fraction : float
        Share of samples held out if the data have no separate test set.
    like : DataInfo, optional
        The data of a checkpoint, whose normalisation is used.
    same : bool
        Whether these must be the data of `like`, or only of the same kind: shape of samples, targets, alphabet.

    Raises
    ------
    UserError
        The data cannot be read, or cannot be trained on; the message names the file.
    """
    # Open the source, and check and measure all its numbers in one pass.
    source = open_source(spec, test_fraction, context)
    train, test = _split(source, test_fraction)
    lazy = not isinstance(source.x, np.ndarray)  # read row by row, as from an HDF5 file
    classes = np.dtype(source.y.dtype).kind in "iub"
    measured = Measure(source, train, classes)
    if source.x_test is not None:
        measured.check(source.x_test, source.y_test, None)

    # Choose the normalisation, and state what the data are.
    if source.alphabet:
        normalise = "none"
    elif normalise == "auto":
        normalise = "global" if source.images or len(source.x.shape) > 2 else "feature"
    stated = like.normalisation if like else measured.stated(normalise)
    outputs = measured.classes() if classes else int(np.prod(source.y.shape[1:], initial=1))
    outputs = len(source.alphabet) or outputs
    if classes and outputs < 2:
        raise UserError(f"{source.name}: y holds one class only; expected at least two")
    info = DataInfo(
        source.name,
        tuple(source.x.shape[1:]),
        "classes" if classes else "values",
        outputs,
        len(source.x if train is None else train),
        len(source.x_test if test is None else test),
        stated,
        measured.digest(),
        source.y.shape[1] if source.alphabet else 1,
        source.alphabet,
    )
    if like:
        _check_same(like, info) if same else _check_like(like, info)

    # Normalise what is in memory.
    parts = _parts(source, train, test)
    if not lazy:
        kind = np.dtype(np.int64 if source.alphabet else dtype)
        parts = {name: _ready(part, Scale(stated, kind), classes) for name, part in parts.items()}
    return DataSet(info, np.dtype(dtype), parts)


def share_data(
    comm: "Intracomm", data: DataSet | None, info: DataInfo, spec: str, dtype: np.dtype, test_fraction: float
) -> DataSet:
    """Give the data set that rank 0 has opened and checked to every rank. Collective over `comm`.

    Arrays in memory are sent; a file that is read row by row is opened by every rank.

    Parameters
    ----------
    comm : Intracomm
        Ranks that share the data.
    data : DataSet or None
        The data set on rank 0.
    info : DataInfo
        Facts on it, on every rank.
    spec : str
        The setting `data` with which rank 0 has opened it.
    dtype : numpy dtype
        Floating-point type of the samples as they are read.
    test_fraction : float
        Share of samples held out if the data have no separate test set.
    """
    parts = data._parts if data else {}
    shapes = comm.bcast({name: [(a.shape, a.dtype.str) for a in (p.x, p.y)] for name, p in parts.items() if p.ready})
    if not shapes:
        if data:
            return data
        source = open_source(spec, test_fraction)
        parts = _parts(source, *_split(source, test_fraction))
        return DataSet(info, np.dtype(dtype), parts)
    mine = {}
    for name, ((x_shape, x_type), (y_shape, y_type)) in shapes.items():
        part = parts[name] if data else _Part(np.empty(x_shape, x_type), np.empty(y_shape, y_type), None, True)
        for array in (part.x, part.y):
            for start in range(0, len(array), step := max(1, (1 << 28) // max(1, array[:1].nbytes))):
                comm.Bcast(array[start : start + step])
        mine[name] = part
    return data or DataSet(info, np.dtype(dtype), mine)


def _check_same(old: DataInfo, new: DataInfo) -> None:
    for name in ("sample_shape", "target", "outputs", "n_train", "n_test", "digest"):
        mine, theirs = getattr(new, name), getattr(old, name)
        if mine != theirs:
            raise UserError(f"resume: {new.name} is not the data of the checkpoint: its {name} was {theirs}, is {mine}")


def _check_like(old: DataInfo, new: DataInfo) -> None:
    for name in ("sample_shape", "target", "alphabet"):
        mine, theirs = getattr(new, name), getattr(old, name)
        if mine != theirs:
            raise UserError(f"data: {new.name}: its {name} is {mine!r}; that of the network's data was {theirs!r}")
    if new.outputs > old.outputs or (new.target == "values" and new.outputs != old.outputs):
        raise UserError(f"data: {new.name}: has {new.outputs} {new.target}; the network was trained on {old.outputs}")


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Draw the order of the training samples in an epoch; it never depends on the rank.

    Parameters
    ----------
    seed, epoch : int
        From 0: the key of the permutation.
    n : int
        Number of samples.

    Returns
    -------
    int64 array [n]
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(n)


def _parts(source: Source, train: NDArray[np.int64] | None, test: NDArray[np.int64] | None) -> dict[str, _Part]:
    """Both splits of a source, not normalised."""
    own = (source.x_test, source.y_test) if source.x_test is not None else (source.x, source.y)
    return {"train": _Part(source.x, source.y, train, False), "test": _Part(*own, test, False)}


def _ready(part: _Part, scale: Scale, classes: bool) -> _Part:
    """Normalise a part in memory, once."""
    x, y = (part.x, part.y) if part.rows is None else (part.x[part.rows], part.y[part.rows])
    targets = y.astype(np.int64) if classes else scale.targets(y.reshape(len(y), -1))
    return _Part(np.ascontiguousarray(scale.inputs(x.reshape(len(x), -1))), np.ascontiguousarray(targets), None, True)


def _split(source: Source, fraction: float) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Rows of the training and of the test samples; None: all, as the data have a test set of their own."""
    if source.x_test is not None:
        return None, None
    n = len(source.x)
    held_out = round(n * fraction)
    if not 0 < held_out < n:
        raise UserError(
            f"test_fraction: {fraction} of the {n} samples of {source.name} leaves an empty training or test set"
        )
    order = np.random.Generator(np.random.Philox(key=_SPLIT_KEY)).permutation(n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _rows(array: Any, rows: NDArray[np.int64]) -> Array:
    """Read some rows of an array or an HDF5 data set, in the order of `rows`."""
    if isinstance(array, np.ndarray):
        return array[rows]
    first, last = int(rows.min()), int(rows.max())
    if last - first < 4 * len(rows):  # close together: one slice is faster than HDF5's selection of points
        return array[first : last + 1][rows - first]
    order = np.argsort(rows)
    sorted_rows, place = np.unique(rows[order], return_inverse=True)
    block = array[sorted_rows]
    result = np.empty((len(rows), *array.shape[1:]), array.dtype)
    result[order] = block[place]
    return result

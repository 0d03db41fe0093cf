"""Where data comes from: scikit-learn's bundled sets, IDX folders, NPZ, HDF5, synthetic, arrays from Python.

Every source ends as a `Source`: arrays, or for HDF5 open data sets that are read later.
"""

import difflib
import gzip
import importlib.util
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ringtmp.errors import UserError

Array = NDArray[Any]

FORMS = (
    "digits, breast-cancer, diabetes, a folder of IDX files, a .npz or .h5 file, text:FILE, or synthetic:samples=..."
)


@dataclass(frozen=True)
class Source:
    """Samples x [n, ...] and targets y [n] or [n, outputs]; a test set of its own if it has one."""

    name: str
    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    _: KW_ONLY
    images: bool = False
    alphabet: str = ""  # of a text, whose x and y are tokens


def open_source(spec: str | tuple[Array, ...], test_fraction: float = 0.2, context: int = 0) -> Source:
    """The source that `spec` names, its shapes checked; the last two are for a text. Raises `UserError`."""
    try:
        if isinstance(spec, str) and spec.startswith("text:"):
            return _text(spec, test_fraction, context)
        return _open(spec)
    except (OSError, MemoryError, ValueError) as error:  # a path that is too long or closed to us, too many samples
        named = spec if isinstance(spec, str) else "arrays"
        raise UserError(f"data: {named[:200]}: {getattr(error, 'strerror', None) or error}") from None


def _open(spec: str | tuple[Array, ...]) -> Source:
    if isinstance(spec, tuple):
        if len(spec) not in (2, 4):
            raise UserError(f"data: expected (x, y) or (x, y, x_test, y_test), got {len(spec)} arrays")
        return _checked(Source("arrays", *[np.asarray(part) for part in spec]))
    if spec in _BUNDLED:
        return _checked(_BUNDLED[spec]())
    if spec.startswith("synthetic:"):
        return _checked(_synthetic(spec))
    path = Path(spec)
    if path.is_dir():
        return _checked(_idx_folder(path))
    if path.suffix == ".npz":
        return _checked(_npz(path))
    if path.suffix in (".h5", ".hdf5", ".hdf"):
        return _checked(_hdf5(path))
    near = difflib.get_close_matches(spec, _BUNDLED, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; expected {FORMS}"
    raise UserError(f"data: {spec!r} is neither a known data set nor a file or folder that can be read{hint}")


def _checked(source: Source) -> Source:
    pairs = [("x", source.x, "y", source.y)]
    if source.x_test is not None:
        pairs.append(("x_test", source.x_test, "y_test", source.y_test))
    for x_name, x, y_name, y in pairs:
        for name, array in ((x_name, x), (y_name, y)):
            if np.dtype(array.dtype).kind not in "fiub":
                raise UserError(f"{source.name}: {name} has type {array.dtype}; expected numbers")
            if not array.shape or not array.shape[0]:
                raise UserError(f"{source.name}: {name} is empty; expected at least one sample")
        if len(x.shape) < 2 or not math.prod(x.shape[1:]):
            raise UserError(f"{source.name}: {x_name} has shape {x.shape}; expected samples by features")
        if x.shape[0] != y.shape[0]:
            raise UserError(f"{source.name}: {x_name} has {x.shape[0]} samples but {y_name} has {y.shape[0]}")
        whole = np.dtype(y.dtype).kind in "iub"
        if len(y.shape) > (1 if whole else 2):
            raise UserError(
                f"{source.name}: {y_name} has shape {y.shape}; expected one label or one row of values a sample"
            )
        if x.shape[1:] != source.x.shape[1:] or y.shape[1:] != source.y.shape[1:]:
            raise UserError(f"{source.name}: {x_name} and {y_name} do not have the shapes of x and y")
        if whole != (np.dtype(source.y.dtype).kind in "iub"):
            raise UserError(f"{source.name}: {y_name} has type {y.dtype} but y has {source.y.dtype}")
    return source


# ---- scikit-learn's files --------------------------------------------------------------------------------------------


def _bundled_file(name: str) -> Path | None:
    """A data file of scikit-learn, found without importing it: `sklearn.datasets` takes 1.7 s to import."""
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin).parent / "datasets" / "data" / name if spec and spec.origin else None
    return path if path and path.is_file() else None


@cache
def _numbers(path: Path) -> NDArray[np.float64]:
    """The table in a file that never changes; read once by a process that trains often."""
    table = np.loadtxt(path, delimiter=",")
    table.flags.writeable = False
    return table


def _digits() -> Source:
    path = _bundled_file("digits.csv.gz")
    if path:
        table = _numbers(path)
        x, y = table[:, :-1], table[:, -1].astype(np.int64)
    else:  # another layout than that of scikit-learn 1.5 to 1.9
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    return Source("digits", x, y, images=True)


def _breast_cancer() -> Source:
    path = _bundled_file("breast_cancer.csv")
    if path:
        table = np.loadtxt(path, delimiter=",", skiprows=1)
        x, y = table[:, :-1], table[:, -1].astype(np.int64)
    else:
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
    return Source("breast-cancer", x, y)


def _diabetes() -> Source:
    x_path, y_path = _bundled_file("diabetes_data_raw.csv.gz"), _bundled_file("diabetes_target.csv.gz")
    if x_path and y_path:
        x, y = np.loadtxt(x_path), np.loadtxt(y_path)
    else:
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True, scaled=False)
    return Source("diabetes", x, y)


_BUNDLED: dict[str, Callable[[], Source]] = {"digits": _digits, "breast-cancer": _breast_cancer, "diabetes": _diabetes}


# ---- files -----------------------------------------------------------------------------------------------------------

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> Array:
    """The array of an IDX file (LeCun's MNIST format), plain or .gz. Raises `UserError` if it is not whole."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or not content[3]:
        raise UserError(f"{path}: is not an IDX file (it begins with {content[:4].hex() or 'nothing'})")
    dtype, dimensions = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{path}: has {len(content)} bytes; its header of shape {shape} makes it {expected}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_pair(folder: Path, prefix: str) -> tuple[Array, Array] | None:
    def find(what: str) -> Path | None:
        return next((path for path in sorted(folder.glob(f"{prefix}-{what}*")) if "idx" in path.name), None)

    images, labels = find("images"), find("labels")
    if not images and not labels:
        return None
    if images is None or labels is None:
        present = images or labels or folder
        raise UserError(f"{folder}: has {present.name} but no {prefix}-{'labels' if images else 'images'} beside it")
    return read_idx(images), read_idx(labels)


def _idx_folder(folder: Path) -> Source:
    pairs = [pair for pair in (_idx_pair(folder, "train"), _idx_pair(folder, "t10k")) if pair]
    if not pairs:
        raise UserError(
            f"{folder}: no IDX files such as train-images-idx3-ubyte(.gz) and train-labels-idx1-ubyte(.gz) in it"
        )
    return Source(str(folder), *(part for pair in pairs for part in pair), images=True)


_KEYS = ("x", "y", "x_test", "y_test")


def _named(path: Path, keys: list[str], get: Callable[[str], Any]) -> Source:
    for key in ("x", "y"):
        if key not in keys:
            raise UserError(f"{path}: has no {key!r}; it holds {', '.join(keys) or 'nothing'}")
    if ("x_test" in keys) != ("y_test" in keys):
        raise UserError(f"{path}: has one of 'x_test' and 'y_test'; expected both or neither")
    return Source(str(path), *(get(key) for key in _KEYS if key in keys))


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            return _named(path, list(file), file.__getitem__)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: is not a whole .npz file of numbers: {error}") from None


def _hdf5(path: Path) -> Source:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r", locking=False)  # stays open: rows are read while training
        return _named(path, [key for key in file if isinstance(file[key], h5py.Dataset)], file.__getitem__)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: is not a whole HDF5 file: {error}") from None


# ---- text ------------------------------------------------------------------------------------------------------------


def _text(spec: str, test_fraction: float, context: int) -> Source:
    """Windows of `context` characters, one after the other; each place's label is the character that follows.

    The test set is the end of the text. Tokens number the characters that occur, in the order of their code points.
    """
    name, _, option = spec.removeprefix("text:").partition(",")
    if option:
        key, _, value = option.partition("=")
        if key != "context" or not value.isdecimal() or int(value) < 1:
            raise UserError(f"data: {spec}: expected text:FILE or text:FILE,context=128")
        if context and context != int(value):
            raise UserError(f"data: {spec}: context {value} differs from the model's {context}")
        context = int(value)
    if not context:
        raise UserError(f"data: {spec}: how long is a sample? Give a gpt: model, or text:FILE,context=128")
    if context < 2:
        raise UserError(f"data: {spec}: expected a context of at least 2 characters, got {context}")
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text in UTF-8: {error}") from None
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet, tokens = np.unique(codes, return_inverse=True)
    count = (len(tokens) - 1) // context
    held_out = round(count * test_fraction)
    if not 0 < held_out < count or len(alphabet) < 2:
        raise UserError(
            f"{path}: {len(tokens)} characters ({len(alphabet)} different) are too few for samples of {context} and a "
            f"test set of {test_fraction:.0%}"
        )
    x = tokens[: count * context].reshape(count, context).astype(np.int64)
    y = tokens[1 : count * context + 1].reshape(count, context).astype(np.int64)
    cut = count - held_out
    return Source(spec, x[:cut], y[:cut], x[cut:], y[cut:], alphabet="".join(map(chr, alphabet)))


# ---- synthetic -------------------------------------------------------------------------------------------------------

_SYNTHETIC = {"samples": 10000, "features": 64, "classes": 10, "outputs": 0, "noise": 1.0, "seed": 0}


def _synthetic(spec: str) -> Source:
    values = dict(_SYNTHETIC)
    for part in filter(None, spec.removeprefix("synthetic:").split(",")):
        key, _, text = part.partition("=")
        if key not in values:
            raise UserError(f"data: {spec}: unknown key {key!r}; expected {', '.join(values)}")
        try:
            values[key] = type(_SYNTHETIC[key])(text)
        except ValueError:
            raise UserError(f"data: {spec}: {key} must be a number, got {text!r}") from None
        lowest = 0 if key in ("seed", "noise", "outputs") else 2 if key in ("samples", "classes") else 1
        if not lowest <= values[key] < 2**63:
            raise UserError(f"data: {spec}: {key} must be at least {lowest} (and below 2^63)")
    n, features, outputs = int(values["samples"]), int(values["features"]), int(values["outputs"])
    rng = np.random.Generator(np.random.Philox(key=np.array([values["seed"], 1], np.uint64)))
    if outputs:
        x = rng.standard_normal((n, features))
        y = x @ rng.standard_normal((features, outputs)) / math.sqrt(features)
        return Source(spec, x, y + 0.1 * values["noise"] * rng.standard_normal(y.shape))
    labels = np.arange(n) % int(values["classes"])
    centres = rng.standard_normal((int(values["classes"]), features))
    return Source(spec, centres[labels] + values["noise"] * rng.standard_normal((n, features)), labels)

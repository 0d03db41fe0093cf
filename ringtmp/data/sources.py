"""Open a data source in whichever registered format it has, and check the shapes and types of its arrays."""

import difflib
import math
from typing import Any

import numpy as np

from ringtmp.data import formats as _formats  # noqa: F401 - registers the formats that come with ringtmp
from ringtmp.data.registry import Array, Request, Source, format_of, formats
from ringtmp.errors import UserError


def open_source(spec: str | tuple[Array, ...], test_fraction: float = 0.2, context: int = 0) -> Source:
    """Open a data source and check it.

    Parameters
    ----------
    spec : str or tuple of array
        The setting `data`; or (x, y) or (x, y, x_test, y_test) from Python.
    test_fraction : float
        Share of samples to hold out, in 0..1.
    context : int
        Characters of a sample of text that the model states; 0: none.

    Raises
    ------
    UserError
        `spec` is of no format, cannot be read, or holds arrays that do not belong together.
    """
    try:
        if isinstance(spec, tuple):
            if len(spec) not in (2, 4):
                raise UserError(f"data: expected (x, y) or (x, y, x_test, y_test), got {len(spec)} arrays")
            return _checked(Source("arrays", *[np.asarray(part) for part in spec]))
        request = Request(spec, test_fraction, context)
        if found := format_of(spec):
            return _checked(found.open(request))
    except (OSError, MemoryError, ValueError) as error:  # such as a path that is too long, or too many samples
        named = spec if isinstance(spec, str) else "arrays"
        raise UserError(f"data: {named[:200]}: {getattr(error, 'strerror', None) or error}") from None
    raise UserError(f"data: {spec!r} is neither a known data set nor a file or folder that can be read{_hint(spec)}")


def _hint(spec: str) -> str:
    near = difflib.get_close_matches(spec, [each.name for each in formats if each.name], n=1)
    if near:
        return f"; did you mean {near[0]}?"
    shown = [each.shown for each in formats]
    return f"; expected {', '.join(shown[:-1])}, or {shown[-1]}"


def _checked(source: Source) -> Source:
    """The same source, after a check that its arrays belong together. Raises `UserError`."""
    pairs = [("x", source.x, "y", source.y)]
    if source.x_test is not None:
        pairs.append(("x_test", source.x_test, "y_test", source.y_test))
    for x_name, x, y_name, y in pairs:
        _check_array(source.name, x_name, x)
        _check_array(source.name, y_name, y)
        if len(x.shape) < 2 or not math.prod(x.shape[1:]):
            raise UserError(f"{source.name}: {x_name} has shape {x.shape}; expected samples by features")
        if x.shape[0] != y.shape[0]:
            raise UserError(f"{source.name}: {x_name} has {x.shape[0]} samples but {y_name} has {y.shape[0]}")
        whole = np.dtype(y.dtype).kind in "iub"
        if len(y.shape) > (1 if whole and not source.alphabet else 2):
            raise UserError(
                f"{source.name}: {y_name} has shape {y.shape}; expected one label or one row of values a sample"
            )
        if x.shape[1:] != source.x.shape[1:] or y.shape[1:] != source.y.shape[1:]:
            raise UserError(f"{source.name}: {x_name} and {y_name} do not have the shapes of x and y")
        if whole != (np.dtype(source.y.dtype).kind in "iub"):
            raise UserError(f"{source.name}: {y_name} has type {y.dtype} but y has {source.y.dtype}")
    return source


def _check_array(source: str, name: str, array: Any) -> None:
    if np.dtype(array.dtype).kind not in "fiub":
        raise UserError(f"{source}: {name} has type {array.dtype}; expected numbers")
    if not array.shape or not array.shape[0]:
        raise UserError(f"{source}: {name} is empty; expected at least one sample")

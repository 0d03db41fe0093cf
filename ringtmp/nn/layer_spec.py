"""Layers from plain tables (of TOML files and checkpoints), checked against the shape of their input.

Each kind of layer reads its own table (`from_table`). A kind from outside this package is known once its module has
been imported.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from ringtmp.errors import UserError
from ringtmp.kernels.activations import ACTIVATIONS
from ringtmp.kernels.registry import Registry

Shape = tuple[int, ...]

# By kind: what has `takes_shape` and `from_table`, a class of `Layer` or the maker of a compound one.
LAYERS: Registry[Any] = Registry("layer", "ringtmp.nn.layers", by_file=False)


class Table:
    """A layer's table, read key by key; a key that has not been read in the end is an error.

    Parameters
    ----------
    table : dict
        ``type`` is the kind.
    where : str
        Place of the table in the model, for messages.
    numbers : iterator of int
        Numbers that distinguish the dropout layers of a model.
    """

    def __init__(self, table: Any, where: str, numbers: Iterator[int]) -> None:
        if not isinstance(table, dict):
            raise UserError(f"{where}: expected a table, got {table!r}")
        self.left, self.where, self.numbers = dict(table), where, numbers
        self.kind = self.left.pop("type", None)
        if not isinstance(self.kind, str) or self.kind not in LAYERS:
            raise UserError(f"{where}: type must be one of {', '.join(sorted(LAYERS))}, got {self.kind!r}")
        self.known: list[str] = []

    def _take(self, key: str, default: Any) -> Any:
        self.known.append(key)
        return self.left.pop(key, default)

    def fail(self, text: str) -> UserError:
        """The error to raise: `text` after the place of the table in the model."""
        return UserError(f"{self.where}: {text}")

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Read a whole number.

        Parameters
        ----------
        key : str
            Key of the table.
        default : int, optional
            Value if the key is missing; None: the key is required.
        least : int
            Smallest value allowed.

        Raises
        ------
        UserError
            The value is no whole number, or below `least`.
        """
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise self.fail(f"{key} must be a whole number of at least {least}, got {value!r}")
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """Read a number.

        Parameters
        ----------
        key : str
            Key of the table.
        default : float or None
            Value if the key is missing; None: the key is required.
        low, high : float
            The value must be at least `low` and below `high`.

        Raises
        ------
        UserError
            The value is no number of the range.
        """
        value = self._take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < min(high, 1e30):
            raise self.fail(f"{key} must be a number from {low} to below {high}, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false at `key`; `default` if it is missing. Raises `UserError`."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key} must be true or false, got {value!r}")
        return value

    def activation(self, key: str = "activation", default: str | None = "linear") -> str:
        """Read the name of an activation at `key`; `default` (None: required) if it is missing. Raises `UserError`."""
        value = self._take(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.fail(f"{key} must be one of {', '.join(ACTIVATIONS)}, got {value!r}")
        return value

    def shape(self, given: Shape) -> Shape:
        """Shape of an input sample: `given`, or another with the same number of numbers if the table states it."""
        value = self._take("shape", None)
        if value is None:
            return given
        fits = isinstance(value, list | tuple) and value and all(type(n) is int and 0 < n < 2**31 for n in value)
        if not fits or math.prod(value) != math.prod(given):
            raise self.fail(f"shape must be sizes that multiply to the {math.prod(given)} that come in, got {value!r}")
        return tuple(value)

    def layers(self, shape: Shape, tables: list[Any] | None = None) -> tuple[Any, ...]:
        """Make the inner layers.

        Parameters
        ----------
        shape : tuple of int
            Shape of a sample that the first of them takes.
        tables : list of dict, optional
            Their tables; without it those under the key ``layers``.

        Raises
        ------
        UserError
            A table is wrong.
        """
        if tables is None:
            tables = self._take("layers", None)
            if not isinstance(tables, list) or not tables:
                raise self.fail(f"layers must be a list of tables, got {tables!r}")
        made: list[Any] = []
        for number, each in enumerate(tables):
            made.append(_layer(each, made[-1].out_shape if made else shape, f"{self.where}.{number}", self.numbers))
            if made[-1].vocabulary:
                raise self.fail("an embedding must be the first layer of the model, not within another one")
        return tuple(made)

    def image(self, shape: Shape) -> Shape:
        """`shape` as (height, width, channels), with 1 channel if it has none. Raises `UserError` for other shapes."""
        if len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3:
            raise self.fail(f"{self.kind} takes images (height, width, channels), but {shape} comes in")
        return shape

    def sequence(self, shape: Shape) -> Shape:
        """`shape` itself. Raises `UserError` if it is not that of a sequence, (places, features)."""
        if len(shape) != 2:
            raise self.fail(f"{self.kind} takes sequences (places, features), but {shape} comes in")
        return shape

    def window(self, shape: Shape, size: int, pad: int = 0) -> None:
        """Check that a window fits into an image.

        Parameters
        ----------
        shape : tuple of int
            (height, width, channels) of the image.
        size : int
            Side of the window, in pixels.
        pad : int
            Rows of zeros added at each edge.

        Raises
        ------
        UserError
            It does not fit.
        """
        if min(shape[:2]) + 2 * pad < size:
            raise self.fail(f"size {size} is larger than the image of {shape[0]} x {shape[1]} that comes in")

    def done(self) -> None:
        """Raise `UserError` if a key has not been read."""
        for key in self.left:
            raise self.fail(f"unknown key {key!r}; known: {', '.join(sorted({'type', *self.known}))}")


def _layer(given: Any, shape: Shape, where: str, numbers: Iterator[int]) -> Any:
    table = Table(given, where, numbers)
    layer = LAYERS[table.kind].from_table(table, table.shape(shape))
    table.done()
    return layer


def layers_from_tables(tables: list[Any], shape: Shape) -> tuple[Any, ...]:
    """Make the chain of layers that `tables` describe.

    A first layer that does not take its input's own shape (`Layer.takes_shape`) sees a sample as one vector, unless its
    table gives a `shape`.

    Parameters
    ----------
    tables : list of dict
        One for each layer.
    shape : tuple of int
        Shape of one sample.

    Returns
    -------
    tuple of Layer

    Raises
    ------
    UserError
        A table is wrong; the message names the layer and the key.
    """
    layers: list[Any] = []
    numbers = itertools.count()
    for number, table in enumerate(tables):
        if number == 0 and isinstance(table, dict) and "shape" not in table:
            kind = table.get("type")
            if not (isinstance(kind, str) and kind in LAYERS and LAYERS[kind].takes_shape):
                shape = (math.prod(shape),)
        layers.append(_layer(table, layers[-1].out_shape if layers else shape, f"model: layer {number}", numbers))
        if number and layers[-1].vocabulary:
            raise UserError(f"model: layer {number}: an embedding must be the first layer of the model")
    return tuple(layers)

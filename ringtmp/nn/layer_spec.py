"""Layers from plain tables, as in TOML files and checkpoints, checked against the shape that comes in."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from kernels.activations import ACTIVATIONS
from ringtmp.errors import UserError
from ringtmp.nn.containers import Activation, Block, Dropout, Flatten, Residual
from ringtmp.nn.dense import Dense
from ringtmp.nn.images import AvgPool2D, Conv2D, MaxPool2D
from ringtmp.nn.layer import Layer
from ringtmp.nn.norm import GroupNorm, LayerNorm
from ringtmp.nn.sequences import Attention, Embedding
from ringtmp.nn.sliced import Carry, Columns, Share

Shape = tuple[int, ...]


class _Table:
    """A table that is read key by key; what is left at the end is unknown."""

    def __init__(self, table: Any, where: str) -> None:
        if not isinstance(table, dict):
            raise UserError(f"{where}: expected a table, got {table!r}")
        self.left, self.where = dict(table), where
        self.kind = self.left.pop("type", None)
        if not isinstance(self.kind, str) or self.kind not in _MAKERS:
            raise UserError(f"{where}: type must be one of {', '.join(_MAKERS)}, got {self.kind!r}")
        self.known: list[str] = []

    def _take(self, key: str, default: Any) -> Any:
        self.known.append(key)
        return self.left.pop(key, default)

    def fail(self, text: str) -> UserError:
        return UserError(f"{self.where}: {text}")

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise self.fail(f"{key} must be a whole number of at least {least}, got {value!r}")
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        value = self._take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < min(high, 1e30):
            raise self.fail(f"{key} must be a number from {low} to below {high}, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key} must be true or false, got {value!r}")
        return value

    def activation(self, key: str = "activation", default: str | None = "linear") -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.fail(f"{key} must be one of {', '.join(ACTIVATIONS)}, got {value!r}")
        return value

    def shape(self, given: Shape) -> Shape:
        """The shape that comes in; a table may say another with as many numbers only for the first layer."""
        value = self._take("shape", None)
        if value is None:
            return given
        fits = isinstance(value, list | tuple) and value and all(type(n) is int and 0 < n < 2**31 for n in value)
        if not fits or math.prod(value) != math.prod(given):
            raise self.fail(f"shape must be sizes that multiply to the {math.prod(given)} that come in, got {value!r}")
        return tuple(value)

    def tables(self) -> list[Any]:
        value = self._take("layers", None)
        if not isinstance(value, list) or not value:
            raise self.fail(f"layers must be a list of tables, got {value!r}")
        return value

    def done(self) -> None:
        for key in self.left:
            raise self.fail(f"unknown key {key!r}; known: {', '.join(sorted({'type', *self.known}))}")


def _image(table: _Table, shape: Shape) -> Shape:
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise table.fail(f"{table.kind} takes images (height, width, channels), but {shape} comes in")
    return shape


def _sequence(table: _Table, shape: Shape) -> Shape:
    if len(shape) != 2:
        raise table.fail(f"{table.kind} takes sequences (places, features), but {shape} comes in")
    return shape


def _window(table: _Table, shape: Shape, size: int, pad: int) -> None:
    if min(shape[:2]) + 2 * pad < size:
        raise table.fail(f"size {size} is larger than the image of {shape[0]} x {shape[1]} that comes in")


def _dense(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    if len(shape) == 3:
        raise table.fail(f"an image {shape} comes in; put a flatten layer before dense")
    return Dense(
        shape,
        table.whole("units"),
        table.activation(),
        table.flag("bias", True),
        table.number("scale", 1.0, 0.0, math.inf),
    )


def _conv(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    shape = _image(table, shape)
    filters, size = table.whole("filters"), table.whole("size")
    stride, pad = table.whole("stride", 1), table.whole("pad", 0, least=0)
    if pad >= size:
        raise table.fail(f"pad must be below size {size}, got {pad}")
    _window(table, shape, size, pad)
    return Conv2D(shape, filters, size, stride, pad, table.activation(), table.flag("bias", True))


def _pool(kind: Callable[..., Layer]) -> Callable[[_Table, Shape, Iterator[int]], Layer]:
    def make(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
        shape = _image(table, shape)
        size = table.whole("size")
        _window(table, shape, size, 0)
        return kind(shape, size, table.whole("stride", size))

    return make


def _groupnorm(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    shape = _image(table, shape)
    groups = table.whole("groups")
    if shape[2] % groups:
        raise table.fail(f"groups must divide the {shape[2]} channels that come in, got {groups}")
    return GroupNorm(shape, groups)


def _embedding(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    if len(shape) != 1:
        raise table.fail(f"embedding takes tokens (places,), but {shape} comes in")
    return Embedding(shape, table.whole("tokens"), table.whole("width"))


def _attention(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    shape = _sequence(table, shape)
    heads = table.whole("heads")
    if shape[1] % (3 * heads):
        raise table.fail(f"3 x heads must divide the {shape[1]} features that come in, got heads {heads}")
    return Attention(shape, heads)


def _inner(table: _Table, tables: list[Any], shape: Shape, numbers: Iterator[int]) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for number, each in enumerate(tables):
        layers.append(_layer(each, layers[-1].out_shape if layers else shape, f"{table.where}.{number}", numbers))
        if isinstance(layers[-1], Embedding):
            raise table.fail("an embedding must be the first layer of the model, not within another one")
    return tuple(layers)


def _block(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    return Block(shape, _inner(table, table.tables(), shape, numbers))


def _residual(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    layers = _inner(table, table.tables(), shape, numbers)
    if layers[-1].out_shape != layers[0].shape:
        raise table.fail(f"{layers[0].shape} comes in but {layers[-1].out_shape} goes out; they are added")
    if layers[-1].needs_output:
        raise table.fail(
            f"the last layer within may not be {layers[-1].kind} with an output of its own: its output is not kept "
            "after the sum; end with a linear layer"
        )
    return Residual(layers[0].shape, layers)


def _transformer(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    """A pre-norm block: attention and a two-layer network, each round a residual (Radford et al. 2019)."""
    shape = _sequence(table, shape)
    width = shape[1]
    heads, hidden = table.whole("heads"), table.whole("hidden", 4 * width)
    if width % heads:
        raise table.fail(f"heads must divide the {width} features that come in, got {heads}")
    activation, scale = table.activation(default="gelu"), table.number("scale", 1.0, 0.0, math.inf)
    rate = table.number("dropout", 0.0, 0.0, 1.0)
    drop = [{"type": "dropout", "rate": rate}] if rate else []
    attend = [
        {"type": "layernorm"},
        {"type": "dense", "units": 3 * width},
        {"type": "attention", "heads": heads},
        {"type": "dense", "units": width, "scale": scale},
        *drop,
    ]
    think = [
        {"type": "layernorm"},
        {"type": "dense", "units": hidden, "activation": activation},
        {"type": "dense", "units": width, "scale": scale},
        *drop,
    ]
    tables = [{"type": "residual", "layers": attend}, {"type": "residual", "layers": think}]
    return Block(shape, _inner(table, tables, shape, numbers))


def _head(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    """The end of a transformer: layer norm and a projection onto the tokens."""
    tables = [{"type": "layernorm"}, {"type": "dense", "units": table.whole("units"), "bias": table.flag("bias", True)}]
    return Block(shape, _inner(table, tables, shape, numbers))


def _piece(kind: Callable[..., Layer], ends: bool) -> Callable[[_Table, Shape, Iterator[int]], Layer]:
    """A piece of a layer that is cut: layers on the first `features` of each place, beside what goes along."""

    def make(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
        features = table.whole("features")
        if features > shape[-1]:
            raise table.fail(f"features must be at most the {shape[-1]} that come in, got {features}")
        layers = _inner(table, table.tables(), (*shape[:-1], features), numbers)
        made = layers[-1].out_shape
        if kind is not Columns and (made != (*shape[:-1], features) or shape[-1] != features * (1 + ends)):
            raise table.fail(f"{shape} comes in, and of {features} features the layers make {made}; they are added")
        return kind(shape, layers, features, table.flag("last", False)) if ends else kind(shape, layers, features)

    return make


def _dropout(table: _Table, shape: Shape, numbers: Iterator[int]) -> Layer:
    rate = table.number("rate", None, 0.0, 1.0)
    return Dropout(shape, rate, table.whole("number", next(numbers), least=0))


_MAKERS: dict[str, Callable[[_Table, Shape, Iterator[int]], Layer]] = {
    "dense": _dense,
    "conv2d": _conv,
    "maxpool2d": _pool(MaxPool2D),
    "avgpool2d": _pool(AvgPool2D),
    "flatten": lambda table, shape, _: Flatten(shape),
    "layernorm": lambda table, shape, _: LayerNorm(shape),
    "groupnorm": _groupnorm,
    "dropout": _dropout,
    "embedding": _embedding,
    "attention": _attention,
    "activation": lambda table, shape, _: Activation(shape, table.activation("function", None)),
    "transformer": _transformer,
    "head": _head,
    "residual": _residual,
    "block": _block,
    "columns": _piece(Columns, True),
    "carry": _piece(Carry, False),
    "share": _piece(Share, True),
}
_SHAPED = {"conv2d", "maxpool2d", "avgpool2d", "groupnorm", "embedding", "block", "residual", "columns", "carry"}


def _layer(given: Any, shape: Shape, where: str, numbers: Iterator[int]) -> Layer:
    table = _Table(given, where)
    layer = _MAKERS[table.kind](table, table.shape(shape), numbers)
    table.done()
    return layer


def layers_from_tables(tables: list[Any], shape: Shape) -> tuple[Layer, ...]:
    """The chain that `tables` describe, for samples of `shape`. Raises `UserError` naming the layer and the key.

    A first layer that is none for images or tokens sees a sample as one vector, unless its table gives a `shape`.
    """
    layers: list[Layer] = []
    numbers = itertools.count()
    for number, table in enumerate(tables):
        plain = isinstance(table, dict) and str(table.get("type")) not in _SHAPED and "shape" not in table
        if number == 0 and plain:
            shape = (math.prod(shape),)
        layers.append(_layer(table, layers[-1].out_shape if layers else shape, f"model: layer {number}", numbers))
        if number and isinstance(layers[-1], Embedding):
            raise UserError(f"model: layer {number}: an embedding must be the first layer of the model")
    return tuple(layers)

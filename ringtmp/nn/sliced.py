"""Layers cut by columns or heads, so that one that no node can hold lies on several neighbours.

The pieces stand one after the other in the chain like any other layers. What they have in common goes along with what
they have made so far, as further features of each place:

    dense           [x]   -> [x | y of piece 1]   -> [x | y of pieces 1, 2]   -> [y]          (`Columns`)
    half a block    [x]   -> [norm(x) | x]        -> [norm(x) | x + piece 1]  -> [x + all]    (`Carry`, `Share`)

On the way back the gradient of what they share is summed from piece to piece. So a cut layer needs nothing that the
ring does not have: any schedule, any split, replicas and checkpoints. The sums are others than those of the whole
layer, so only whole layers give the same bits on any number of ranks; one number of pieces does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import numpy as np

from ringtmp.nn.containers import Block, Residual
from ringtmp.nn.dense import Dense
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext, pieces
from ringtmp.nn.sequences import Attention


@dataclass(frozen=True)
class _Piece(Block):
    """Layers on the first `features` numbers of a place; the rest is what goes along.

    The layers' own input and output lie in `saved`: a place's numbers of both kinds are mixed in x and y.

    Parameters
    ----------
    features : int
        Of each place, that the layers take.
    """

    features: int

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of what the layers take."""
        return (*self.shape[:-1], self.features)

    @property
    def inner_inputs(self) -> int:
        """Numbers per sample that they take."""
        return math.prod(self.inner_shape)

    @property
    def inner_outputs(self) -> int:
        """And that they make."""
        return self.layers[-1].outputs

    @property
    def needs_output(self) -> bool:
        """Their own output is kept in `saved`."""
        return False

    def saved_numbers(self) -> int:
        return super().saved_numbers() + 2 * (self.inner_inputs + self.inner_outputs)

    def attach(self, place: Place) -> None:
        rows = len(place.x)
        room, start = [], 0
        for numbers in (self.inner_inputs, self.inner_inputs, self.inner_outputs, self.inner_outputs):
            room.append(place.saved[start : start + rows * numbers].reshape(rows, numbers))
            start += rows * numbers
        x, dx, y, dy = room
        self._attach(place, x, y, dy, dx if place.dx.size else place.dx, start)

    def _by_place(self, x: Array, y: Array, dy: Array, dx: Array) -> tuple[Array, Array, Array, Array]:
        """The same with a row for each place; what has no numbers as it is."""
        places = math.prod(self.shape[:-1])

        def rows(array: Array) -> Array:
            return array.reshape(len(array) * places, -1) if array.size else array

        return rows(x), rows(y), rows(dy), rows(dx)

    def _ends(self, place: Place) -> tuple[Array, Array, Array, Array]:
        """x, y, dy and dx."""
        return self._by_place(place.x, place.y, place.dy, place.dx)

    def _inner(self, place: Place) -> tuple[Array, Array, Array, Array]:
        """The same of what the layers take and make."""
        first, last = place.inner[0], place.inner[-1]
        return self._by_place(first.x, last.y, last.dy, first.dx)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"features": self.features}


@dataclass(frozen=True)
class Columns(_Piece):
    """Some columns of a dense layer: [x | columns before] comes in, [x | columns so far] goes out.

    Parameters
    ----------
    layers : tuple of Layer
        One, that makes the columns from x.
    last : bool
        Whether they are the last ones: then only the columns go out.
    """

    last: bool

    kind: ClassVar[str] = "columns"

    @property
    def out_shape(self) -> tuple[int, ...]:
        made = self.layers[-1].out_shape[-1]
        return (*self.shape[:-1], self.shape[-1] + made - self.features * self.last)

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _ = self._ends(place)
        inner, made, _, _ = self._inner(place)
        inner[...] = x[:, : self.features]
        super().forward(p, place, moment)
        kept = x[:, self.features * self.last :]
        y[:, : kept.shape[1]] = kept
        y[:, kept.shape[1] :] = made

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        _, _, dy, dx = self._ends(place)
        inner, _, grad, inner_dx = self._inner(place)
        kept = dy.shape[1] - grad.shape[1]
        grad[...] = dy[:, kept:]
        if dx.size:
            dx[:, : self.features] = 0 if self.last else dy[:, : self.features]
            dx[:, self.features :] = dy[:, self.features * (not self.last) : kept]
        super().backward_input(p, place, moment)
        if dx.size:
            dx[:, : self.features] += inner_dx

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"last": self.last}


@dataclass(frozen=True)
class Carry(_Piece):
    """[x] comes in, [layers(x) | x] goes out; the layers keep the number of features."""

    kind: ClassVar[str] = "carry"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], 2 * self.features)

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _ = self._ends(place)
        inner, made, _, _ = self._inner(place)
        inner[...] = x
        super().forward(p, place, moment)
        y[:, : self.features], y[:, self.features :] = made, x

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        _, _, dy, dx = self._ends(place)
        _, _, grad, inner_dx = self._inner(place)
        grad[...] = dy[:, : self.features]
        if dx.size:
            dx[...] = dy[:, self.features :]
        super().backward_input(p, place, moment)
        if dx.size:
            dx += inner_dx


@dataclass(frozen=True)
class Share(_Piece):
    """[n | sum] comes in, [n | sum + layers(n)] goes out, of the `last` piece the sum alone."""

    last: bool

    kind: ClassVar[str] = "share"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.inner_shape if self.last else self.shape

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _ = self._ends(place)
        inner, made, _, _ = self._inner(place)
        inner[...] = x[:, : self.features]
        super().forward(p, place, moment)
        if not self.last:
            y[:, : self.features] = x[:, : self.features]
        np.add(x[:, self.features :], made, out=y[:, self.features * (not self.last) :])

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        _, _, dy, dx = self._ends(place)
        _, _, grad, inner_dx = self._inner(place)
        grad[...] = dy[:, self.features * (not self.last) :]
        if dx.size:
            dx[:, self.features :] = grad
            dx[:, : self.features] = 0 if self.last else dy[:, : self.features]
        super().backward_input(p, place, moment)
        if dx.size:
            dx[:, : self.features] += inner_dx

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"last": self.last}


def cut(layers: Sequence[Layer], most: int) -> list[dict[str, Any]]:
    """Tables of the chain with its largest layers in `most` pieces, smaller ones in fewer, where they can be cut."""
    largest = max(layer.count for layer in layers)
    tables: list[dict[str, Any]] = []
    for layer in layers:
        count = math.ceil(most * layer.count / largest) if largest else 1
        tables += _cut(layer, count) if count > 1 else [layer.to_dict()]
    return tables


def _cut(layer: Layer, count: int) -> list[dict[str, Any]]:
    if isinstance(layer, Dense):
        return _columns(layer, count)
    parts = layer.layers if type(layer) is Block else (layer,)
    halves = [part for part in parts if _half(part)]
    if len(halves) < len(parts):
        return [layer.to_dict()]
    return [table for half in halves for table in _shares(half, count)]


def _columns(layer: Dense, count: int) -> list[dict[str, Any]]:
    sizes = pieces(layer.units, min(count, layer.units))
    before, tables = 0, []
    for number, units in enumerate(sizes):
        table = {**layer.to_dict(), "units": units}
        shape = [*layer.shape[:-1], layer.shape[-1] + before]
        tables.append(
            {
                "type": "columns",
                "shape": shape,
                "features": layer.shape[-1],
                "last": number == len(sizes) - 1,
                "layers": [table],
            }
        )
        before += units
    return tables


def _half(layer: Layer) -> TypeGuard[Residual]:
    """Whether it is half a transformer block: norm, dense, perhaps attention, linear, perhaps dropout."""
    if not isinstance(layer, Residual):
        return False
    kinds = [inner.kind for inner in layer.layers if inner.kind != "dropout"]
    down = layer.layers[len(kinds) - 1]
    linear = isinstance(down, Dense) and down.activation == "linear"
    return linear and kinds in (["layernorm", "dense", "attention", "dense"], ["layernorm", "dense", "dense"])


def _shares(layer: Residual, count: int) -> list[dict[str, Any]]:
    """Half a block: the norm and what goes along, then heads, or hidden features, in pieces whose results are added."""
    norm, up, *rest = layer.layers
    down = next(inner for inner in rest if isinstance(inner, Dense))
    attention = next((inner for inner in rest if isinstance(inner, Attention)), None)
    dropout = [inner.to_dict() for inner in rest if inner.kind == "dropout"]
    assert isinstance(up, Dense)
    width, inside = layer.shape[-1], down.shape[-1]
    whole = attention.heads if attention else up.units
    sizes = pieces(whole, min(count, whole))
    shape = list(layer.shape)
    tables: list[dict[str, Any]] = [{"type": "carry", "shape": shape, "features": width, "layers": [norm.to_dict()]}]
    for number, size in enumerate(sizes):
        part = inside * size // whole
        inner: list[dict[str, Any]] = [{**up.to_dict(), "units": part * up.units // inside}]
        if attention:
            inner.append({"type": "attention", "heads": size})
        # Deviations of start values go by what comes in: here by what comes into all pieces together.
        last = {
            "type": "dense",
            "units": width,
            "scale": down.scale * math.sqrt(part / inside),
            "bias": down.bias and number == 0,
        }
        tables.append(
            {
                "type": "share",
                "shape": [*shape[:-1], 2 * width],
                "features": width,
                "last": number == len(sizes) - 1,
                "layers": [*inner, last, *dropout],
            }
        )
    return tables

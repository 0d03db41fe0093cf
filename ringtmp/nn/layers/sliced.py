"""Layers cut by columns or heads, so that one that no node can hold lies on several neighbours.

The pieces follow one another in the chain like any other layers. Their common input and the results so far travel with
them, as further features of each place:

    dense           [x]   -> [x | y of piece 1]   -> [x | y of pieces 1, 2]   -> [y]          (`Columns`)
    half a block    [x]   -> [norm(x) | x]        -> [norm(x) | x + piece 1]  -> [x + all]    (`Carry`, `Share`)

In the backward pass the gradient of the common input is summed from piece to piece. So a cut layer needs nothing that
the ring does not have: any schedule, any split, replicas and checkpoints. The sums differ from those of the whole
layer: results are bit-identical on any number of ranks for one number of pieces, but not between numbers of pieces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import numpy as np

from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext, pieces
from ringtmp.nn.layer_spec import Table
from ringtmp.nn.layers.containers import Block, Residual
from ringtmp.nn.layers.dense import Dense
from ringtmp.nn.layers.sequences import Attention

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph


@dataclass(frozen=True)
class _Piece(Block):
    """Layers that take the first `features` numbers of each place; the other numbers are passed on.

    The layers' own input and output lie in `saved`: in x and y the numbers of both kinds alternate.

    Parameters
    ----------
    features : int
        Numbers of each place that the layers take.
    """

    features: int

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of the layers' input sample."""
        return (*self.shape[:-1], self.features)

    @property
    def inner_inputs(self) -> int:
        """Numbers per sample of the layers' input."""
        return math.prod(self.inner_shape)

    @property
    def inner_outputs(self) -> int:
        """Numbers per sample of the layers' output."""
        return self.layers[-1].outputs

    @property
    def needs_output(self) -> bool:
        """The layers' own output is kept in `saved`."""
        return False

    def saved_numbers(self) -> int:
        return super().saved_numbers() + 2 * (self.inner_inputs + self.inner_outputs)

    def bind(self, buffers: LayerBuffers) -> None:
        rows = len(buffers.x)
        room, start = [], 0
        for numbers in (self.inner_inputs, self.inner_inputs, self.inner_outputs, self.inner_outputs):
            room.append(buffers.saved[start : start + rows * numbers].reshape(rows, numbers))
            start += rows * numbers
        x, dx, y, dy = room
        self._bind(buffers, x, y, dy, dx if buffers.dx.size else buffers.dx, start)

    def _by_place(self, x: Array, y: Array, dy: Array, dx: Array) -> tuple[Array, Array, Array, Array]:
        """The arrays with one row for each place; empty ones unchanged."""
        places = math.prod(self.shape[:-1])

        def rows(array: Array) -> Array:
            return array.reshape(len(array) * places, -1) if array.size else array

        return rows(x), rows(y), rows(dy), rows(dx)

    def _ends(self, buffers: LayerBuffers) -> tuple[Array, Array, Array, Array]:
        """x, y, dy and dx of the piece, with one row for each place."""
        return self._by_place(buffers.x, buffers.y, buffers.dy, buffers.dx)

    def _inner(self, buffers: LayerBuffers) -> tuple[Array, Array, Array, Array]:
        """x, y, dy and dx of the layers inside, with one row for each place."""
        first, last = buffers.inner[0], buffers.inner[-1]
        return self._by_place(first.x, last.y, last.dy, first.dx)

    def to_table(self) -> dict[str, Any]:
        return super().to_table() | {"features": self.features}

    @classmethod
    def _read(cls, table: Table, shape: tuple[int, ...], width: int) -> tuple[tuple[Layer, ...], int]:
        """Inner layers of a table, and the features that they take. `width`: input features / these, 0: any."""
        features = table.whole("features")
        if features > shape[-1]:
            raise table.fail(f"features must be at most the {shape[-1]} that come in, got {features}")
        layers = table.layers((*shape[:-1], features))
        made = layers[-1].out_shape
        if width and (made != (*shape[:-1], features) or shape[-1] != features * width):
            raise table.fail(f"{shape} comes in, and of {features} features the layers make {made}; they are added")
        return layers, features


@dataclass(frozen=True)
class Columns(_Piece):
    """Some columns of a dense layer: input [x | columns before], output [x | columns so far].

    Parameters
    ----------
    layers : tuple of Layer
        One layer, which computes the columns from x.
    last : bool
        Whether they are the last columns: then the output is the columns alone.
    """

    last: bool

    kind: ClassVar[str] = "columns"

    @property
    def out_shape(self) -> tuple[int, ...]:
        made = self.layers[-1].out_shape[-1]
        return (*self.shape[:-1], self.shape[-1] + made - self.features * self.last)

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _ = self._ends(buffers)
        inner, made, _, _ = self._inner(buffers)
        inner[...] = x[:, : self.features]
        super().forward(p, buffers, context)
        kept = x[:, self.features * self.last :]
        y[:, : kept.shape[1]] = kept
        y[:, kept.shape[1] :] = made

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, _, dy, dx = self._ends(buffers)
        inner, _, grad, inner_dx = self._inner(buffers)
        kept = dy.shape[1] - grad.shape[1]
        grad[...] = dy[:, kept:]
        if dx.size:
            dx[:, : self.features] = 0 if self.last else dy[:, : self.features]
            dx[:, self.features :] = dy[:, self.features * (not self.last) : kept]
        super().backward_input(p, buffers, context)
        if dx.size:
            dx[:, : self.features] += inner_dx

    def to_table(self) -> dict[str, Any]:
        return super().to_table() | {"last": self.last}

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        layers, features = cls._read(table, shape, 0)
        return cls(shape, layers, features, table.flag("last", False))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        made = super().onnx(graph, p, graph.part(x, 0, self.features))
        kept = graph.part(x, self.features * self.last, self.shape[-1])
        first = self.last and self.shape[-1] == self.features  # nothing goes along
        return made if first else graph.add("Concat", kept, made, axis=-1)


@dataclass(frozen=True)
class Carry(_Piece):
    """Input [x], output [layers(x) | x]; the layers keep the number of features."""

    kind: ClassVar[str] = "carry"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], 2 * self.features)

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _ = self._ends(buffers)
        inner, made, _, _ = self._inner(buffers)
        inner[...] = x
        super().forward(p, buffers, context)
        y[:, : self.features], y[:, self.features :] = made, x

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, _, dy, dx = self._ends(buffers)
        _, _, grad, inner_dx = self._inner(buffers)
        grad[...] = dy[:, : self.features]
        if dx.size:
            dx[...] = dy[:, self.features :]
        super().backward_input(p, buffers, context)
        if dx.size:
            dx += inner_dx

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        layers, features = cls._read(table, shape, 1)
        return cls(shape, layers, features)

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return graph.add("Concat", super().onnx(graph, p, x), x, axis=-1)


@dataclass(frozen=True)
class Share(_Piece):
    """Input [n | sum], output [n | sum + layers(n)].

    Parameters
    ----------
    last : bool
        Whether it is the last piece: then the output is the sum alone.
    """

    last: bool

    kind: ClassVar[str] = "share"
    takes_shape: ClassVar[bool] = False  # never the first

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.inner_shape if self.last else self.shape

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _ = self._ends(buffers)
        inner, made, _, _ = self._inner(buffers)
        inner[...] = x[:, : self.features]
        super().forward(p, buffers, context)
        if not self.last:
            y[:, : self.features] = x[:, : self.features]
        np.add(x[:, self.features :], made, out=y[:, self.features * (not self.last) :])

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, _, dy, dx = self._ends(buffers)
        _, _, grad, inner_dx = self._inner(buffers)
        grad[...] = dy[:, self.features * (not self.last) :]
        if dx.size:
            dx[:, self.features :] = grad
            dx[:, : self.features] = 0 if self.last else dy[:, : self.features]
        super().backward_input(p, buffers, context)
        if dx.size:
            dx[:, : self.features] += inner_dx

    def to_table(self) -> dict[str, Any]:
        return super().to_table() | {"last": self.last}

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        layers, features = cls._read(table, shape, 2)
        return cls(shape, layers, features, table.flag("last", False))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        taken = graph.part(x, 0, self.features)
        total = graph.add("Add", graph.part(x, self.features, self.shape[-1]), super().onnx(graph, p, taken))
        return total if self.last else graph.add("Concat", taken, total, axis=-1)


def cut(layers: Sequence[Layer], most: int) -> list[dict[str, Any]]:
    """Tables of a chain whose largest layers are cut into pieces.

    Parameters
    ----------
    layers : sequence of Layer
        The chain.
    most : int
        Pieces of the largest layer; smaller ones get fewer in proportion. Layers that cannot be cut stay whole.
    """
    largest = max(layer.count for layer in layers)
    tables: list[dict[str, Any]] = []
    for layer in layers:
        count = math.ceil(most * layer.count / largest) if largest else 1
        tables += _cut(layer, count) if count > 1 else [layer.to_table()]
    return tables


def _cut(layer: Layer, count: int) -> list[dict[str, Any]]:
    if isinstance(layer, Dense):
        return _columns(layer, count)
    parts = layer.layers if type(layer) is Block else (layer,)
    halves = [part for part in parts if _half(part)]
    if len(halves) < len(parts):
        return [layer.to_table()]
    return [table for half in halves for table in _shares(half, count)]


def _columns(layer: Dense, count: int) -> list[dict[str, Any]]:
    sizes = pieces(layer.units, min(count, layer.units))
    before, tables = 0, []
    for number, units in enumerate(sizes):
        table = {**layer.to_table(), "units": units}
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
    """Whether `layer` is half a transformer block: norm, dense, perhaps attention, linear, perhaps dropout."""
    if not isinstance(layer, Residual):
        return False
    kinds = [inner.kind for inner in layer.layers if inner.kind != "dropout"]
    down = layer.layers[len(kinds) - 1]
    linear = isinstance(down, Dense) and down.activation == "linear"
    return linear and kinds in (["layernorm", "dense", "attention", "dense"], ["layernorm", "dense", "dense"])


def _shares(layer: Residual, count: int) -> list[dict[str, Any]]:
    """Tables of half a block: the norm with its input, then heads or hidden features in pieces that are added up."""
    norm, up, *rest = layer.layers
    down = next(inner for inner in rest if isinstance(inner, Dense))
    attention = next((inner for inner in rest if isinstance(inner, Attention)), None)
    dropout = [inner.to_table() for inner in rest if inner.kind == "dropout"]
    assert isinstance(up, Dense)
    width, inside = layer.shape[-1], down.shape[-1]
    whole = attention.heads if attention else up.units
    sizes = pieces(whole, min(count, whole))
    shape = list(layer.shape)
    tables: list[dict[str, Any]] = [{"type": "carry", "shape": shape, "features": width, "layers": [norm.to_table()]}]
    for number, size in enumerate(sizes):
        part = inside * size // whole
        inner: list[dict[str, Any]] = [{**up.to_table(), "units": part * up.units // inside}]
        if attention:
            inner.append({"type": "attention", "heads": size})
        # Deviations of start values depend on the number of inputs: here on that of all pieces together.
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

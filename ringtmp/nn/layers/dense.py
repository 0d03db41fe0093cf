"""The dense layer, on vectors or on each place of a sequence."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringtmp.kernels.activations import ACTIVATIONS, SLOPED
from ringtmp.kernels.dense import dense_backward_input, dense_backward_weight, dense_forward, dense_stack
from ringtmp.kernels.gemm import DEPTH, transpose_panels
from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext, draw_panels
from ringtmp.nn.layer_spec import Table

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph

# Gain of the activation, for start values that keep the activations' variance (He et al. 2015, Glorot & Bengio 2010).
GAIN = {"linear": 1.0, "relu": math.sqrt(2), "gelu": math.sqrt(2), "silu": math.sqrt(2), "tanh": 5 / 3, "sigmoid": 1.0}


@dataclass(frozen=True)
class Dense(Layer):
    """y = activation(x @ weight + bias) on the last axis of the shape.

    Parameters
    ----------
    units : int
        Features of y.
    activation : str
        One of `ACTIVATIONS`.
    bias : bool
        Whether a bias is added.
    scale : float
        Factor of the start values, besides the activation's gain.
    """

    units: int
    activation: str = "linear"
    bias: bool = True
    scale: float = 1.0

    kind: ClassVar[str] = "dense"
    packed: ClassVar[tuple[str, ...]] = ("weight",)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.units)

    @property
    def places(self) -> int:
        """Rows of a sample: its places."""
        return math.prod(self.shape[:-1])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.shape[-1], self.units), "bias": (self.units if self.bias else 0,)}

    @property
    def needs_output(self) -> bool:
        return self.activation != "linear"

    def flops(self, rows: int) -> int:
        return 6 * rows * self.inputs * self.units

    def saved_numbers(self) -> int:
        return self.outputs if self.activation in SLOPED else 0

    def scratch_numbers(self, rows: int) -> int:
        return DEPTH * (self.shape[-1] + self.units)  # the samples of one product of W, in panels

    def derived_numbers(self) -> int:
        return self.shape[-1] * self.units

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        deviation = self.scale * GAIN[self.activation] / math.sqrt(self.shape[-1])
        views = self.views(flat)
        draw_panels(views["weight"], self.shapes["weight"], deviation, rng)
        views["bias"][...] = 0

    def bind(self, buffers: LayerBuffers) -> None:
        code = ACTIVATIONS[self.activation]
        rows = len(buffers.x) * self.places
        slope = buffers.saved.reshape((rows, self.units)) if buffers.saved.size else buffers.saved.reshape(0, 0)
        dx = buffers.dx.reshape(rows, -1) if buffers.dx.size else np.empty((0, self.shape[-1]), buffers.x.dtype)
        buffers.inner = (
            buffers.x.reshape(rows, -1),
            buffers.y.reshape(rows, -1),
            buffers.dy.reshape(rows, -1),
            dx,
            slope,
            code,
        )

    def refresh_cache(self, p: Parameters) -> None:
        transpose_panels(p["weight"], self.shape[-1], self.units, p["derived"])

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _, slope, code = buffers.inner
        dense_forward(x, p["weight"], p["bias"], y, slope, code)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, y, dy, dx, slope, code = buffers.inner
        dense_backward_input(y, slope, dy, p.get("derived", y[0]), dx, code)

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        k, n = self.shape[-1], self.units
        for pieces in _chunks([(buffers.inner[0], buffers.inner[2]) for buffers in all_buffers]):
            total, at = sum(len(x) for x, _ in pieces), 0
            for x, delta in pieces:
                dense_stack(x, delta, scratch, at, total)
                at += len(x)
            dense_backward_weight(scratch, total, k, n, g["weight"], g["bias"], not first)
            first = False

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        if len(shape) == 3:
            raise table.fail(f"an image {shape} comes in; put a flatten layer before dense")
        units, activation, bias = table.whole("units"), table.activation(), table.flag("bias", True)
        return cls(shape, units, activation, bias, table.number("scale", 1.0, 0.0, math.inf))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        y = graph.add("MatMul", x, graph.constant(p["weight"]))
        if self.bias:
            y = graph.add("Add", y, graph.constant(p["bias"]))
        return graph.activate(y, self.activation)


def _chunks(pairs: list[tuple[Array, Array]]) -> Iterator[list[tuple[Array, Array]]]:
    """The rows of all pairs, in order, in lists of at most `DEPTH` rows."""
    chunk: list[tuple[Array, Array]] = []
    room = DEPTH
    for x, delta in pairs:
        start = 0
        while start < len(x):
            stop = min(len(x), start + room)
            chunk.append((x[start:stop], delta[start:stop]))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], DEPTH
    if chunk:
        yield chunk

"""Layers on sequences [places, features]: embedding and causal self-attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringtmp.kernels.attention import BLOCK as ATTENTION_BLOCK
from ringtmp.kernels.attention import attention_backward_input, attention_forward
from ringtmp.kernels.embedding import embedding_backward_weight, embedding_forward
from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext, draw_normal
from ringtmp.nn.layer_spec import Table

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph


@dataclass(frozen=True)
class Embedding(Layer):
    """A learned vector for each token plus one for each place; takes tokens (int64), so it must come first.

    Start values have deviation 0.02 (Radford et al. 2019).

    Parameters
    ----------
    tokens, width : int
        Kinds of token; features of a place.
    """

    tokens: int
    width: int

    kind: ClassVar[str] = "embedding"
    takes_shape: ClassVar[bool] = True
    family: ClassVar[str] = "sequences"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.shape, self.width)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"token": (self.tokens, self.width), "position": (*self.shape, self.width)}

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        draw_normal(flat, 0.02, rng)

    def bind(self, buffers: LayerBuffers) -> None:
        shape = (len(buffers.x), *self.out_shape)
        buffers.inner = (buffers.x, buffers.y.reshape(shape), buffers.dy.reshape(shape))

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        tokens, y, _ = buffers.inner
        embedding_forward(tokens, p["token"], p["position"], y)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        """Nothing: tokens have no gradient."""

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        for buffers in all_buffers:
            tokens, _, dy = buffers.inner
            embedding_backward_weight(tokens, dy, g["token"], g["position"], not first)
            first = False

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        if len(shape) != 1:
            raise table.fail(f"embedding takes tokens (places,), but {shape} comes in")
        return cls(shape, table.whole("tokens"), table.whole("width"))

    @property
    def vocabulary(self) -> int:
        return self.tokens

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        return graph.add("Add", graph.add("Gather", graph.constant(p["token"]), x), graph.constant(p["position"]))


@dataclass(frozen=True)
class Attention(Layer):
    """Causal multi-head self-attention without parameters: queries, keys and values side by side in, their mix out.

    Parameters
    ----------
    heads : int
        Number of heads; 3 x heads divides the input's features.
    """

    heads: int

    kind: ClassVar[str] = "attention"
    family: ClassVar[str] = "sequences"

    @property
    def out_shape(self) -> tuple[int, ...]:
        places, triple = self.shape
        return places, triple // 3

    @property
    def needs_output(self) -> bool:
        return True

    def flops(self, rows: int) -> int:
        places, width = self.out_shape
        return rows * width * places * (places + 1) * 7  # 2 products forward, 5 back, each on half a square

    def saved_numbers(self) -> int:
        return self.heads * self.shape[0]

    def scratch_numbers(self, rows: int) -> int:
        places, width = self.out_shape
        return 2 * places * (width // self.heads + ATTENTION_BLOCK)

    def bind(self, buffers: LayerBuffers) -> None:
        rows = len(buffers.x)
        dx = buffers.dx.reshape(rows, *self.shape) if buffers.dx.size else None
        buffers.inner = (
            buffers.x.reshape(rows, *self.shape),
            buffers.y.reshape(rows, *self.out_shape),
            buffers.dy.reshape(rows, *self.out_shape),
            dx,
            buffers.saved.reshape(rows, self.heads, self.shape[0]),
        )

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _, logsum = buffers.inner
        attention_forward(x, y, logsum, self.heads, buffers.scratch)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, dy, dx, logsum = buffers.inner
        if dx is not None:
            attention_backward_input(x, y, logsum, dy, dx, self.heads, buffers.scratch)

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        shape = table.sequence(shape)
        heads = table.whole("heads")
        if shape[1] % (3 * heads):
            raise table.fail(f"3 x heads must divide the {shape[1]} features that come in, got heads {heads}")
        return cls(shape, heads)

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        places, width = self.out_shape
        each = width // self.heads

        def heads(number: int, order: list[int]) -> str:
            part = graph.reshape(graph.part(x, number * width, (number + 1) * width), (places, self.heads, each))
            return graph.add("Transpose", part, perm=order)

        q, k, v = heads(0, [0, 2, 1, 3]), heads(1, [0, 2, 3, 1]), heads(2, [0, 2, 1, 3])
        scores = graph.add("Mul", graph.add("MatMul", q, k), graph.number(1 / math.sqrt(each)))
        later = graph.constant(np.triu(np.full((places, places), -np.inf, graph.dtype), 1))
        mixed = graph.add("MatMul", graph.add("Softmax", graph.add("Add", scores, later), axis=-1), v)
        return graph.reshape(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), self.out_shape)

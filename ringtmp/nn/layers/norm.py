"""Layer norm and group norm: mean 0 and deviation 1 over a part of a sample, then a gain and a bias."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringtmp.kernels.norm import (
    EPSILON,
    group_norm_backward_input,
    group_norm_backward_weight,
    group_norm_forward,
    layer_norm_backward_input,
    layer_norm_backward_weight,
    layer_norm_forward,
)
from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext
from ringtmp.nn.layer_spec import Table

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph


@dataclass(frozen=True)
class _Norm(Layer):
    """Base of both norms; F keeps the mean and 1 / deviation of each part."""

    kernels: ClassVar[tuple[Any, Any, Any]]  # F, I, W

    def _parts(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of x and of the moments, as the kernels see them."""
        raise NotImplementedError

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        views = self.views(flat)
        views["gain"][:], views["bias"][:] = 1, 0

    def bind(self, buffers: LayerBuffers) -> None:
        shape, moments = self._parts(len(buffers.x))
        dx = buffers.dx.reshape(shape) if buffers.dx.size else None
        buffers.inner = (
            buffers.x.reshape(shape),
            buffers.y.reshape(shape),
            buffers.dy.reshape(shape),
            dx,
            buffers.saved.reshape(moments),
        )

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _, moments = buffers.inner
        self.kernels[0](x, p["gain"], p["bias"], y, moments)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, _, dy, dx, moments = buffers.inner
        if dx is not None:
            self.kernels[1](x, p["gain"], moments, dy, dx)

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        for buffers in all_buffers:
            x, _, dy, _, moments = buffers.inner
            self.kernels[2](x, moments, dy, g["gain"], g["bias"], not first)
            first = False


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Norm over the last axis; a gain and a bias for each feature."""

    kind: ClassVar[str] = "layernorm"
    family: ClassVar[str] = "sequences"
    kernels: ClassVar[tuple[Any, Any, Any]] = (
        layer_norm_forward,
        layer_norm_backward_input,
        layer_norm_backward_weight,
    )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"gain": self.shape[-1:], "bias": self.shape[-1:]}

    def saved_numbers(self) -> int:
        return 2 * self.inputs // self.shape[-1]

    def _parts(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        count = rows * self.inputs // self.shape[-1]
        return (count, self.shape[-1]), (count, 2)

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        gain, bias = graph.constant(p["gain"]), graph.constant(p["bias"])
        return graph.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=EPSILON)


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Norm over the pixels and the channels of a group; a gain and a bias for each channel.

    Parameters
    ----------
    groups : int
        Number of groups; divides the channels.
    """

    groups: int

    kind: ClassVar[str] = "groupnorm"
    takes_shape: ClassVar[bool] = True
    family: ClassVar[str] = "images"
    kernels: ClassVar[tuple[Any, Any, Any]] = (
        group_norm_forward,
        group_norm_backward_input,
        group_norm_backward_weight,
    )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        parts = (self.groups, self.shape[2] // self.groups)
        return {"gain": parts, "bias": parts}

    def saved_numbers(self) -> int:
        return 2 * self.groups

    def _parts(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        h, w, c = self.shape
        return (rows, h * w, self.groups, c // self.groups), (rows, self.groups, 2)

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        shape = table.image(shape)
        groups = table.whole("groups")
        if shape[2] % groups:
            raise table.fail(f"groups must divide the {shape[2]} channels that come in, got {groups}")
        return cls(shape, groups)

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        h, w, c = self.shape
        parts = graph.reshape(x, (h * w, self.groups, c // self.groups))
        centred = graph.add("Sub", parts, graph.add("ReduceMean", parts, axes=[1, 3]))
        variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1, 3])
        deviation = graph.add("Sqrt", graph.add("Add", variance, graph.number(EPSILON)))
        scaled = graph.add("Mul", graph.add("Div", centred, deviation), graph.constant(p["gain"]))
        return graph.reshape(graph.add("Add", scaled, graph.constant(p["bias"])), self.shape)

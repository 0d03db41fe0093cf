"""Layers on images [height, width, channels]: convolution and pooling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringtmp.kernels.activations import ACTIVATIONS, SLOPED
from ringtmp.kernels.conv import conv_backward_input, conv_backward_weight, conv_forward, conv_turn
from ringtmp.kernels.pool import (
    average_pool_backward_input,
    average_pool_forward,
    max_pool_backward_input,
    max_pool_forward,
)
from ringtmp.nn.layer import Array, Layer, LayerBuffers, Parameters, StepContext, draw_panels
from ringtmp.nn.layer_spec import Table
from ringtmp.nn.layers.dense import GAIN

if TYPE_CHECKING:
    from ringtmp.nn.onnx_graph import Graph


@dataclass(frozen=True)
class Conv2D(Layer):
    """y = activation(conv(x) + bias) with a square kernel; weight [size, size, channels, filters].

    Parameters
    ----------
    filters, size, stride, pad : int
        Channels of y; side of the kernel; pixels between its positions; rows of zeros at each edge of the image.
    activation : str
        One of `ACTIVATIONS`.
    bias : bool
        Whether a bias is added.
    """

    filters: int
    size: int
    stride: int = 1
    pad: int = 0
    activation: str = "linear"
    bias: bool = True

    kind: ClassVar[str] = "conv2d"
    takes_shape: ClassVar[bool] = True
    family: ClassVar[str] = "images"
    packed: ClassVar[tuple[str, ...]] = ("weight",)

    @property
    def out_shape(self) -> tuple[int, ...]:
        h, w, _ = self.shape
        reach = 2 * self.pad - self.size
        return (h + reach) // self.stride + 1, (w + reach) // self.stride + 1, self.filters

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        weight = (self.size, self.size, self.shape[2], self.filters)
        return {"weight": weight, "bias": (self.filters if self.bias else 0,)}

    @property
    def needs_output(self) -> bool:
        return self.activation != "linear"

    def flops(self, rows: int) -> int:
        return 6 * rows * self.outputs * self.size * self.size * self.shape[2]

    def saved_numbers(self) -> int:
        return self.outputs if self.activation in SLOPED else 0

    def scratch_numbers(self, rows: int) -> int:
        h, w, c = self.shape
        edge = self.size - 1
        return max((h + 2 * self.pad) * (w + 2 * self.pad) * c, (h + edge) * (w + edge) * self.filters)

    def derived_numbers(self) -> int:
        return math.prod(self.shapes["weight"])

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        shape, views = self.shapes["weight"], self.views(flat)
        draw_panels(views["weight"], shape, GAIN[self.activation] / math.sqrt(math.prod(shape[:3])), rng)
        views["bias"][...] = 0

    def bind(self, buffers: LayerBuffers) -> None:
        rows = len(buffers.x)
        slope = buffers.saved.reshape(-1, self.filters) if buffers.saved.size else buffers.saved.reshape(0, 0)
        dx = buffers.dx.reshape(rows, *self.shape) if buffers.dx.size else np.empty((0, *self.shape), buffers.x.dtype)
        buffers.inner = (
            buffers.x.reshape(rows, *self.shape),
            buffers.y.reshape(rows, *self.out_shape),
            buffers.dy.reshape(rows, *self.out_shape),
            dx,
            slope,
        )

    def refresh_cache(self, p: Parameters) -> None:
        conv_turn(p["weight"], p["derived"], self.size, self.shape[2], self.filters)

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _, slope = buffers.inner
        code = ACTIVATIONS[self.activation]
        conv_forward(x, p["weight"], p["bias"], y, slope, self.size, self.stride, self.pad, code, buffers.scratch)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, y, dy, dx, slope = buffers.inner
        code = ACTIVATIONS[self.activation]
        turned = p.get("derived", buffers.scratch)
        conv_backward_input(y, slope, dy, turned, dx, self.size, self.stride, self.pad, code, buffers.scratch)

    def backward_weight(self, g: Parameters, all_buffers: Sequence[LayerBuffers], first: bool, scratch: Array) -> None:
        for buffers in all_buffers:
            x, _, dy, _, _ = buffers.inner
            conv_backward_weight(x, dy, g["weight"], g["bias"], self.size, self.stride, self.pad, not first, scratch)
            first = False

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        shape = table.image(shape)
        filters, size = table.whole("filters"), table.whole("size")
        stride, pad = table.whole("stride", 1), table.whole("pad", 0, least=0)
        if pad >= size:
            raise table.fail(f"pad must be below size {size}, got {pad}")
        table.window(shape, size, pad)
        return cls(shape, filters, size, stride, pad, table.activation(), table.flag("bias", True))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        weights = [graph.constant(p["weight"].transpose(3, 2, 0, 1))]
        if self.bias:
            weights.append(graph.constant(p["bias"]))
        size, stride, pad = [self.size] * 2, [self.stride] * 2, [self.pad] * 4
        y = graph.among_channels(
            graph.reshape(x, self.shape),
            lambda z: graph.add("Conv", z, *weights, kernel_shape=size, strides=stride, pads=pad),
        )
        return graph.activate(y, self.activation)


@dataclass(frozen=True)
class _Pool(Layer):
    """Windows of `size` x `size` pixels, `stride` apart; pixels that fill no window are left out."""

    size: int
    stride: int

    onnx_operator: ClassVar[str]

    @property
    def out_shape(self) -> tuple[int, ...]:
        h, w, c = self.shape
        return (h - self.size) // self.stride + 1, (w - self.size) // self.stride + 1, c

    def bind(self, buffers: LayerBuffers) -> None:
        rows = len(buffers.x)
        dx = buffers.dx.reshape(rows, *self.shape) if buffers.dx.size else None
        buffers.inner = (
            buffers.x.reshape(rows, *self.shape),
            buffers.y.reshape(rows, *self.out_shape),
            buffers.dy.reshape(rows, *self.out_shape),
            dx,
        )

    @classmethod
    def from_table(cls, table: Table, shape: tuple[int, ...]) -> Layer:
        shape = table.image(shape)
        size = table.whole("size")
        table.window(shape, size)
        return cls(shape, size, table.whole("stride", size))

    def onnx(self, graph: "Graph", p: dict[str, Array], x: str) -> str:
        size, stride = [self.size] * 2, [self.stride] * 2
        return graph.among_channels(x, lambda z: graph.add(self.onnx_operator, z, kernel_shape=size, strides=stride))


@dataclass(frozen=True)
class MaxPool2D(_Pool):
    """The largest number of each window, channel by channel.

    Parameters
    ----------
    size, stride : int
        Side of a window and distance between windows, in pixels.
    """

    kind: ClassVar[str] = "maxpool2d"
    takes_shape: ClassVar[bool] = True
    onnx_operator: ClassVar[str] = "MaxPool"
    family: ClassVar[str] = "images"

    @property
    def needs_output(self) -> bool:
        return True

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _ = buffers.inner
        max_pool_forward(x, y, self.size, self.stride)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, dy, dx = buffers.inner
        if dx is not None:
            max_pool_backward_input(x, y, dy, dx, self.size, self.stride)


@dataclass(frozen=True)
class AvgPool2D(_Pool):
    """The mean of each window, channel by channel.

    Parameters
    ----------
    size, stride : int
        Side of a window and distance between windows, in pixels.
    """

    kind: ClassVar[str] = "avgpool2d"
    takes_shape: ClassVar[bool] = True
    onnx_operator: ClassVar[str] = "AveragePool"
    family: ClassVar[str] = "images"

    def forward(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        x, y, _, _ = buffers.inner
        average_pool_forward(x, y, self.size, self.stride)

    def backward_input(self, p: Parameters, buffers: LayerBuffers, context: StepContext) -> None:
        _, _, dy, dx = buffers.inner
        if dx is not None:
            average_pool_backward_input(dy, dx, self.size, self.stride)

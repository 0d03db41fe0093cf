"""Layers on images [height, width, channels]: convolution and pooling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kernels.activations import ACTIVATIONS, SLOPED
from kernels.conv import conv_backward_input, conv_backward_weight, conv_forward, conv_turn
from kernels.pool import average_pool_backward_input, average_pool_forward, max_pool_backward_input, max_pool_forward
from ringtmp.nn.dense import GAIN
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext, draw_panels


@dataclass(frozen=True)
class Conv2D(Layer):
    """y = activation(conv(x) + bias) with a square kernel; weight [size, size, channels, filters].

    Parameters
    ----------
    filters, size, stride, pad : int
        Channels of y; edge of the kernel; pixels between its places; rows of zeros round the image.
    activation, bias : str, bool
        As of `Dense`.
    """

    filters: int
    size: int
    stride: int = 1
    pad: int = 0
    activation: str = "linear"
    bias: bool = True

    kind: ClassVar[str] = "conv2d"
    family: ClassVar[str] = "images"
    panelled: ClassVar[tuple[str, ...]] = ("weight",)

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

    def attach(self, place: Place) -> None:
        rows = len(place.x)
        slope = place.saved.reshape(-1, self.filters) if place.saved.size else place.saved.reshape(0, 0)
        dx = place.dx.reshape(rows, *self.shape) if place.dx.size else np.empty((0, *self.shape), place.x.dtype)
        place.inner = (
            place.x.reshape(rows, *self.shape),
            place.y.reshape(rows, *self.out_shape),
            place.dy.reshape(rows, *self.out_shape),
            dx,
            slope,
        )

    def derive(self, p: Parameters) -> None:
        conv_turn(p["weight"], p["derived"], self.size, self.shape[2], self.filters)

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _, slope = place.inner
        code = ACTIVATIONS[self.activation]
        conv_forward(x, p["weight"], p["bias"], y, slope, self.size, self.stride, self.pad, code, place.scratch)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        _, y, dy, dx, slope = place.inner
        code = ACTIVATIONS[self.activation]
        turned = p.get("derived", place.scratch)
        conv_backward_input(y, slope, dy, turned, dx, self.size, self.stride, self.pad, code, place.scratch)

    def backward_weight(self, g: Parameters, places: Sequence[Place], first: bool, scratch: Array) -> None:
        for place in places:
            x, _, dy, _, _ = place.inner
            conv_backward_weight(x, dy, g["weight"], g["bias"], self.size, self.stride, self.pad, not first, scratch)
            first = False


@dataclass(frozen=True)
class _Pool(Layer):
    """Windows of `size` x `size` pixels, `stride` apart; what does not fill a window is left out."""

    size: int
    stride: int

    @property
    def out_shape(self) -> tuple[int, ...]:
        h, w, c = self.shape
        return (h - self.size) // self.stride + 1, (w - self.size) // self.stride + 1, c

    def attach(self, place: Place) -> None:
        rows = len(place.x)
        dx = place.dx.reshape(rows, *self.shape) if place.dx.size else None
        place.inner = (
            place.x.reshape(rows, *self.shape),
            place.y.reshape(rows, *self.out_shape),
            place.dy.reshape(rows, *self.out_shape),
            dx,
        )


@dataclass(frozen=True)
class MaxPool2D(_Pool):
    """The largest number of each window, channel by channel."""

    kind: ClassVar[str] = "maxpool2d"
    family: ClassVar[str] = "images"

    @property
    def needs_output(self) -> bool:
        return True

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _ = place.inner
        max_pool_forward(x, y, self.size, self.stride)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, dy, dx = place.inner
        if dx is not None:
            max_pool_backward_input(x, y, dy, dx, self.size, self.stride)


@dataclass(frozen=True)
class AvgPool2D(_Pool):
    """The mean of each window, channel by channel."""

    kind: ClassVar[str] = "avgpool2d"
    family: ClassVar[str] = "images"

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _ = place.inner
        average_pool_forward(x, y, self.size, self.stride)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        _, _, dy, dx = place.inner
        if dx is not None:
            average_pool_backward_input(dy, dx, self.size, self.stride)

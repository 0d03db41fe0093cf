"""Layer norm and group norm: mean 0 and deviation 1 over a part of a sample, then a gain and a bias."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.norm import (
    group_norm_backward_input,
    group_norm_backward_weight,
    group_norm_forward,
    layer_norm_backward_input,
    layer_norm_backward_weight,
    layer_norm_forward,
)
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext


@dataclass(frozen=True)
class _Norm(Layer):
    """What both share; F keeps mean and 1 / deviation of each part."""

    kernels: ClassVar[tuple[Any, Any, Any]]  # F, I, W

    def _parts(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of x and of the moments, as the kernels see them."""
        raise NotImplementedError

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        views = self.views(flat)
        views["gain"][:], views["bias"][:] = 1, 0

    def attach(self, place: Place) -> None:
        shape, moments = self._parts(len(place.x))
        dx = place.dx.reshape(shape) if place.dx.size else None
        place.inner = (
            place.x.reshape(shape),
            place.y.reshape(shape),
            place.dy.reshape(shape),
            dx,
            place.saved.reshape(moments),
        )

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _, moments = place.inner
        self.kernels[0](x, p["gain"], p["bias"], y, moments)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, _, dy, dx, moments = place.inner
        if dx is not None:
            self.kernels[1](x, p["gain"], moments, dy, dx)

    def backward_weight(self, g: Parameters, places: Sequence[Place], first: bool, scratch: Array) -> None:
        for place in places:
            x, _, dy, _, moments = place.inner
            self.kernels[2](x, moments, dy, g["gain"], g["bias"], not first)
            first = False


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Over the last axis; a gain and a bias for each feature."""

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


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Over the pixels and the channels of a group; a gain and a bias for each channel."""

    groups: int

    kind: ClassVar[str] = "groupnorm"
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

"""Layers on sequences [places, features]: embedding and causal self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kernels.attention import BLOCK as ATTENTION_BLOCK
from kernels.attention import attention_backward_input, attention_forward
from kernels.embedding import embedding_backward_weight, embedding_forward
from ringtmp.nn.layer import Array, Layer, Parameters, Place, StepContext, draw_normal


@dataclass(frozen=True)
class Embedding(Layer):
    """A learned vector for each token plus one for each place; takes tokens (int64), so it must come first.

    Parameters
    ----------
    tokens, width : int
        Kinds of token, and features of a place. Start values have deviation 0.02 (Radford et al. 2019).
    """

    tokens: int
    width: int

    kind: ClassVar[str] = "embedding"
    family: ClassVar[str] = "sequences"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.shape, self.width)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"token": (self.tokens, self.width), "position": (*self.shape, self.width)}

    def draw(self, flat: Array, rng: np.random.Generator) -> None:
        draw_normal(flat, 0.02, rng)

    def attach(self, place: Place) -> None:
        shape = (len(place.x), *self.out_shape)
        place.inner = (place.x, place.y.reshape(shape), place.dy.reshape(shape))

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        tokens, y, _ = place.inner
        embedding_forward(tokens, p["token"], p["position"], y)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        """Nothing: tokens have no gradient."""

    def backward_weight(self, g: Parameters, places: Sequence[Place], first: bool, scratch: Array) -> None:
        for place in places:
            tokens, _, dy = place.inner
            embedding_backward_weight(tokens, dy, g["token"], g["position"], not first)
            first = False


@dataclass(frozen=True)
class Attention(Layer):
    """Causal multi-head self-attention without parameters: queries, keys and values side by side in, their mix out."""

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

    def attach(self, place: Place) -> None:
        rows = len(place.x)
        dx = place.dx.reshape(rows, *self.shape) if place.dx.size else None
        place.inner = (
            place.x.reshape(rows, *self.shape),
            place.y.reshape(rows, *self.out_shape),
            place.dy.reshape(rows, *self.out_shape),
            dx,
            place.saved.reshape(rows, self.heads, self.shape[0]),
        )

    def forward(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, _, _, logsum = place.inner
        attention_forward(x, y, logsum, self.heads, place.scratch)

    def backward_input(self, p: Parameters, place: Place, moment: StepContext) -> None:
        x, y, dy, dx, logsum = place.inner
        if dx is not None:
            attention_backward_input(x, y, logsum, dy, dx, self.heads, place.scratch)

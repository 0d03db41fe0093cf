"""Update rules over flat arrays, and the learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kernels
from ringtmp.nn.layer import Array

# The slots of each rule: arrays as large as the parameters, kept beside them and in checkpoints.
SLOTS: dict[str, tuple[str, ...]] = {"sgd": (), "momentum": ("velocity",), "adam": ("m", "v"), "adamw": ("m", "v")}

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Optimizer:
    """One of `SLOTS`, with its constants; `clip_value` bounds every number of a gradient, `clip_norm` that of all."""

    name: str
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip_value: float | None = None
    clip_norm: float | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that the rule keeps beside the parameters."""
        return SLOTS[self.name]

    def clip(self, g: Array, norm: float) -> None:
        """Bound flat gradients in place; `norm` is that of all layers' gradients together."""
        if self.clip_norm is not None and norm > self.clip_norm:
            kernels.scale_by(g, self.clip_norm / norm)
        if self.clip_value is not None:
            kernels.clip_value(g, self.clip_value)

    def update(self, w: Array, g: Array, slots: dict[str, Array], lr: float, step: int) -> None:
        """One step in place over flat arrays; `step` counts from 1."""
        if self.name == "sgd":
            kernels.sgd(w, g, lr, self.weight_decay)
        elif self.name == "momentum":
            kernels.momentum(w, g, slots["velocity"], lr, self.momentum, self.weight_decay)
        else:
            rule = kernels.adam if self.name == "adam" else kernels.adamw
            rule(w, g, slots["m"], slots["v"], lr, BETA1, BETA2, EPSILON, self.weight_decay, step)

    def serve(
        self, w: Array, rows: Array, which: Array, scale: float, room: Array, slots: dict[str, Array], lr: float,
        step: int, first: int, last: int,
    ) -> None:  # fmt: skip
        """One step of numbers `first`...`last` - 1 by the sum of some rows' gradients, times `scale`.

        `rows` [workers, n] holds a gradient in each row, `which` the numbers of those that count, in the order in which
        they are summed; `room` is scratch of `kernels.SERVE_BLOCK` numbers.
        """
        sums = (w, rows, which, scale, self.clip_value or math.inf, room)
        if self.name == "sgd":
            kernels.served_sgd(*sums, lr, self.weight_decay, first, last)
        elif self.name == "momentum":
            kernels.served_momentum(*sums, slots["velocity"], lr, self.momentum, self.weight_decay, first, last)
        else:
            rule = kernels.served_adam if self.name == "adam" else kernels.served_adamw
            rule(*sums, slots["m"], slots["v"], lr, BETA1, BETA2, EPSILON, self.weight_decay, step, first, last)


def learning_rate(
    kind: str, lr: float, total: int, warmup: int = 0, every: int = 1000, factor: float = 0.1
) -> Callable[[int], float]:
    """The learning rate of step 0, 1, ..., `total` - 1 (`constant`, `cosine` or `step`), after a linear warm-up."""

    def rate(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / (warmup + 1)
        if kind == "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        if kind == "step":
            return lr * factor ** ((step - warmup) // every)
        return lr

    return rate


def make_slots(optimizer: Optimizer, like: Array, make: Callable[[int, Any], Array]) -> dict[str, Array]:
    """Zeroed slots for the flat parameters `like`; `make` allocates."""
    return {name: make(like.size, like.dtype) for name in optimizer.slots}

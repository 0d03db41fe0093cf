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

_Kernels = dict[str, Callable[..., None]]
_IN_PLACE: _Kernels = {
    "sgd": kernels.sgd,
    "momentum": kernels.momentum,
    "adam": kernels.adam,
    "adamw": kernels.adamw,
}
_INTO: _Kernels = {
    "sgd": kernels.sgd_into,
    "momentum": kernels.momentum_into,
    "adam": kernels.adam_into,
    "adamw": kernels.adamw_into,
}
_SERVED: _Kernels = {
    "sgd": kernels.served_sgd,
    "momentum": kernels.served_momentum,
    "adam": kernels.served_adam,
    "adamw": kernels.served_adamw,
}


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

    def update(
        self,
        w: Array,
        g: Array,
        slots: dict[str, Array],
        lr: float,
        step: int,
        into: tuple[Array, dict[str, Array]] | None = None,
    ) -> None:
        """One step over flat arrays; `step` counts from 1.

        `into`, as (w, slots), gets the new numbers, bit for bit those of an update in place, and the old arrays stay as
        they are; without it the update is in place. Old and new arrays share no number.
        """
        now = [slots[name] for name in self.slots]
        if into is None:
            _IN_PLACE[self.name](w, g, *now, *self._constants(lr, step))
        else:
            new = [into[1][name] for name in self.slots]
            _INTO[self.name](w, g, *now, into[0], *new, *self._constants(lr, step))

    def serve(
        self,
        w: Array,
        rows: Array,
        which: Array,
        scale: float,
        room: Array,
        slots: dict[str, Array],
        lr: float,
        step: int,
        first: int,
        last: int,
    ) -> None:
        """One step of numbers `first`...`last` - 1 by the sum of some rows' gradients, times `scale`.

        `rows` [workers, n] holds a gradient in each row, `which` the numbers of those that count, in the order in which
        they are summed; `room` is scratch of `kernels.SERVE_BLOCK` numbers.
        """
        sums = (w, rows, which, scale, self.clip_value or math.inf, room)
        _SERVED[self.name](*sums, *(slots[name] for name in self.slots), *self._constants(lr, step), first, last)

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        """What the rule's kernels get after their arrays."""
        if self.name == "sgd":
            return lr, self.weight_decay
        if self.name == "momentum":
            return lr, self.momentum, self.weight_decay
        return lr, BETA1, BETA2, EPSILON, self.weight_decay, step


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

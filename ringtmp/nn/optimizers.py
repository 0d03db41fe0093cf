"""Update rules over flat arrays, and the learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ringtmp.kernels.elementwise import clip_value, scale_by
from ringtmp.kernels.registry import OPTIMIZERS, Rule
from ringtmp.nn.layer import Array


@dataclass(frozen=True)
class Optimizer:
    """An update rule with its settings.

    Parameters
    ----------
    name : str
        One of `ringtmp.kernels.registry.OPTIMIZERS`; another one is a `UserError`.
    weight_decay : float
        0 or more; the rule decides what it means.
    momentum : float
        From 0 to below 1; rules without a momentum ignore it.
    clip_value : float, optional
        Bound of the absolute value of every number of a gradient.
    clip_norm : float, optional
        Bound of the norm of all gradients together.
    """

    name: str
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip_value: float | None = None
    clip_norm: float | None = None

    @cached_property
    def rule(self) -> Rule:
        """The rule and its kernels."""
        return OPTIMIZERS[self.name]

    def load(self) -> None:
        """Import the rule, so that `prepare_kernels` of `ringtmp.kernels.compilation` finds its kernels.

        Raises `KeyError` if no file declares it.
        """
        assert self.rule.name == self.name

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that the rule keeps beside the parameters."""
        return self.rule.slots

    def clip(self, g: Array, norm: float) -> None:
        """Limit the flat gradients `g` in place; `norm` is the norm of all layers' gradients together."""
        if self.clip_norm is not None and norm > self.clip_norm:
            scale_by(g, self.clip_norm / norm)
        if self.clip_value is not None:
            clip_value(g, self.clip_value)

    def update(
        self,
        w: Array,
        g: Array,
        slots: dict[str, Array],
        lr: float,
        step: int,
        into: tuple[Array, dict[str, Array]] | None = None,
    ) -> None:
        """One step over flat arrays.

        Parameters
        ----------
        w, g : array [n]
            Parameters and their gradients.
        slots : dict of array [n]
            Slots by name.
        lr : float
            Learning rate of this step.
        step : int
            Number of this step, counted from 1.
        into : (array [n], dict of array [n]), optional
            Parameters and slots that receive the new numbers, bit for bit those of an update in place, while the old
            ones stay; they share no memory with the old ones. Without it the update is in place.
        """
        rule, settings = self.rule, self._settings(lr, step)
        now = [slots[name] for name in rule.slots]
        if into is None:
            rule.in_place(w, g, *now, *settings)
        else:
            rule.into(w, g, *now, into[0], *(into[1][name] for name in rule.slots), *settings)

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
        """One step of some numbers by the sum of several workers' gradients.

        Parameters
        ----------
        w : array [n]
            Parameters.
        rows : array [workers, n]
            A gradient in each row.
        which : int64 array [k]
            Rows to sum, in this order.
        scale : float
            Factor of the sum.
        room : array [ringtmp.kernels.update.BLOCK]
            Scratch; each thread has its own.
        slots : dict of array [n]
            Slots by name.
        lr : float
            Learning rate of this step.
        step : int
            Number of this step, counted from 1.
        first, last : int
            Numbers `first` to `last` - 1 are updated.
        """
        rule, settings = self.rule, self._settings(lr, step)
        now = [slots[name] for name in rule.slots]
        rule.served(w, rows, which, scale, self.clip_value or math.inf, room, *now, *settings, first, last)

    def _settings(self, lr: float, step: int) -> list[float]:
        return self.rule.arguments(lr=lr, weight_decay=self.weight_decay, momentum=self.momentum, step=step)


def smaller(name: str) -> list[str]:
    """Optimizers that keep fewer slots than the one called `name`: one for each number of slots, most slots first."""
    by_slots: dict[int, str] = {}
    for other in OPTIMIZERS:
        by_slots.setdefault(len(OPTIMIZERS[other].slots), other)
    return [by_slots[count] for count in sorted(by_slots, reverse=True) if count < len(OPTIMIZERS[name].slots)]


def learning_rate(
    kind: str, lr: float, total: int, warmup: int = 0, every: int = 1000, factor: float = 0.1
) -> Callable[[int], float]:
    """Learning rate as a function of the step, from 0 to `total` - 1, after a linear warm-up.

    Parameters
    ----------
    kind : str
        `constant`, `cosine` (to 0 at `total`) or `step`.
    lr : float
        Learning rate after the warm-up.
    total : int
        Steps of the run.
    warmup : int
        Steps of the warm-up.
    every, factor : int, float
        Of `step`: steps between two changes, and the factor of each change.
    """

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
    """Zeroed slots of `optimizer` for the flat parameters `like`; `make(size, dtype)` allocates one."""
    return {name: make(like.size, like.dtype) for name in optimizer.slots}

"""Optimizers by name: each file here declares one, and so does any other module that calls `kernels.update.optimizer`."""

from collections.abc import Callable
from dataclasses import dataclass

from ringtmp.registry import Registry


@dataclass(frozen=True)
class Rule:
    """An update rule and its kernels.

    Attributes
    ----------
    name : str
    slots : tuple of str
        Names of the arrays, as large as the parameters and 0 at first, that the rule keeps beside them.
    weight_decay : float
        Weight decay of a run that does not set it.
    settings : dict
        Names of the kernels' last arguments, in their order: None for what a run sets (`kernels.update.RUN`), and
        otherwise the value.
    in_place : callable
        ``in_place(w, g, *slots, *settings)``, all arrays flat and of one dtype. Steps are counted from 1.
    into : callable
        ``into(w, g, *slots, w_new, *slots_new, *settings)``: the same numbers beside the old ones, which stay.
    served : callable
        ``served(w, rows, which, scale, clip, room, *slots, *settings, first, last)``: numbers `first` to `last` - 1 in
        place, so that threads can share them; no split changes a bit. `kernels.serve.summed` explains the others.
    """

    name: str
    slots: tuple[str, ...]
    weight_decay: float
    settings: dict[str, float | None]
    in_place: Callable[..., None]
    into: Callable[..., None]
    served: Callable[..., None]

    def arguments(self, **given: float) -> list[float]:
        """The kernels' last arguments, of which `given` holds what a run sets."""
        return [given[name] if value is None else value for name, value in self.settings.items()]


OPTIMIZERS: Registry[Rule] = Registry("optimizer", __name__)

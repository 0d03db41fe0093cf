"""Emulated nodes: actions stretched by sleeping, so that many slow or unequal nodes run honestly on few cores."""

import time
from collections.abc import Callable, Sequence

from kernels.clock import stretch
from ringtmp.errors import UserError
from ringtmp.nn.model import Model
from ringtmp.run.trace import clock

UPDATE_FLOPS = 10  # per parameter, about what AdamW takes
_LOOK = 200_000  # nanoseconds
_SPIN = 60_000  # nanoseconds; a sleep ends up to so much late


def parse_pace(text: str, ranks: int) -> list[float]:
    """GFLOP/s of each rank from one number for all or one for each, as in 2 or 2,2,0.5. Raises `UserError`."""
    try:
        speeds = [float(part) for part in text.split(",")]
    except ValueError:
        speeds = []
    if not speeds or not all(0 < speed < 1e9 for speed in speeds):
        raise UserError(f"pace: expected GFLOP/s above 0, for all ranks or one for each as in 2,2,0.5, got {text!r}")
    if len(speeds) == 1:
        return speeds * ranks
    if len(speeds) != ranks:
        raise UserError(f"pace: {text} names {len(speeds)} ranks, but {ranks} were started")
    return speeds


def nominal(model: Model, layer: int, rows: int, gflops: float) -> tuple[float, float]:
    """Seconds of F (I and W as much each) and of U of a layer on a node that computes so many GFLOP/s."""
    count = model.layers[layer].count
    return model.layers[layer].flops(rows) / 3 / gflops / 1e9, UPDATE_FLOPS * count / gflops / 1e9


def lateness(paces: "Sequence[Paced]") -> float:
    """By what share of their nominal time the actions of some stages took longer than they were to."""
    return sum(pace.late for pace in paces) / max(1, sum(pace.total for pace in paces))


class Paced:
    """Lets actions last as long as they would on an emulated node, times a factor uniform in 1 +- `jitter`.

    The factor depends on seed, stage, kind and number alone (`kernels.clock.stretch`: the simulator draws the same). An
    action that really takes longer is let through and counted in `late`.
    """

    def __init__(self, stage: int, jitter: float, seed: int) -> None:
        self.stage, self.jitter, self.seed = stage, jitter, seed
        self.late = self.total = 0

    def factor(self, kind: int, number: int) -> float:
        """What the duration of an action is multiplied by."""
        return stretch(self.jitter, self.seed, self.stage, kind, number)

    def until(self, begin: int, nanoseconds: float, meanwhile: Callable[[], object] | None = None) -> None:
        """Sleep until an action that began at `begin` has lasted so long.

        `meanwhile`, if given, is called every fifth of a millisecond: what a node's network card does by itself.
        """
        end = begin + int(nanoseconds)
        self.total += int(nanoseconds)
        left = end - clock()
        if left < 0:
            self.late -= left
            return
        while meanwhile is not None and left > _LOOK:
            meanwhile()
            time.sleep(min(max(0, end - clock()), _LOOK) / 1e9)
            left = end - clock()
        if left > _SPIN:
            time.sleep((left - _SPIN) / 1e9)
        while clock() < end:
            time.sleep(0)


class Pace(Paced):
    """The actions of one stage on a node of `gflops`.

    F, I and W last a third of the layers' operations at that speed each, U ten operations a parameter.
    """

    def __init__(
        self, model: Model, first: int, last: int, stage: int, gflops: float, jitter: float, seed: int
    ) -> None:
        super().__init__(stage, jitter, seed)
        costs = [nominal(model, layer, 1, gflops) for layer in range(first, last)]
        self.layers = [cost[0] * 1e9 for cost in costs]  # nanoseconds of one sample
        held = [ns for ns, layer in zip(self.layers, model.layers[first:last], strict=True) if layer.count]
        self.weights = sum(held or self.layers) or 1.0  # of what the pieces of W are shares of
        self.row, self.update = sum(self.layers), sum(cost[1] for cost in costs) * 1e9

"""Emulated nodes: actions stretched by sleeping, so that many slow or unequal nodes run honestly on few cores."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ringtmp.emulate.jitter import stretch
from ringtmp.errors import UserError
from ringtmp.nn.model import Model
from ringtmp.trace.recorder import clock

UPDATE_FLOPS = 10  # per parameter, about what AdamW takes
_LOOK = 200_000  # nanoseconds
_SPIN = 60_000  # nanoseconds; a sleep ends up to so much late


@dataclass(frozen=True)
class Course:
    """How fast a node is in each step of a run.

    Attributes
    ----------
    first : float
        GFLOP/s to begin with.
    turns : tuple of (int, int, float)
        From a step to a step the speed changes evenly to so many GFLOP/s.
    """

    first: float
    turns: tuple[tuple[int, int, float], ...] = ()

    def slowness(self, step: int) -> float:
        """How many times as long as at first an action takes in a step."""
        speed = self.first
        for begin, end, target in self.turns:
            if step >= end:
                speed = target
            elif step > begin:
                speed += (target - speed) * (step - begin) / (end - begin)
                break
        return self.first / speed


_EXPECTED = "GFLOP/s above 0, for all ranks or one for each as in 2,2,0.5; 2@50:1 from step 50 on, 2@50-90:1 by degrees"


def parse_courses(text: str, ranks: int) -> list[Course]:
    """How fast each rank is, from one course for all or one for each, as in 2,2@50:1,0.5. Raises `UserError`."""
    courses = [_course(part) for part in text.split(",")]
    known = [course for course in courses if course]
    if len(known) < len(courses):
        raise UserError(f"node_speed: expected {_EXPECTED}, got {text!r}")
    if len(known) == 1:
        return known * ranks
    if len(known) != ranks:
        raise UserError(f"node_speed: {text} names {len(known)} ranks, but {ranks} were started")
    return known


def _course(text: str) -> Course | None:
    first, *rest = text.strip().split("@")
    turns, last = [], 0
    for part in rest:
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?:(.+)", part)
        if not match:
            return None
        begin, end = int(match[1]), int(match[2] or match[1])
        if begin < last or end < begin:
            return None
        turns.append((begin, end, _speed(match[3])))
        last = end
    course = Course(_speed(first), tuple(turns))
    return course if all((course.first, *(turn[2] for turn in turns))) else None


def _speed(text: str) -> float:
    """GFLOP/s, or 0 if it is no speed."""
    try:
        speed = float(text)
    except ValueError:
        return 0.0
    return speed if 0 < speed < 1e9 else 0.0


def parse_pace(text: str, ranks: int) -> list[float]:
    """GFLOP/s of each rank at first. Raises `UserError`."""
    return [course.first for course in parse_courses(text, ranks)]


def nominal(model: Model, layer: int, rows: int, gflops: float) -> tuple[float, float]:
    """Seconds of F (I and W as much each) and of U of a layer on a node that computes so many GFLOP/s."""
    count = model.layers[layer].count
    return model.layers[layer].flops(rows) / 3 / gflops / 1e9, UPDATE_FLOPS * count / gflops / 1e9


def lateness(paces: "Sequence[Paced]") -> float:
    """By what share of their nominal time the actions of some stages took longer than they were to."""
    return sum(pace.late for pace in paces) / max(1, sum(pace.total for pace in paces))


class Paced:
    """Lets actions last as long as they would on an emulated node, times a factor uniform in 1 +- `jitter`.

    The factor depends on seed, stage, kind and number alone; the simulator draws the same (`ringtmp.emulate.jitter`).
    An action that really takes longer is let through and counted in `late`.
    """

    def __init__(self, stage: int, jitter: float, seed: int, course: Course) -> None:
        self.stage, self.jitter, self.seed, self.course = stage, jitter, seed, course
        self.late = self.total = 0
        self.slowness = course.slowness(0)

    def stepped(self, step: int) -> None:
        """From here on actions are those of `step`."""
        self.slowness = self.course.slowness(step)

    def factor(self, kind: int, number: int) -> float:
        """What the duration of an action is multiplied by."""
        return stretch(self.jitter, self.seed, self.stage, kind, number)

    def until(self, begin: int, nanoseconds: float, meanwhile: Callable[[], object] | None = None) -> None:
        """Sleep until an action that began at `begin` has lasted so long as it does at the node's first speed.

        `meanwhile`, if given, is called every fifth of a millisecond: what a node's network card does by itself.
        """
        nanoseconds *= self.slowness
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
    """The actions of one stage on a node of some speed, that may change.

    F, I and W last a third of the layers' operations at that speed each, U ten operations a parameter.
    """

    def __init__(
        self, model: Model, first: int, last: int, stage: int, course: Course, jitter: float, seed: int
    ) -> None:
        super().__init__(stage, jitter, seed, course)
        costs = [nominal(model, layer, 1, course.first) for layer in range(first, last)]
        self.layers = [cost[0] * 1e9 for cost in costs]  # nanoseconds of one sample
        held = [ns for ns, layer in zip(self.layers, model.layers[first:last], strict=True) if layer.count]
        self.weights = sum(held or self.layers) or 1.0  # of what the pieces of W are shares of
        self.row, self.update = sum(self.layers), sum(cost[1] for cost in costs) * 1e9

"""Emulated nodes: actions are stretched by sleeping, so that many slow or unequal nodes can be run on few cores."""

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
_SPIN = 60_000  # nanoseconds; a sleep ends at most this late


@dataclass(frozen=True)
class Course:
    """The speed of a node in each step of a run.

    Attributes
    ----------
    first : float
        GFLOP/s at the start.
    turns : tuple of (int, int, float)
        First step, last step, GFLOP/s: between these steps the speed changes linearly to this value.
    """

    first: float
    turns: tuple[tuple[int, int, float], ...] = ()

    def slowness(self, step: int) -> float:
        """Duration of an action in step `step`, relative to its duration at the start."""
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
    """Course of each rank.

    Parameters
    ----------
    text : str
        One course for all ranks or one for each, such as 2,2@50:1,0.5.
    ranks : int
        Number of ranks.

    Raises
    ------
    UserError
        The text is no list of courses, or their number is wrong.
    """
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
    """GFLOP/s, or 0 if the text is not a speed."""
    try:
        speed = float(text)
    except ValueError:
        return 0.0
    return speed if 0 < speed < 1e9 else 0.0


def parse_pace(text: str, ranks: int) -> list[float]:
    """GFLOP/s of each of `ranks` ranks at the start, from the courses in `text`. Raises `UserError`."""
    return [course.first for course in parse_courses(text, ranks)]


def nominal(model: Model, layer: int, rows: int, gflops: float) -> tuple[float, float]:
    """Seconds of F (I and W take the same each) and of U of a layer on an emulated node.

    Parameters
    ----------
    model : Model
        The whole model.
    layer : int
        Number of the layer.
    rows : int
        Samples of a micro-batch.
    gflops : float
        Speed of the node in GFLOP/s, above 0.
    """
    count = model.layers[layer].count
    return model.layers[layer].flops(rows) / 3 / gflops / 1e9, UPDATE_FLOPS * count / gflops / 1e9


def lateness(paces: "Sequence[Paced]") -> float:
    """Time by which the actions of the stages `paces` were late, as a share of their nominal time."""
    return sum(pace.late for pace in paces) / max(1, sum(pace.total for pace in paces))


class Paced:
    """Makes actions last as long as on an emulated node, times a factor uniform in 1 +- `jitter`.

    The factor depends on seed, stage, kind and number alone; the simulator draws the same (`ringtmp.emulate.jitter`).
    An action that really takes longer is not delayed, and its excess is counted in `late`.

    Parameters
    ----------
    stage : int
        Stage along the chain of layers.
    jitter : float
        From 0 to below 1.
    seed : int
        Seed of the jitter, 0 or more.
    course : Course
        Speed of the node.
    """

    def __init__(self, stage: int, jitter: float, seed: int, course: Course) -> None:
        self.stage, self.jitter, self.seed, self.course = stage, jitter, seed, course
        self.late = self.total = 0
        self.slowness = course.slowness(0)

    def stepped(self, step: int) -> None:
        """Use the node's speed of step `step` for the actions that follow."""
        self.slowness = self.course.slowness(step)

    def factor(self, kind: int, number: int) -> float:
        """Jitter factor of an action: its `kind` (0 to 4) and `number`, which `uniform` explains."""
        return stretch(self.jitter, self.seed, self.stage, kind, number)

    def until(self, begin: int, nanoseconds: float, meanwhile: Callable[[], object] | None = None) -> None:
        """Sleep until an action has lasted as long as on the node.

        Parameters
        ----------
        begin : int
            When the action began, in nanoseconds of `ringtmp.trace.recorder.clock`.
        nanoseconds : float
            Duration of the action at the node's first speed.
        meanwhile : callable, optional
            Called every fifth of a millisecond: stands for the work of a node's network card.
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
    """The actions of one stage on a node whose speed may change.

    F, I and W last a third of the layers' operations at that speed each, U ten operations a parameter.

    Parameters
    ----------
    model : Model
        The whole model.
    first, last : int
        The stage is layers `first` to `last` - 1.
    stage : int
        Stage along the chain of layers.
    course : Course
        Speed of the node.
    jitter : float
        From 0 to below 1.
    seed : int
        Seed of the jitter, 0 or more.
    """

    def __init__(
        self, model: Model, first: int, last: int, stage: int, course: Course, jitter: float, seed: int
    ) -> None:
        super().__init__(stage, jitter, seed, course)
        costs = [nominal(model, layer, 1, course.first) for layer in range(first, last)]
        self.layers = [cost[0] * 1e9 for cost in costs]  # nanoseconds of one sample
        held = [ns for ns, layer in zip(self.layers, model.layers[first:last], strict=True) if layer.count]
        self.weights = sum(held or self.layers) or 1.0  # the pieces of W are shares of this
        self.row, self.update = sum(self.layers), sum(cost[1] for cost in costs) * 1e9

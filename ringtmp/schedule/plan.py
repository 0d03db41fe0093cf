"""Schedules as data: for each rank an ordered list of actions. The same plan is checked, executed and drawn.

An action is written `2F0`: stage 2 runs forward on micro-batch 0. Kinds: F forward, I input gradient, W weight
gradient, U update, and B: I and W as one action, whose gradient leaves after both, as where a framework makes them
together. Stages are dealt round the ring: with several chunks a rank, stage s lives on rank s modulo the ranks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ringtmp.errors import UserError


class Action(NamedTuple):
    """One action of a rank; an update has micro-batch -1 and is written `2U`."""

    stage: int
    kind: str
    micro_batch: int = -1

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch if self.micro_batch >= 0 else ''}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that `text` names. Raises `ValueError`."""
        match = re.fullmatch(r"(\d+)(?:([FIWB])(\d+)|(U))", text)
        if not match:
            raise ValueError(f"{text!r} is not an action such as 2F0 or 2U")
        stage, kind, number, update = match.groups()
        return cls(int(stage), kind or update, int(number) if number else -1)


@dataclass(frozen=True)
class Plan:
    """What each rank does in one step (or one evaluation), in order."""

    name: str
    micro_batches: int
    stages: int
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def chunks(self) -> int:
        """Stages of a rank."""
        return self.stages // len(self.ranks)

    def owner(self, stage: int) -> int:
        """The rank that holds a stage: stages are dealt round the ring."""
        return stage % len(self.ranks)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, actions)) for actions in self.ranks)

    @classmethod
    def parse(cls, text: str, name: str = "parsed") -> "Plan":
        """The plan that `str` printed: a line for each rank. Raises `ValueError`."""
        ranks = tuple(tuple(Action.parse(word) for word in line.split()) for line in text.splitlines())
        actions = [action for rank in ranks for action in rank]
        return cls(name, max(a.micro_batch for a in actions) + 1, max(a.stage for a in actions) + 1, ranks)


def naive(p: int, m: int, v: int = 1) -> Plan:
    """One micro-batch at a time goes all the way forward and back: one rank works, the others wait."""
    return _plan("naive", p, m, v, lambda rank: [f"{c}{kind}{j}" for j in range(m) for kind, c in _there_and_back(v)])


def gpipe(p: int, m: int, v: int = 1) -> Plan:
    """All forwards, then all backwards (Huang et al. 2019). Holds m activations."""
    return _plan("gpipe", p, m, v, lambda rank: [f"{c}{kind}{j}" for kind, c in _there_and_back(v) for j in range(m)])


def one_f_one_b(p: int, m: int, v: int = 1) -> Plan:
    """As few forwards as fill the pipeline, then one back for one forward (Narayanan et al. 2019, PipeDream-flush)."""

    def order(rank: int) -> list[str]:
        return [f"{c}{kind}{j}" for c, kind, j in _alternate(p, m, 1, min(m, p - 1 - rank))]

    return _plan("1f1b", p, m, 1, order)


def interleaved(p: int, m: int, v: int = 2) -> Plan:
    """1F1B with `v` chunks a rank: activations go round the ring v times (Narayanan et al. 2021, section 2.2).

    Micro-batches go in packs of p through one chunk after the other, so the fill takes 1 / v of the time. Where p does
    not divide m the last pack is filled up, and then what does not exist is struck out: an order in which everything
    came through is one for the rest.
    """
    if v == 1:
        return Plan("interleaved", m, p, one_f_one_b(p, m).ranks)
    full = -(-m // p) * p

    def order(rank: int) -> list[str]:
        words = _alternate(p, full, v, min(v * full, (v - 1) * p + 2 * (p - 1 - rank)))
        return [f"{c}{kind}{j}" for c, kind, j in words if j < m]

    return _plan("interleaved", p, m, v, order)


def _alternate(p: int, m: int, v: int, warm: int) -> list[tuple[int, str, int]]:
    """`warm` forwards, one forward for one back, and the backs that are left: (chunk, kind, micro-batch)."""
    packs = [range(start, min(start + p, m)) for start in range(0, m, p)]
    forward = [(c, "F", j) for pack in packs for c in range(v) for j in pack]
    backward = [(c, "B", j) for pack in packs for c in reversed(range(v)) for j in pack]
    words = forward[:warm]
    for pair in zip(forward[warm:], backward, strict=False):
        words += pair
    return words + backward[len(forward) - warm :]


def zb_h1(p: int, m: int, v: int = 1) -> Plan:
    """Zero bubble with the memory of 1F1B: W put off by as many micro-batches as there are ranks to the left.

    Qi et al. 2023, "Zero Bubble Pipeline Parallelism", section 2.1: a bubble of (p - 1)(F + I - W).
    """
    return _plan("zb-h1", p, m, 1, lambda rank: _put_off(m, p - rank, rank))


def zb_h2(p: int, m: int, v: int = 1) -> Plan:
    """Zero bubble with twice that memory, 2 p - 1 activations (ibid.): no bubble once steps chain and m >= 2 p - 1.

    With more micro-batches than ranks but fewer than that it is still the best there is for chained steps
    (`jobs/experiments/optimum.py`), although a single step takes longer; with no more than ranks it is ZB-H1.
    """
    if m <= p:
        return Plan("zb-h2", m, p, zb_h1(p, m).ranks)
    return _plan("zb-h2", p, m, 1, lambda rank: _put_off(m, 2 * (p - 1 - rank) + 1, 2 * rank))


def _put_off(m: int, warm: int, lag: int) -> list[str]:
    """`warm` forwards; then I, the W of `lag` micro-batches before, and F; at last the W that are left."""
    words = [f"0F{j}" for j in range(min(m, warm))]
    for j in range(m):
        words.append(f"0I{j}")
        words += [f"0W{j - lag}"] * (j >= lag) + [f"0F{j + warm}"] * (j + warm < m)
    return words + [f"0W{j}" for j in range(max(0, m - lag), m)]


def interleaved_zb(p: int, m: int, v: int = 2) -> Plan:
    """Zero bubble with `v` chunks a rank: the local rule written down, under a clock on which actions take as long.

    Of a few limits within 2 p activations a chunk the ones with the shortest chained steps.
    """
    from ringtmp.simulate.pipeline import Scene, record, simulate

    scene, best = Scene.even(p, m, chunks=v), (float("inf"), naive(p, m, v))
    for slope in (1.0, 1.5, 2.0, 3.0):
        for base in (1, 2, 3):
            limit = [[int(slope * (p * (v - c) - 1 - rank) / v) + base for c in range(v)] for rank in range(p)]
            plan = record("interleaved-zb", scene, (np.full((p, v), 2 * p), np.array(limit)))
            seconds = simulate(scene, plan, steps=4).seconds
            if seconds < best[0] * 0.999:
                best = seconds, plan
    return best[1]


def forward_only(p: int, m: int, v: int = 1) -> Plan:
    """An evaluation: forwards alone."""
    return _plan("forward", p, m, v, lambda rank: [f"{c}F{j}" for c in range(v) for j in range(m)], update=False)


def _there_and_back(v: int) -> list[tuple[str, int]]:
    return [("F", c) for c in range(v)] + [("B", c) for c in reversed(range(v))]


def _plan(name: str, p: int, m: int, v: int, order: Callable[[int], list[str]], update: bool = True) -> Plan:
    """A plan from words such as `1F0`: chunk 1 of a rank runs forward on micro-batch 0."""

    def actions(rank: int) -> tuple[Action, ...]:
        words = [Action.parse(word) for word in [*order(rank), *(f"{c}U" for c in range(v * update))]]
        return tuple(action._replace(stage=action.stage * p + rank) for action in words)

    return Plan(name, m, p * v, tuple(actions(rank) for rank in range(p)))


# How each is built, and whether ranks may have several chunks.
SCHEDULES: dict[str, tuple[Callable[[int, int, int], Plan], bool]] = {
    "naive": (naive, True),
    "gpipe": (gpipe, True),
    "1f1b": (one_f_one_b, False),
    "interleaved": (interleaved, True),
    "zb-h1": (zb_h1, False),
    "zb-h2": (zb_h2, False),
    "interleaved-zb": (interleaved_zb, True),
}


def build(name: str, p: int, m: int, v: int = 1) -> Plan:
    """The named schedule for `p` ranks of `v` chunks and `m` micro-batches. Raises `UserError` if there is none."""
    if name not in SCHEDULES:
        raise UserError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {name!r}")
    make, chunked = SCHEDULES[name]
    if v > 1 and not chunked:
        many = ", ".join(other for other, (_, chunked) in SCHEDULES.items() if chunked)
        raise UserError(f"chunks: schedule {name} takes 1, got {v}; with several: {many}")
    return make(p, m, v)


def peak_in_flight(plan: Plan, rank: int, stage: int | None = None) -> int:
    """Most micro-batches with F begun and W not done at once, in the order of a rank's list; of a stage, or of all."""
    held = peak = 0
    for action in plan.ranks[rank]:
        if stage is not None and action.stage != stage:
            continue
        held += action.kind == "F"
        peak = max(peak, held)
        held -= action.kind in "WB"
    return peak

"""Schedules as data: for each rank an ordered list of actions. The same plan is checked, executed and drawn.

An action is written `2F0`: stage 2 runs forward on micro-batch 0. Kinds: F forward, I input gradient, W weight
gradient, B = I then W, U update.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


def naive(p: int, m: int) -> Plan:
    """One micro-batch at a time goes all the way forward and back: one rank works, the others wait."""
    return _plan("naive", p, m, lambda rank: [kind + str(j) for j in range(m) for kind in "FB"])


def gpipe(p: int, m: int) -> Plan:
    """All forwards, then all backwards (Huang et al. 2019). Holds m activations."""
    return _plan("gpipe", p, m, lambda rank: [kind + str(j) for kind in "FB" for j in range(m)])


def one_f_one_b(p: int, m: int) -> Plan:
    """As few forwards as fill the pipeline, then one back for one forward (Narayanan et al. 2019, PipeDream-flush)."""

    def order(rank: int) -> list[str]:
        warm = min(m, p - 1 - rank)
        words = [f"F{j}" for j in range(warm)]
        for j in range(m - warm):
            words += [f"F{warm + j}", f"B{j}"]
        return words + [f"B{j}" for j in range(m - warm, m)]

    return _plan("1f1b", p, m, order)


def forward_only(p: int, m: int) -> Plan:
    """An evaluation: forwards alone."""
    return _plan("forward", p, m, lambda rank: [f"F{j}" for j in range(m)], update=False)


def _plan(name: str, p: int, m: int, order: Callable[[int], list[str]], update: bool = True) -> Plan:
    def actions(rank: int) -> tuple[Action, ...]:
        return tuple(Action.parse(f"{rank}{word}") for word in [*order(rank), *(["U"] * update)])

    return Plan(name, m, p, tuple(actions(rank) for rank in range(p)))


SCHEDULES: dict[str, Callable[[int, int], Plan]] = {"naive": naive, "gpipe": gpipe, "1f1b": one_f_one_b}


def build(name: str, p: int, m: int) -> Plan:
    """The named schedule for `p` ranks and `m` micro-batches. Raises `UserError` for an unknown name."""
    if name not in SCHEDULES:
        raise UserError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name](p, m)


def peak_in_flight(plan: Plan, rank: int) -> int:
    """Most micro-batches with F begun and W not done at once, in the order of the rank's list."""
    held = peak = 0
    for action in plan.ranks[rank]:
        held += action.kind == "F"
        peak = max(peak, held)
        held -= action.kind in "WB"
    return peak

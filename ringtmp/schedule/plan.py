"""Schedules as data: for each rank an ordered list of actions. The same plan is checked, executed and drawn.

An action is written `2F0`: stage 2 runs forward on micro-batch 0. Kinds: F forward, I input gradient, W weight
gradient, U update, and B: I and W as one action, whose gradient leaves after both, as in frameworks that compute both
in one call. Stages go round the ring: with several chunks a rank, stage s belongs to rank s modulo the ranks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


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
    """What each rank does in one step (or one evaluation), in order.

    Attributes
    ----------
    name : str
    micro_batches, stages : int
        Of the step, and of the whole ring.
    ranks : tuple of tuple of Action
        The actions of each rank.
    """

    name: str
    micro_batches: int
    stages: int
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def chunks(self) -> int:
        """Stages of a rank."""
        return self.stages // len(self.ranks)

    def owner(self, stage: int) -> int:
        """The rank that holds a stage."""
        return stage % len(self.ranks)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, actions)) for actions in self.ranks)

    @classmethod
    def parse(cls, text: str, name: str = "parsed") -> "Plan":
        """The plan that `str` printed: a line for each rank. Raises `ValueError`."""
        ranks = tuple(tuple(Action.parse(word) for word in line.split()) for line in text.splitlines())
        actions = [action for rank in ranks for action in rank]
        return cls(name, max(a.micro_batch for a in actions) + 1, max(a.stage for a in actions) + 1, ranks)


def forward_only(p: int, m: int, v: int = 1) -> Plan:
    """Make the plan of an evaluation: forwards alone.

    Parameters
    ----------
    p, m, v : int
        Ranks, micro-batches of the evaluation, stages of each rank; at least 1.
    """
    return make_plan("forward", p, m, v, lambda rank: [f"{c}F{j}" for c in range(v) for j in range(m)], update=False)


def make_plan(name: str, p: int, m: int, v: int, order: Callable[[int], list[str]], update: bool = True) -> Plan:
    """Make a plan from words such as `1F0`: stage 1 of a rank's own runs forward on micro-batch 0.

    Parameters
    ----------
    name : str
    p, m, v : int
        Ranks, micro-batches, stages of each rank; at least 1.
    order : callable
        ``order(rank)``: the rank's words in the order in which it runs them, without updates.
    update : bool
        Whether each stage's U follows.
    """

    def actions(rank: int) -> tuple[Action, ...]:
        words = [Action.parse(word) for word in [*order(rank), *(f"{c}U" for c in range(v * update))]]
        return tuple(action._replace(stage=action.stage * p + rank) for action in words)

    return Plan(name, m, p * v, tuple(actions(rank) for rank in range(p)))


def peak_in_flight(plan: Plan, rank: int, stage: int | None = None) -> int:
    """Count the most micro-batches that a rank holds at once: F begun and W not ended, in the order of its list.

    Parameters
    ----------
    plan : Plan
    rank : int
    stage : int, optional
        Count those of this stage alone; by default of all stages of the rank.
    """
    held = peak = 0
    for action in plan.ranks[rank]:
        if stage is not None and action.stage != stage:
            continue
        held += action.kind == "F"
        peak = max(peak, held)
        held -= action.kind in "WB"
    return peak

"""Schedules by name: what a schedule is, which there are, and their plans.

A schedule says in which order a rank runs its actions, and which version of the weights a forward takes. Those that
come with ringtmp stand in `ringtmp.schedule.schedules`, a file for each family. One from outside is added in a module
of its own, and found as layers, optimizers and losses are (`ringtmp.kernels.registry.Registry`):

    add(Schedule("mine", order=MyOrder, weights="previous"))

Nothing here imports NumPy: a configuration is checked before the number of threads is set.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ringtmp.errors import UserError
from ringtmp.kernels.registry import Registry
from ringtmp.schedule.plan import Plan
from ringtmp.schedule.policies import Policy

AUTO = "auto"  # the schedule that the planner recommends


@dataclass(frozen=True)
class Schedule:
    """A schedule.

    Attributes
    ----------
    name : str
    plan : callable, optional
        ``plan(ranks, micro_batches, chunks)``: the actions of each rank in one step, for `--mode strict`.
    order : callable, optional
        ``order(ranks, rank, micro_batches)``: a policy (`ringtmp.schedule.policies.Policy`) with an order of its own,
        for `--mode strict`. Without `plan` and `order` the local rule decides (`--mode ready`).
    weights : {"current", "previous", "latest"}
        Weights that a forward of step t takes: with all updates before t; with all but the last of them; or the newest
        that the rank has. The gradients of a micro-batch are made with the weights of its forward, and change the
        newest ones.
    takes_chunks : bool
        Whether a rank may have several stages.
    default_chunks : int
        Stages of a rank in `--mode strict` where `chunks` is not set; at least 1.
    """

    name: str
    plan: Callable[[int, int, int], Plan] | None = None
    order: Callable[[int, int, int], Policy] | None = None
    weights: Literal["current", "previous", "latest"] = "current"
    takes_chunks: bool = False
    default_chunks: int = 1

    @property
    def synchronous(self) -> bool:
        """Whether each step's forwards take the weights with all updates before it."""
        return self.weights == "current"

    @property
    def follows_rule(self) -> bool:
        """Whether the local rule decides, so that only `--mode ready` is possible."""
        return self.plan is None and self.order is None

    @property
    def lag(self) -> int | None:
        """Updates by which the weights of a forward are late; None: as many as it happens to be (`latest`)."""
        return {"current": 0, "previous": 1, "latest": None}[self.weights]

    def kept_versions(self, ranks: int) -> int:
        """Most earlier versions of its weights that a rank of a ring of `ranks` ranks keeps."""
        return {"current": 0, "previous": 1, "latest": ranks}[self.weights]


SCHEDULES: Registry[Schedule] = Registry("schedule", "ringtmp.schedule.schedules", by_file=False)

LOCAL_RULE = Schedule("ready", takes_chunks=True)  # where no schedule is named


def add(schedule: Schedule) -> Schedule:
    """Register `schedule`, declared by the calling module. Raises `ValueError` if another one has taken its name."""
    SCHEDULES.add(schedule.name, schedule, sys._getframe(1).f_globals["__name__"])
    return schedule


def schedule_named(name: str | None) -> Schedule:
    """Find a schedule; None and `AUTO` give `LOCAL_RULE`. Raises `UserError` that names those known."""
    if name in (None, AUTO):
        return LOCAL_RULE
    try:
        return SCHEDULES[str(name)]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None


def plan_names() -> list[str]:
    """The names of the schedules that are plans."""
    return [name for name in SCHEDULES if SCHEDULES[name].plan]


def build(name: str, ranks: int, micro_batches: int, chunks: int = 1) -> Plan:
    """Build the plan of one step.

    Parameters
    ----------
    name : str
        One of `plan_names`.
    ranks, micro_batches, chunks : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.

    Raises
    ------
    UserError
        `name` is no plan, or takes one stage for each rank and `chunks` is larger.
    """
    make = SCHEDULES[name].plan if name in SCHEDULES else None
    if make is None:
        raise UserError(f"schedule: expected one of {', '.join(plan_names())}, got {name!r}")
    if fault := chunks_fault(SCHEDULES[name], chunks):
        raise UserError(fault)
    return make(ranks, micro_batches, chunks)


def chunks_fault(schedule: Schedule, chunks: int) -> str:
    """The message if ranks cannot have `chunks` stages each in `schedule`, else an empty text."""
    if chunks == 1 or schedule.takes_chunks:
        return ""
    several = ", ".join(name for name in plan_names() if SCHEDULES[name].takes_chunks)
    return f"chunks: schedule {schedule.name} takes 1, got {chunks}; with several: {several}"

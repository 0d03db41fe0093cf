"""What to run next: the local rule of ready mode, and the follower of a plan.

Both look at the same few counters of their own rank, and at nothing else. Counters count micro-batches of training
since the start: F begun, I done, W done; which micro-batch comes next follows, since each kind runs in ascending order.
"""

from typing import Protocol

from ringtmp.ring.plan import Plan, peak_in_flight


class Counters(Protocol):
    """What a policy may look at (the engine)."""

    forwards: int  # F begun
    inputs: int  # I done
    weights: int  # W done

    def can_forward(self) -> bool: ...  # noqa: D102 - the next F has all that it needs
    def can_backward_input(self) -> bool: ...  # noqa: D102
    def can_backward_weight(self) -> bool: ...  # noqa: D102
    def must_update(self) -> bool: ...  # noqa: D102 - all W of the step are done
    def evaluating(self) -> bool: ...  # noqa: D102 - the next F belongs to an evaluation


class LocalRule:
    """Ready mode: I if its gradient is here, else F within limits, else W.

    The limits keep a rank from running so far ahead that its memory fills with activations whose gradients are far
    away: at most `cap` activations held, at most `ahead` forwards ahead of its input gradients. With `slack` 2 that is
    2 p activations, and the simulated idle share of chained steps is that of the best known plans (ZB-H2: Qi et al.
    2023, "Zero Bubble Pipeline Parallelism"; the rule and its figures: FIELD section 1 of the project's notes).
    W fills the time in which nothing else can run; F before I, or W before F, lose. Where one product of W takes
    `w_group` micro-batches, as many may be held.
    """

    def __init__(self, ranks: int, rank: int, slack: int = 2, w_group: int = 1) -> None:
        self.cap = max(slack * ranks, w_group)
        self.ahead = slack * (ranks - 1 - rank) + 2
        # Activations held, and two receives posted ahead of them.
        self.slots = self.cap + 2

    def choose(self, at: Counters) -> str | None:
        """The next kind of action, or None if nothing can run."""
        if at.must_update():
            return "U"
        if at.can_backward_input():
            return "I"
        within = at.forwards - at.weights < self.cap and at.forwards - at.inputs < self.ahead
        if (within or at.evaluating()) and at.can_forward():
            return "F"
        return "W" if at.can_backward_weight() else None

    def took(self, kind: str) -> None:
        """Nothing to note: the rule has no memory."""


class FollowPlan:
    """Strict mode: the actions of a plan, in its order, step after step."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.kinds = [kind for action in plan.ranks[rank] for kind in ("IW" if action.kind == "B" else action.kind)]
        self.slots = peak_in_flight(plan, rank) + 2
        self.place = 0

    def choose(self, at: Counters) -> str | None:
        """The plan's next kind if it can run now, else None."""
        kind = self.kinds[self.place]
        if kind == "F":
            return "F" if at.can_forward() else None
        if kind == "I":
            return "I" if at.can_backward_input() else None
        if kind == "W":
            return "W" if at.can_backward_weight() else None
        return "U" if at.must_update() else None

    def took(self, kind: str) -> None:
        """Move on, unless the action was a forward of an evaluation (which the engine does not report)."""
        self.place = (self.place + 1) % len(self.kinds)

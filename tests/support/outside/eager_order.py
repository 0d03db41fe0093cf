"""An asynchronous schedule as somebody outside the package would add it: one file.

Gradients first, then updates, then forwards within a fixed bound, and W in the time that remains; the weights of a
forward are one update old. So it learns exactly what `2bw` does, in another order.
"""

from ringtmp.action_kinds import F, I, U, W
from ringtmp.schedule.local_rule import NONE
from ringtmp.schedule.policies import POSTED
from ringtmp.schedule.registry import Schedule, add


class EagerOrder:
    """I, else U, else F if fewer than 2 x ranks micro-batches are held, else W.

    Parameters
    ----------
    ranks, rank, micro_batches : int
        Ranks of the ring, this one, and micro-batches of a step.
    """

    patient = True

    def __init__(self, ranks: int, rank: int, micro_batches: int) -> None:
        self.most = 2 * ranks

    def window(self, chunk: int) -> int:
        """Micro-batches held, and the receives posted ahead of them."""
        return self.most + POSTED

    room = window

    def choose(self, chunks) -> int:
        """The next action, or -1."""
        (chunk,) = chunks
        if chunk.can_backward_input():
            return I
        if chunk.must_update():
            return U
        if chunk.can_forward() and (chunk.evaluating() or chunk.forwards - chunk.weights < self.most):
            return F
        return W if chunk.can_backward_weight() else NONE

    def waited(self, nanoseconds: int) -> None:
        """The order does not depend on waits."""

    stepped = waited


add(Schedule("eager", order=EagerOrder, weights="previous"))

"""How often to write a checkpoint, where the time between failures is known and the cost of a set is measured."""

import math
import time
from collections.abc import Callable

FIRST_STEPS, FIRST_SECONDS = 10, 1.0  # of training before the first set, which measures what a set costs


def interval(cost: float, mtbf: float) -> float:
    """Seconds of training between two checkpoints that lose least: the first-order optimum of Young and Daly.

    Each failure costs half an interval of work on average, each checkpoint its cost.

    Parameters
    ----------
    cost : float
        Seconds by which a checkpoint holds up the training.
    mtbf : float
        Expected seconds between failures.

    Notes
    -----
    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17 (1974); J. T. Daly, A higher
    order estimate of the optimum checkpoint interval for restart dumps, FGCS 22 (2006). It holds for costs
    below mtbf / 2, where it reaches mtbf / 2; beyond that it would fall again, and mtbf / 2 is returned.
    """
    cost = min(cost, mtbf / 2)
    return math.sqrt(2 * cost * mtbf) - cost


class CheckpointInterval:
    """When sets are to be begun (rank 0).

    The first one comes soon, to learn what a set costs; each later one by what the one before it did cost. Never before
    that one is settled: sets do not come more often than they can be written.

    Parameters
    ----------
    mtbf : float
        Expected seconds between failures.
    now : callable
        Seconds.
    """

    def __init__(self, mtbf: float, now: Callable[[], float] = time.monotonic) -> None:
        self.mtbf, self.now = mtbf, now
        self.began = now()
        self.steps = 0
        self.next: float | None = None  # moment of the next set; unknown before the first one is settled
        self.under_way = False

    def step(self) -> bool:
        """A step is done; whether a set is to be ordered now."""
        self.steps += 1
        if self.under_way:
            return False
        gone = self.now()
        if self.next is None:
            return self.steps >= FIRST_STEPS or gone - self.began >= FIRST_SECONDS
        return gone >= self.next

    def ordered(self) -> None:
        """A set has been ordered."""
        self.began, self.under_way = self.now(), True

    def settled(self, cost: float) -> None:
        """The set that was ordered counts, or has failed; it has held up the training for `cost` seconds."""
        self.under_way = False
        self.next = self.began + cost + interval(cost, self.mtbf)

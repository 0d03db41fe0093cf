"""How often to write a checkpoint: the interval follows from the time between failures and the measured cost."""

import math
import time
from collections.abc import Callable

FIRST_STEPS, FIRST_SECONDS = 10, 1.0  # steps or seconds of training before the first one, which measures the cost


def interval(cost: float, mtbf: float) -> float:
    """Compute the seconds of training between two checkpoints that lose least time: the optimum of Young and Daly.

    Each failure costs half an interval of work on average, each checkpoint its cost.

    Parameters
    ----------
    cost : float
        Seconds by which a checkpoint holds up the training.
    mtbf : float
        Expected seconds between failures.

    Returns
    -------
    float

    Notes
    -----
    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17 (1974); J. T. Daly, A higher
    order estimate of the optimum checkpoint interval for restart dumps, FGCS 22 (2006). It holds for costs
    below mtbf / 2, where it reaches mtbf / 2; beyond that it would fall again, and mtbf / 2 is returned.
    """
    cost = min(cost, mtbf / 2)
    return math.sqrt(2 * cost * mtbf) - cost


class CheckpointInterval:
    """Decides when to begin a checkpoint (rank 0).

    The first one comes soon, to measure its cost; each later one follows from the cost of the one before, and never
    begins before that one is settled: checkpoints are not begun faster than they can be written.

    Parameters
    ----------
    mtbf : float
        Expected seconds between failures.
    now : callable
        Returns the present time in seconds.
    """

    def __init__(self, mtbf: float, now: Callable[[], float] = time.monotonic) -> None:
        self.mtbf, self.now = mtbf, now
        self.began = now()
        self.steps = 0
        self.next: float | None = None  # time of the next checkpoint; unknown before the first one is settled
        self.under_way = False

    def step(self) -> bool:
        """Count a step; whether to order a checkpoint now."""
        self.steps += 1
        if self.under_way:
            return False
        time_now = self.now()
        if self.next is None:
            return self.steps >= FIRST_STEPS or time_now - self.began >= FIRST_SECONDS
        return time_now >= self.next

    def ordered(self) -> None:
        """Note that a checkpoint has been ordered."""
        self.began, self.under_way = self.now(), True

    def settled(self, cost: float) -> None:
        """Note that the ordered checkpoint is complete, or has failed; it has held up training for `cost` seconds."""
        self.under_way = False
        self.next = self.began + cost + interval(cost, self.mtbf)

"""Who may read what when: BSP, SSP and ASP as one rule over a vector clock.

A worker that has pushed step t of a key range reads its new weights once all workers have pushed step t - `bound`: at
once with ASP, after all of step t with BSP. Since a worker goes on only with that answer, which holds its own gradient,
it reads its own writes. (Ho et al. 2013; Cui et al. 2014, whose client caches are not needed where every worker reads
all parameters in each step. Backup workers: Chen et al. 2016.)
"""

from collections.abc import Iterable

ANY = -1  # bound of ASP


class VectorClock:
    """How many steps each worker has pushed of a key range; those who left count no more."""

    def __init__(self, workers: Iterable[int], start: int) -> None:
        self.ticks = dict.fromkeys(workers, start)

    def tick(self, worker: int, steps: int) -> None:
        """A worker has pushed all steps before `steps`, or has passed them over."""
        assert steps > self.ticks[worker]
        self.ticks[worker] = steps

    def drop(self, worker: int) -> None:
        """A worker is gone."""
        self.ticks.pop(worker, None)

    def join(self, worker: int, steps: int) -> None:
        """A worker is back, as if it had pushed all steps before `steps`."""
        self.ticks[worker] = steps

    def least(self) -> int:
        """Steps that all have pushed."""
        return min(self.ticks.values())

    def reached(self, steps: int) -> int:
        """How many workers have pushed that many."""
        return sum(ticks >= steps for ticks in self.ticks.values())


class Consistency:
    """The rule.

    Parameters
    ----------
    bound : int
        Steps by which a worker may be ahead of the slowest one; 0: BSP, `ANY`: ASP.
    backup : int
        Workers of each step that are not waited for (BSP).
    """

    def __init__(self, bound: int, backup: int = 0) -> None:
        self.bound, self.backup = bound, backup

    def may_read(self, clock: VectorClock, step: int) -> bool:
        """Whether a worker that has pushed `step` may have new weights."""
        if self.bound == ANY:
            return True
        if self.backup:
            return clock.reached(step + 1) >= max(1, len(clock.ticks) - self.backup)
        return clock.least() >= step + 1 - self.bound

    def check(self, clock: VectorClock, worker: int, step: int) -> None:
        """Assert the bound at a read: an answer that breaks it must not leave."""
        if self.bound != ANY and not self.backup:
            ahead = step + 1 - clock.least()
            assert ahead <= self.bound, f"worker {worker} would read {ahead} steps ahead, bound {self.bound}"

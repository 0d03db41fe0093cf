"""When a worker may read new weights: BSP, SSP and ASP as one rule over a vector clock.

A worker that has pushed step t of a key range reads its new weights once all workers have pushed step t - `bound`: at
once with ASP, after all of step t with BSP. A worker continues only with that answer, which contains its own gradient,
so it reads its own writes. (Ho et al. 2013; Cui et al. 2014, whose client caches are not needed where every worker
reads all parameters in each step. Backup workers: Chen et al. 2016.)
"""

from collections.abc import Iterable

ANY = -1  # bound of ASP


class VectorClock:
    """Number of steps that each active worker has pushed of a key range.

    Parameters
    ----------
    workers : iterable of int
        Ranks of the workers.
    start : int
        Steps made before this launch.
    """

    def __init__(self, workers: Iterable[int], start: int) -> None:
        self.ticks = dict.fromkeys(workers, start)

    def tick(self, worker: int, steps: int) -> None:
        """Note that `worker` has pushed, or skipped, all steps before step `steps`."""
        assert steps > self.ticks[worker]
        self.ticks[worker] = steps

    def drop(self, worker: int) -> None:
        """Remove `worker`, which is lost."""
        self.ticks.pop(worker, None)

    def join(self, worker: int, steps: int) -> None:
        """Add `worker` again, as if it had pushed all steps before step `steps`."""
        self.ticks[worker] = steps

    def least(self) -> int:
        """Number of steps that all workers have pushed."""
        return min(self.ticks.values())

    def reached(self, steps: int) -> int:
        """Number of workers that have pushed `steps` steps."""
        return sum(ticks >= steps for ticks in self.ticks.values())


class Consistency:
    """The rule that decides when a worker may read.

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
        """Whether a worker that has pushed step `step` of the range of `clock` may have new weights."""
        if self.bound == ANY:
            return True
        if self.backup:
            return clock.reached(step + 1) >= max(1, len(clock.ticks) - self.backup)
        return clock.least() >= step + 1 - self.bound

    def check(self, clock: VectorClock, worker: int, step: int) -> None:
        """Assert the bound when `worker`, after its push of `step`, reads the range of `clock`."""
        if self.bound != ANY and not self.backup:
            ahead = step + 1 - clock.least()
            assert ahead <= self.bound, f"worker {worker} would read {ahead} steps ahead, bound {self.bound}"

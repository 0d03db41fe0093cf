"""The division of a batch among workers."""

from collections.abc import Sequence

import numpy as np

from ringtmp.ps.membership import Membership


def proportional_counts(samples: int, weights: Sequence[float]) -> list[int]:
    """Divide `samples` in proportion to `weights`, by the largest remainder.

    Parameters
    ----------
    samples : int
        Number of samples, 0 or more.
    weights : sequence of float
        At least one, each above 0.

    Returns
    -------
    list of int
        A count for each weight; at least 1 each if `samples` is at least the number of weights.
    """
    ideal = samples * np.asarray(weights, float) / sum(weights)
    counts = np.maximum(np.floor(ideal), samples >= len(weights)).astype(int)
    while (left := samples - counts.sum()) != 0:
        lacks = ideal - counts
        where = np.argmax(lacks) if left > 0 else np.argmin(np.where(counts > 1, lacks, np.inf))
        counts[where] += 1 if left > 0 else -1
    return counts.tolist()


class BatchSplit:
    """Divides every batch among the workers of its step, evenly or in proportion to their speed.

    Parameters
    ----------
    membership : Membership
        Gives the workers of a step.
    speeds : sequence of float, optional
        Samples per second of each of `membership.workers`; by default all are equally fast.
    """

    def __init__(self, membership: Membership, speeds: Sequence[float] = ()) -> None:
        self.membership = membership
        workers = membership.workers
        self._speeds = dict(zip(workers, speeds or [1.0] * len(workers), strict=True))

    def part(self, worker: int, step: int, samples: int) -> tuple[int, int]:
        """Samples of a worker in a step.

        Parameters
        ----------
        worker : int
            Rank of the worker.
        step : int
            Step, from 0.
        samples : int
            Samples of the step's batch.

        Returns
        -------
        int, int
            Number of the worker's first sample in the batch, and number of its samples.
        """
        workers = self.membership.workers_in(step)
        place, counts = workers.index(worker), proportional_counts(samples, [self._speeds[w] for w in workers])
        return sum(counts[:place]), counts[place]

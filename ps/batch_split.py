"""Who has which samples of a batch."""

from collections.abc import Sequence

import numpy as np


def portions(samples: int, weights: Sequence[float]) -> list[int]:
    """Whole samples in proportion to weights, by largest remainder; at least one each if there are so many."""
    ideal = samples * np.asarray(weights, float) / sum(weights)
    counts = np.maximum(np.floor(ideal), samples >= len(weights)).astype(int)
    while (left := samples - counts.sum()) != 0:
        lacks = ideal - counts
        where = np.argmax(lacks) if left > 0 else np.argmin(np.where(counts > 1, lacks, np.inf))
        counts[where] += 1 if left > 0 else -1
    return counts.tolist()


class Shares:
    """Who has which samples: shares of each batch for those who are there, even or in proportion to their speed.

    Parameters
    ----------
    workers : sequence of int
        Ranks, in the order in which samples are dealt.
    speeds : sequence of float, optional
        Samples a second of each.
    """

    def __init__(self, workers: Sequence[int], speeds: Sequence[float] = ()) -> None:
        self.workers = list(workers)
        self.speeds = dict(zip(workers, speeds or [1.0] * len(workers), strict=True))
        self.turns: dict[int, list[int]] = {worker: [] for worker in workers}  # steps from which it is away, there, ...
        self.joins: list[int] = []  # steps from which a worker was there again

    def drop(self, worker: int, step: int) -> None:
        """From `step` on a worker has no share."""
        if self.there(worker):
            self.turns[worker].append(step)

    def join(self, worker: int, step: int) -> None:
        """From `step` on it has one again."""
        self.turns[worker].append(step)
        self.joins.append(step)

    def there(self, worker: int) -> bool:
        """Whether, by what is known, it has a share in the end."""
        return len(self.turns[worker]) % 2 == 0

    def generation(self, step: int) -> int:
        """How many workers have come back by `step`."""
        return sum(join <= step for join in self.joins)

    def members(self, step: int) -> list[int]:
        """Who has a share of `step`."""
        return [w for w in self.workers if sum(turn <= step for turn in self.turns[w]) % 2 == 0]

    def of(self, worker: int, step: int, samples: int) -> tuple[int, int]:
        """First sample and number of samples of a worker's share of `samples`."""
        members = self.members(step)
        place, sizes = members.index(worker), portions(samples, [self.speeds[member] for member in members])
        return sum(sizes[:place]), sizes[place]

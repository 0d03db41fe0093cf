"""The timetable of a run: training steps and evaluations in one stream of micro-batches, the same on every rank.

No rank distributes work: each computes from the configuration which phase comes when, how many rows each micro-batch
has, and its place in the stream.
"""

from dataclasses import dataclass
from functools import lru_cache

from ringtmp.nn.layer import pieces


@dataclass(frozen=True)
class Phase:
    """A training step or an evaluation.

    Attributes
    ----------
    index : int
        Place in the timetable, from 0.
    training : bool
        Whether it is a training step.
    step : int
        Updates made before it, from 0.
    sizes : tuple of int
        Rows of each micro-batch.
    start : int
        Place of its first micro-batch in the stream, from 0.
    first : int
        Number of its first sample in the batch (or test set): not 0 if another ring has the samples before it.
    """

    index: int
    training: bool
    step: int
    sizes: tuple[int, ...]
    start: int
    first: int = 0

    def first_sample(self, number: int) -> int:
        """Number of the first sample of micro-batch `number` within its batch (or test set)."""
        return self.first + sum(self.sizes[:number])


class Timetable:
    """Training steps, with an evaluation after every `every` of them and after the last.

    Parameters
    ----------
    total : int
        Training steps of the run.
    batch_size, micro_batches : int
        Samples of a step, and the micro-batches that they are divided into.
    test_samples : int
        Samples of an evaluation, in micro-batches as large as the largest of a step.
    every : int
        Steps between evaluations; 0: only after the last step.
    repeated_test : int
        Step after which a resumed run begins with the evaluation, because that was lost; -1: none was lost.
    ring, rings : int
        Number of this ring and of all rings, which share each batch and the test samples.
    """

    def __init__(
        self,
        total: int,
        batch_size: int,
        micro_batches: int,
        test_samples: int,
        every: int,
        repeated_test: int = -1,
        ring: int = 0,
        rings: int = 1,
    ) -> None:
        self.repeated_test = repeated_test
        self.total, self.batch_size = total, batch_size
        self.every = every or total
        shares, tests = pieces(batch_size, rings), pieces(test_samples, rings)
        self.firsts = sum(shares[:ring]), sum(tests[:ring])
        self.train_sizes = pieces(shares[ring], micro_batches)
        self.rows = self.train_sizes[0]
        full, rest = divmod(tests[ring], self.rows)
        self.test_sizes = (self.rows,) * full + ((rest,) if rest else ())
        self.end = total + -(-total // self.every)
        self.phase = lru_cache(maxsize=64)(self._phase)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every number of rows that a micro-batch can have, the largest first."""
        return tuple(sorted({*self.train_sizes, *self.test_sizes}, reverse=True))

    def index_of(self, step: int) -> int:
        """Index of the phase after `step` updates: a training step, unless a lost evaluation has to be repeated."""
        tests = step // self.every + (step == self.total and step % self.every > 0)
        return step + tests - (step == self.repeated_test)

    def _phase(self, index: int) -> Phase:
        rounds, place = divmod(index, self.every + 1)
        step = min(
            rounds * self.every + place, self.total
        )  # training steps before this phase; the other phases are evaluations
        start = step * len(self.train_sizes) + (index - step) * len(self.test_sizes)
        training = place < self.every and step < self.total
        sizes, first = (self.train_sizes, self.firsts[0]) if training else (self.test_sizes, self.firsts[1])
        return Phase(index, training, step, sizes, start, first)


class Cursor:
    """A place in the stream of micro-batches.

    Parameters
    ----------
    table : Timetable
        The timetable.
    index : int
        Phase at whose first micro-batch to begin.
    training_only : bool
        Whether to skip evaluations.
    """

    __slots__ = ("index", "number", "phase", "table", "training_only")

    def __init__(self, table: Timetable, index: int, training_only: bool) -> None:
        self.table, self.training_only = table, training_only
        self._go(index)

    def _go(self, index: int) -> None:
        phase = self.table.phase(index)
        if self.training_only and not phase.training:
            phase = self.table.phase(index + 1)
        self.phase, self.index, self.number = phase, phase.index, 0

    @property
    def place(self) -> int:
        """Place in the stream, from 0."""
        return self.phase.start + self.number

    @property
    def rows(self) -> int:
        """Rows of the micro-batch."""
        return self.phase.sizes[self.number]

    def advance(self) -> bool:
        """Move to the next micro-batch; True if that ended a phase."""
        self.number += 1
        if self.number < len(self.phase.sizes):
            return False
        self._go(self.index + 1)
        return True

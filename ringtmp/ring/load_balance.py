"""Work in proportion to what each node can do, while training: when to deal the layers anew, and what then moves.

Each rank knows how long it computes in a step (`LoadMeter`). The token that goes round the ring after each step carries the
sum and the maximum of that over the ranks (`ringtmp.ring.tokens`); where it comes home, rank 0 sees how much longer the
busiest rank takes than all on average, and gives the word if that is worth it (`RebalancePolicy`). It decides nothing else:
after that step the ring runs dry, the cut goes round as at the start (`ringtmp.schedule.partition`), each rank putting in
only its own times, and the layers that change hands go from neighbour to neighbour (`hand_over`). A layer moves whole,
so no bit of the results depends on any of this.

The exact split, and not one layer at a time to a less busy neighbour: it settles at once however far work must go,
and cannot stop where a neighbour is as busy as oneself and the one behind it idle.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringtmp.comm.point_to_point import receive
from ringtmp.ring.messages import TAG_SPLIT

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ringtmp.nn.layer import Array

WARM = 2  # steps after a change that tell nothing: the ring fills
WINDOW = 8  # steps that are looked at together, at least
LEAST = 0.2  # seconds that they last, at least
WORTH = 0.05  # share of a step's time that a change must save
_LONGEST = 32  # windows after a change that did not help


class LoadMeter:
    """How long this rank computes in a step: the mean of the last few."""

    def __init__(self) -> None:
        self._steps: deque[int] = deque(maxlen=WINDOW)
        self._before = self._skip = 0

    def restart(self, busy: int) -> None:
        """Another cut from here on; `busy`: nanoseconds that this rank has computed so far."""
        self._steps.clear()
        self._before, self._skip = busy, WARM

    def stepped(self, busy: int) -> None:
        """A step is done."""
        if self._skip:
            self._skip -= 1
        else:
            self._steps.append(busy - self._before)
        self._before = busy

    @property
    def busy(self) -> float:
        """Nanoseconds of a step; 0: not known yet."""
        return sum(self._steps) / len(self._steps) if self._steps else 0.0


@dataclass(frozen=True)
class Order:
    """To stop for a new cut.

    Attributes
    ----------
    most, mean : float
        Nanoseconds of a step that the busiest rank computes, and all on average.
    seconds : float
        Of a step.
    undo : bool
        Go back to the cut before the last one.
    """

    most: float
    mean: float
    seconds: float = 0.0
    undo: bool = False


class RebalancePolicy:
    """When the ring stops for a new cut (rank 0).

    Two windows must agree before anything is done: one in which a node has changed tells half the truth. After a change
    the step must have become shorter, or the busiest rank less busy, or it is undone. What a cut cannot mend (layers
    are whole) is noted, and looked at again only when it has changed.
    """

    def __init__(self) -> None:
        self.known = 1.0  # times the mean that the busiest rank takes with the best cut there is
        self.pause = 1  # windows after the next change that does not help
        self.trial: tuple[Order, float] | None = None  # why the last change was made, and most that it should take
        self.last = self.previous = 0.0  # seconds of a step in the last window; busiest beside mean in that before
        self._begin(0)

    def _begin(self, step: int, windows: int = 1) -> None:
        self._first, self._since, self._windows = step, 0.0, windows

    def stepped(self, step: int, mean: float, most: float, now: float | None = None) -> Order | None:
        """`step` steps are done everywhere; how long ranks compute: mean and maximum. Whether the ring is to stop."""
        now = time.perf_counter() if now is None else now
        gone = step - self._first
        if gone == WARM:
            self._since = now
        counted = gone - WARM
        if counted < WINDOW * self._windows or now - self._since < LEAST * self._windows or not mean:
            return None
        self.last = (now - self._since) / counted
        ratio = most / mean
        steady = abs(ratio / self.previous - 1) <= WORTH if self.previous else False
        self._begin(step - WARM)
        self._since, self.previous = now, ratio
        if self.trial:
            order, expected = self.trial
            if self.last > order.seconds and most > (1 - WORTH) * order.most:
                if not steady:
                    return None
                self.known = order.most / order.mean
                return Order(most, mean, self.last, undo=True)
            self.trial, self.pause = None, 1
            if most < (1 + WORTH) * expected:  # else nodes have changed meanwhile
                self.known = ratio
        if steady and ratio > 1 + WORTH and abs(ratio / self.known - 1) > WORTH:  # nodes may also have become faster
            return Order(most, mean, self.last)
        return None

    def dealt(self, step: int, changed: bool, order: Order, expected: float) -> None:
        """The ring goes on after `step`, with another cut than before or not; `expected`: most that it should take."""
        self.previous, self.trial = 0.0, None
        if changed and not order.undo:
            self.trial = order, expected
            self.known = 1.0
            self._begin(step)
            return
        self.known = self.known if order.undo else order.most / order.mean
        self._begin(step, self.pause)
        self.pause = min(2 * self.pause, _LONGEST)


def owners(ends: Sequence[int]) -> list[int]:
    """The stage that each layer belongs to, given where stages end."""
    found: list[int] = []
    for stage, end in enumerate(ends):
        found += [stage] * (end - len(found))
    return found


def hand_over(
    comm: "Intracomm",
    before: Sequence[int],
    after: Sequence[int],
    held: "dict[int, list[Array]]",
    make: "Callable[[int], list[Array]]",
) -> None:
    """Bring every layer that changes hands to its new stage, hop by hop. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        Of at least 2 ranks; stage s belongs to rank s modulo its size.
    before, after : sequence of int
        Where the stages end, and where they are to end.
    held : dict
        By layer: this rank's parameters and slots. Those that go are taken out, those that come put in.
    make : callable
        Arrays like those of a layer.
    """
    rank, size = comm.rank, comm.size
    for layer, (source, target) in enumerate(zip(owners(before), owners(after), strict=True)):
        step = 1 if target > source else -1
        for here in range(source, target, step):
            there = here + step
            if rank == here % size:
                for array in held.pop(layer):
                    comm.Send(array, there % size, TAG_SPLIT)
            elif rank == there % size:
                held[layer] = make(layer)
                for array in held[layer]:
                    receive(comm, array, here % size, TAG_SPLIT)


def meet_round(comm: "Intracomm") -> None:
    """Twice round the ring: after that all have come. Collective over `comm`; only neighbours talk."""
    if comm.size == 1:
        return
    note = bytearray(1)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for _ in range(2):
        if comm.rank:
            receive(comm, note, left, TAG_SPLIT)
        comm.Send(note, right, TAG_SPLIT)
        if not comm.rank:
            receive(comm, note, left, TAG_SPLIT)

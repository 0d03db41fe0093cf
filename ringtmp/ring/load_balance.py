"""Work in proportion to what each node can do, while training: when to split the layers anew, and what then moves.

Each rank measures how long it computes in a step (`LoadMeter`). The token that goes round the ring after each step
carries the sum and the maximum of that over the ranks (`ringtmp.ring.tokens`); where it comes home, rank 0 sees how
much longer the busiest rank takes than all on average, and orders a rebalance if that is worth it (`RebalancePolicy`).
It decides nothing else: after that step the ring runs dry, the split is computed round the ring as at the start
(`ringtmp.ring.layer_split`), each rank putting in only its own times, and the layers that change hands go from
neighbour to neighbour (`hand_over`). A layer moves whole, so no bit of the results depends on any of this.

The exact split, and not one layer at a time to a less busy neighbour: it settles at once however far work must go,
and cannot stop where a neighbour is as busy as oneself and the one behind it idle.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ringtmp.comm.point_to_point import receive
from ringtmp.ring.messages import TAG_SPLIT

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ringtmp.nn.layer import Array

WARM = 2  # steps after a change that are not counted: the ring fills
WINDOW = 8  # least number of steps that are measured together
LEAST = 0.2  # seconds that they last, at least
WORTH = 0.05  # share of a step's time that a change must save
_LONGEST = 32  # windows after a change that did not help


class LoadMeter:
    """How long this rank computes in a step: the mean of the last `WINDOW` steps."""

    def __init__(self) -> None:
        self._steps: deque[int] = deque(maxlen=WINDOW)
        self._before = self._skip = 0

    def restart(self, busy: int) -> None:
        """Forget all steps: another split begins. `busy`: nanoseconds that this rank has computed so far."""
        self._steps.clear()
        self._before, self._skip = busy, WARM

    def stepped(self, busy: int) -> None:
        """Note a step. `busy`: nanoseconds that this rank has computed so far."""
        if self._skip:
            self._skip -= 1
        else:
            self._steps.append(busy - self._before)
        self._before = busy

    @property
    def busy(self) -> float:
        """Nanoseconds that this rank computes in a step; 0: not known yet."""
        return sum(self._steps) / len(self._steps) if self._steps else 0.0


@dataclass(frozen=True)
class RebalanceOrder:
    """To stop between two steps and split the layers in another way.

    Attributes
    ----------
    busiest, mean : float
        Nanoseconds that the busiest rank computes in a step, and the mean over all ranks.
    seconds : float
        Duration of a step.
    undo : bool
        Whether to go back to the split before the last one.
    """

    busiest: float
    mean: float
    seconds: float = 0.0
    undo: bool = False


class LoadBalance(Protocol):
    """What the engine tells and asks of the load of the ranks."""

    @property
    def busy(self) -> float:
        """Nanoseconds that this rank computes in a step; 0: not known yet."""

    def stepped(self) -> None:
        """This rank has made all its updates of a step."""

    def weigh(self, step: int, mean: float, busiest: float) -> RebalanceOrder | None:
        """`step` steps are done on every rank (rank 0): whether to rebalance (`RebalancePolicy.stepped`)."""


class RebalancePolicy:
    """When the ring stops for another split (rank 0).

    Two windows must agree before anything is done: one in which a node has changed tells half the truth. After a change
    the step must have become shorter, or the busiest rank less busy, or it is undone. An imbalance that no split of
    whole layers removes is noted, and looked at again only when it has changed.
    """

    def __init__(self) -> None:
        self.known = 1.0  # times the mean that the busiest rank takes with the best split
        self.pause = 1  # windows after the next change that does not help
        # Why the last change was made, and nanoseconds that the busiest rank should then compute in a step.
        self.trial: tuple[RebalanceOrder, float] | None = None
        self.last = self.previous = 0.0  # seconds of a step in the last window; busiest beside mean in that before
        self._begin(0)

    def _begin(self, step: int, windows: int = 1) -> None:
        self._first, self._since, self._windows = step, 0.0, windows

    def stepped(self, step: int, mean: float, busiest: float, now: float | None = None) -> RebalanceOrder | None:
        """Whether the ring is to stop.

        Parameters
        ----------
        step : int
            Steps that are done on every rank.
        mean, busiest : float
            Nanoseconds that the ranks compute in a step: mean and maximum.
        now : float, optional
            Seconds on any clock; default the time now.
        """
        now = time.perf_counter() if now is None else now
        # Wait until the ring has filled and the window is long enough.
        gone = step - self._first
        if gone == WARM:
            self._since = now
        counted = gone - WARM
        if counted < WINDOW * self._windows or now - self._since < LEAST * self._windows or not mean:
            return None
        self.last = (now - self._since) / counted
        ratio = busiest / mean
        steady = abs(ratio / self.previous - 1) <= WORTH if self.previous else False
        self._begin(step - WARM)
        self._since, self.previous = now, ratio
        # Judge the last change: undo it if it did not help.
        if self.trial:
            order, expected = self.trial
            if self.last > order.seconds and busiest > (1 - WORTH) * order.busiest:
                if not steady:
                    return None
                self.known = order.busiest / order.mean
                return RebalanceOrder(busiest, mean, self.last, undo=True)
            self.trial, self.pause = None, 1
            if busiest < (1 + WORTH) * expected:  # else nodes have changed meanwhile
                self.known = ratio
        # Order another one where two windows agree on an imbalance that is not known yet.
        if steady and ratio > 1 + WORTH and abs(ratio / self.known - 1) > WORTH:  # nodes may also have become faster
            return RebalanceOrder(busiest, mean, self.last)
        return None

    def dealt(self, step: int, changed: bool, order: RebalanceOrder, expected: float) -> None:
        """Note that the ring goes on.

        Parameters
        ----------
        step : int
            Updates made so far.
        changed : bool
            Whether the split is another one than before.
        order : RebalanceOrder
            What the ring has stopped for.
        expected : float
            Nanoseconds that the busiest rank should now compute in a step.
        """
        self.previous, self.trial = 0.0, None
        if changed and not order.undo:
            self.trial = order, expected
            self.known = 1.0
            self._begin(step)
            return
        self.known = self.known if order.undo else order.busiest / order.mean
        self._begin(step, self.pause)
        self.pause = min(2 * self.pause, _LONGEST)


def owners(ends: Sequence[int]) -> list[int]:
    """The stage to which each layer belongs, given the index after the last layer of each stage."""
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
        Index after the last layer of each stage, as it is and as it is to be.
    held : dict
        By layer: this rank's parameters and slots. Those of layers that leave are taken out, those that arrive put in.
    make : callable
        Gives arrays of the shapes and dtypes of a layer's parameters and slots.
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
    """Return once every rank has called this. Collective over `comm`; only neighbours talk: twice round the ring."""
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

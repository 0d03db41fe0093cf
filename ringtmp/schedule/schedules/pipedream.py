"""PipeDream: 1F1B without a flush, each forward with the newest weights of its rank (Narayanan et al. 2019)."""

from collections.abc import Sequence

from ringtmp.action_kinds import F, I, U, W
from ringtmp.schedule.local_rule import NONE
from ringtmp.schedule.policies import POSTED, ChunkView
from ringtmp.schedule.registry import Schedule, add


class Stream:
    """PipeDream's order: a stream of micro-batches from one evaluation to the next.

    Rank r keeps p - r micro-batches between F and I, and alternates. The order is fixed, so that the weights which a
    forward takes depend on no timing, and a run repeats bit for bit. At an evaluation, and at the end, the stream runs
    dry.

    Parameters
    ----------
    ranks, rank : int
        Ranks of the ring, and this one.
    micro_batches : int
        Not used: no step ends the stream.
    """

    patient = True

    def __init__(self, ranks: int, rank: int, micro_batches: int = 1) -> None:
        self.keep = ranks - rank
        self._room = self.keep + POSTED

    def window(self, chunk: int) -> int:
        """Micro-batches in flight, and the receives posted ahead of them."""
        return self._room

    room = window

    def choose(self, chunks: Sequence[ChunkView]) -> int:
        """The next action of the stream if it can run now, else -1."""
        (chunk,) = chunks
        if chunk.weights < chunk.inputs:
            return W
        if chunk.must_update():
            return U
        if chunk.forwards - chunk.inputs < self.keep and not chunk.evaluating() and not chunk.exhausted():
            return F if chunk.can_forward() else NONE
        if chunk.forwards > chunk.inputs:
            return I if chunk.can_backward_input() else NONE
        return F if chunk.can_forward() else NONE

    def waited(self, nanoseconds: int) -> None:
        """The order does not depend on waits."""

    stepped = waited


add(Schedule("pipedream", order=Stream, weights="latest"))

"""Rings side by side: each takes a share of every batch, and the gradients of a layer are summed across them.

Rank r of ring q stands in two rings: its own, and the one across, of rank r of every ring, all of which hold the same
layers. As soon as a layer's gradient is complete here it goes round across (`ringtmp.comm.ring_allreduce`), beside whatever
this rank still has to do; the update waits for it. So every rank still talks to neighbours only, two in each of two
directions, and a network can use more ranks than it has layers.

The first ranks of the rings pass on what their tokens have brought: losses to the first ring, which tells, and its
order to stop to the others (`RingLeaders`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ringtmp.comm.point_to_point import FIRST_TAG, ControlChannel
from ringtmp.comm.ring_allreduce import RingAllreduce
from ringtmp.ring.chunk import Chunk
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_UP, _DOWN, _LAYERS = range(FIRST_TAG, FIRST_TAG + 3)


class CrossRingSums:
    """This rank's sums. Collective over `comm`, the ring across.

    Parameters
    ----------
    comm : Intracomm
    chunks : sequence of Chunk
    recorder : Recorder
    """

    def __init__(self, comm: "Intracomm", chunks: Sequence[Chunk], recorder: Recorder) -> None:
        self.recorder = recorder
        self.sums: list[dict[int, RingAllreduce]] = []  # of each chunk, by place of the layer in its stage
        self.left_over: list[int] = []  # sums that each chunk still waits for in this step
        self.round: list[tuple[int, int, int]] = []  # on their way: chunk, place, step
        for c, chunk in enumerate(chunks):
            sums = {}
            for n, state in enumerate(chunk.stage.states):
                if state.flat.size:
                    sums[n] = RingAllreduce(comm, state.gradient, _LAYERS + state.index, partial(self._sent, c))
            self.sums.append(sums)
            self.left_over.append(len(sums))
            chunk.made = partial(self._made, c)
            chunk.summed = partial(self._summed, c)
        self.chunks = chunks

    def _made(self, c: int, places: Sequence[int]) -> None:
        """The gradients of some layers of a chunk are complete on this rank."""
        for n in places:
            self.round.append((c, n, self.chunks[c].updates))
            self.sums[c][n].start()

    def _summed(self, c: int) -> bool:
        return not self.left_over[c]

    def updated(self, c: int) -> None:
        """The chunk has made its update: the sums of the next step."""
        self.left_over[c] = len(self.sums[c])

    def poll(self) -> None:
        """Add and hand on what has come."""
        for entry in self.round.copy():
            c, n, step = entry
            one = self.sums[c][n]
            while one.hop < one.hops and one.awaited.Test():
                begin, hop, stage = clock(), one.hop, self.chunks[c].number
                one.came()
                self.recorder.record("receive", begin, clock(), step, hop, -1, one.bytes[hop], stage)
            if one.hop == one.hops and one.left():
                self.round.remove(entry)
                self.left_over[c] -= 1

    def _sent(self, c: int, begin: int, end: int, hop: int, size: int) -> None:
        self.recorder.record("across", begin, end, self.chunks[c].updates, hop, -1, size, self.chunks[c].number)

    def close(self) -> None:
        """Give them back; when nothing is on its way."""
        for sums in self.sums:
            for one in sums.values():
                one.close()


class RingLeaders:
    """Talk of the first ranks of all rings. Collective over `comm`, which they form.

    Parameters
    ----------
    comm : Intracomm
    told : callable
        On the first ring: kind, step, loss, correct answers and signal of all rings together.
    stop : callable
        On the others: end before the phase of an index, because of a signal.
    """

    def __init__(
        self,
        comm: "Intracomm",
        told: Callable[[float, int, float, float, int], None],
        stop: Callable[[int, int], None],
    ) -> None:
        self.first, self.last = comm.rank == 0, comm.rank == comm.size - 1
        before, after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.told, self.stop = told, stop
        self.up = ControlChannel(comm, after, before, _UP)
        self.down = ControlChannel(comm, before, after, _DOWN)
        self.parts: dict[tuple[float, int], list[tuple[float, float, int]]] = {}

    def report(self, kind: float, step: int, loss: float, correct: float, signal: int) -> None:
        """What this ring has to say of a step, or the rings behind it."""
        parts = self.parts.setdefault((kind, step), [])
        parts.append((loss, correct, signal))
        if len(parts) < 2 - self.last:
            return
        del self.parts[kind, step]
        total = (kind, step, sum(part[0] for part in parts), sum(part[1] for part in parts), max(p[2] for p in parts))
        if self.first:
            self.told(*total)
        else:
            self.up.send(total)

    def order(self, index: int, signal: int) -> None:
        """Have the rings behind this one end before the phase of this index."""
        if not self.last:
            self.down.send((0.0, index, signal))

    def poll(self) -> None:
        """Heed what has come."""
        for message in self.up.poll():
            self.report(message[0], int(message[1]), message[2], message[3], int(message[4]))
        for message in self.down.poll():
            self.stop(int(message[1]), int(message[2]))
            self.order(int(message[1]), int(message[2]))

    def finished(self) -> bool:
        """Whether all reports are complete, and all that was said has left."""
        return not self.parts and self.up.idle() and self.down.idle()

    def close(self) -> None:
        """Give back all requests."""
        self.up.close()
        self.down.close()

"""An array that is summed round a ring of ranks, beside whatever else they do.

It goes round in 2 (n - 1) hops of an n-th of it (Patarasuk & Yuan 2009). Each part is added up once, in the order of
the ring, and then handed on, so that all ranks have the same bits, and the same ones each time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels.elementwise import add_to
from ringtmp.nn.layer import Array, aligned, pieces
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


class RingAllreduce:
    """One array, its hops and their requests, made once and used for every sum. Collective over `comm`.

    In hop h < n - 1 a rank sends part rank - h and adds what comes to the part before; in those that follow it hands on
    part rank + 1 - g, g = h - (n - 1), which is complete.

    Parameters
    ----------
    comm : Intracomm
    array : array
        What this rank adds; the sum in the end.
    tag : int
    sent : callable
        Told of each hop that leaves: when, until when, which, and its bytes.
    """

    def __init__(
        self,
        comm: "Intracomm",
        array: Array,
        tag: int,
        sent: Callable[[int, int, int, int], None] = lambda begin, end, hop, size: None,
    ) -> None:
        n, rank = comm.size, comm.rank
        left, right = (rank - 1) % n, (rank + 1) % n
        sizes = pieces(array.size, n)
        bounds = [sum(sizes[:k]) for k in range(n + 1)]
        parts = [array[bounds[k] : bounds[k + 1]] for k in range(n)]
        rooms = [aligned(sizes[0], array.dtype) for _ in range(min(2, n - 1))]
        self.sent = sent
        self.bytes: list[int] = []
        self._adds: list[tuple[Array, Array] | None] = []  # by hop: what is added to what when it has come
        self._sends: list[Prequest] = []
        self._receives: list[Prequest] = []
        for hop in range(2 * (n - 1)):
            reducing = hop < n - 1
            out = parts[(rank - hop) % n] if reducing else parts[(rank + n - hop) % n]
            into = parts[(rank - hop - 1) % n] if reducing else parts[(rank + n - hop - 1) % n]
            room = rooms[hop % 2][: into.size] if reducing else into
            self._adds.append((into, room) if reducing else None)
            self._sends.append(comm.Send_init(out, right, tag))
            self._receives.append(comm.Recv_init(room, left, tag))
            self.bytes.append(out.nbytes)
        self.hops = len(self._sends)
        self.hop = self.hops  # that is awaited; all done
        self._posted = 0

    @property
    def awaited(self) -> "Prequest":
        """The receive that comes next."""
        return self._receives[self.hop]

    def start(self) -> None:
        """This rank's numbers are all there."""
        self.hop = self._posted = 0
        if self.hops:
            self._post()
            self._hand_on()

    def came(self) -> bool:
        """What was awaited is here: add it or keep it, and hand on; whether that was the last of it."""
        added = self._adds[self.hop]
        if added is not None:
            add_to(*added)
        self.hop += 1
        if self.hop < self.hops:
            self._hand_on()
            self._post()
            return False
        return True

    def left(self) -> bool:
        """Whether all that was sent has left, too: only then may the array change.

        Waiting for it here could be for ever. It has come round, but over TCP a send is not done before its receiver
        has read it and said so, which it does not get to where more sums arrive than it has begun (64 in libfabric).
        """
        return all(send.Test() for send in self._sends)

    def _post(self) -> None:
        """Post the next receives: two while sums are made, for there are two rooms, else one after the other."""
        while self._posted < self.hops and self._posted <= self.hop + (self._posted < self.hops // 2):
            self._receives[self._posted].Start()
            self._posted += 1

    def _hand_on(self) -> None:
        begin = clock()
        self._sends[self.hop].Start()
        self.sent(begin, clock(), self.hop, self.bytes[self.hop])

    def close(self) -> None:
        """Give back all requests; when nothing is on its way."""
        for request in (*self._sends, *self._receives):
            request.Free()

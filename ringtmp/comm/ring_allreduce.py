"""Arrays that are summed round a ring of ranks while the ranks do other work.

An array goes round in 2 (n - 1) hops of an n-th of it (Patarasuk & Yuan 2009). Each part is added up once, in the order
of the ring, and then passed on, so that all ranks have the same bits, and the same ones each time.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringtmp.kernels.elementwise import add_to
from ringtmp.nn.layer import Array, aligned, pieces
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


class RingAllreduce:
    """One array, its hops and their requests, made once and used for every sum. Collective over `comm`.

    In hop h < n - 1 a rank sends part rank - h and adds what arrives to the part before; in those that follow it passes
    on part rank + 1 - g, g = h - (n - 1), which is complete.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    array : array, one-dimensional
        This rank's summand; in the end the sum.
    tag : int
        Tag of the messages, used for nothing else on `comm`.
    sent : callable
        Called for each hop that leaves, with begin and end (`clock`), the number of the hop, and its bytes.
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
        self._adds: list[tuple[Array, Array] | None] = []  # by hop: what is added to what when it has arrived
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
        """The receive that completes next."""
        return self._receives[self.hop]

    def start(self) -> None:
        """Begin a sum; this rank's array must be complete."""
        self.hop = self._posted = 0
        if self.hops:
            self._post()
            self._send()

    def came(self) -> bool:
        """Add or keep the `awaited` part, which has arrived, and send the next hop; True if the sum is complete."""
        added = self._adds[self.hop]
        if added is not None:
            add_to(*added)
        self.hop += 1
        if self.hop < self.hops:
            self._send()
            self._post()
            return False
        return True

    def left(self) -> bool:
        """Whether all sends are complete too: only then may the array change.

        Waiting for it here could last for ever. The sum has come round, but over TCP a send is complete only when its
        receiver has read it and acknowledged it, and a receiver does not get to that while more sums arrive than it has
        begun (64 in libfabric).
        """
        return all(send.Test() for send in self._sends)

    def _post(self) -> None:
        """Post the next receives: two while parts are added, which have two buffers, else one after the other."""
        while self._posted < self.hops and self._posted <= self.hop + (self._posted < self.hops // 2):
            self._receives[self._posted].Start()
            self._posted += 1

    def _send(self) -> None:
        begin = clock()
        self._sends[self.hop].Start()
        self.sent(begin, clock(), self.hop, self.bytes[self.hop])

    def close(self) -> None:
        """Free all requests, once no part is on its way."""
        for request in (*self._sends, *self._receives):
            request.Free()


class Summand(NamedTuple):
    """An array that is to be summed.

    Attributes
    ----------
    array : array, one-dimensional
        This rank's summand; in the end the sum.
    tag : int
        Tag of its messages, different for each array.
    stage : int
        Stage that is noted with its events in the trace.
    """

    array: Array
    tag: int
    stage: int


class _Sum:
    """One array on its way round, and the step in which it is summed."""

    def __init__(self, stage: int) -> None:
        self.stage, self.step = stage, -1
        self.ring: RingAllreduce


class RingSums:
    """Several arrays that are summed round one ring, each as soon as it is complete. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    summands : iterable of (key, Summand)
        Keys are hashable: the same keys in the same order on every rank.
    recorder : Recorder
        Receives an event for each hop that leaves, and a "receive" event for each that arrives.
    completed : callable
        Called with the key of a sum that is complete and has left, so that its array may change.
    sends_as : str
        Kind of the events of hops that leave.
    peers : tuple of int
        Ranks of the left and the right neighbour in these events; -1: not among the ranks of this trace.
    """

    def __init__(
        self,
        comm: "Intracomm",
        summands: Iterable[tuple[Any, Summand]],
        recorder: Recorder,
        completed: Callable[[Any], None],
        sends_as: str = "send",
        peers: tuple[int, int] = (-1, -1),
    ) -> None:
        from mpi4py import MPI

        self.recorder, self.completed, self.sends_as = recorder, completed, sends_as
        self.left, self.right = peers
        self._testsome = MPI.Prequest.Testsome
        self._sums: dict[Any, _Sum] = {}
        self._round: dict[Any, _Sum] = {}  # parts are awaited
        self._leaving: dict[Any, _Sum] = {}  # complete, and not yet read by the next rank
        for key, (array, tag, stage) in summands:
            self._sums[key] = one = _Sum(stage)
            one.ring = RingAllreduce(comm, array, tag, self._recorder_of(one))

    def _recorder_of(self, one: _Sum) -> Callable[[int, int, int, int], None]:
        def sent(begin: int, end: int, hop: int, size: int) -> None:
            self.recorder.record(self.sends_as, begin, end, one.step, hop, self.right, size, one.stage)

        return sent

    def start(self, key: Any, step: int) -> None:
        """Begin the sum of `key` in step `step`; this rank's array must be complete."""
        one = self._sums[key]
        one.step = step
        one.ring.start()
        if one.ring.hops:
            self._round[key] = one
        else:
            self.completed(key)

    def poll(self) -> bool:
        """Add and pass on what has arrived; True if anything has happened."""
        moved = False
        if self._round:
            waiting = list(self._round.items())
            for at in sorted(self._testsome([one.ring.awaited for _, one in waiting]) or ()):
                self._advance(*waiting[at])
                moved = True
        for key, one in list(self._leaving.items()):
            if one.ring.left():
                del self._leaving[key]
                self.completed(key)
                moved = True
        return moved

    def _advance(self, key: Any, one: _Sum) -> None:
        """Process the awaited part of a sum, which has arrived, and further parts that have."""
        ring, complete = one.ring, False
        while True:
            begin, hop = clock(), ring.hop
            complete = ring.came()
            self.recorder.record("receive", begin, clock(), one.step, hop, self.left, ring.bytes[hop], one.stage)
            if complete or not ring.awaited.Test():
                break
        if complete:
            del self._round[key]
            self._leaving[key] = one

    def close(self) -> None:
        """Free all requests, once no sum is on its way."""
        for one in self._sums.values():
            one.ring.close()

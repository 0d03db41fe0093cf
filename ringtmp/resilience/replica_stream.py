"""Versions of a stage, or of a server's key ranges, on their way to the memory of another node, piece by piece.

A version lies in one of two copies (`ringtmp.resilience.node_memory`) and travels as the pieces of its bytes, in order,
with one persistent request a piece. Never more than a few pieces are under way, so that an activation or a gradient on
the same link waits for a few at most. The callers decide which pieces follow each other, and which message ends a
version: the ring (`ringtmp.ring.replicas`) and the parameter server (`ringtmp.ps.serving.mirror`).
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringtmp.nn.layer import Array
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

PIECE = 1 << 18  # bytes of a message: 20 ms at 100 Mbit/s
_SLOW = 20_000_000  # nanoseconds; a link on which a piece takes longer gets few at once

Outgoing = list[tuple["Prequest", int]]  # prepared pieces: request and bytes
Incoming = list["Prequest"]


def pieces_of(payload: Array, first: int = 0, last: int | None = None) -> list[Array]:
    """Bytes `first` to `last` - 1 (None: to the end) of `payload` in pieces of at most `PIECE` bytes."""
    last = len(payload) if last is None else last
    return [payload[start : min(start + PIECE, last)] for start in range(first, last, PIECE)]


class PieceSender:
    """Sends pieces to one rank, in order, a few at a time.

    Parameters
    ----------
    comm : Intracomm
        Carries the pieces.
    dest, tag : int
        Rank that receives them, and their tag.
    recorder : Recorder
        Receives a "replicate" event for each piece.
    probe : FaultProbe or None
        Called at each send.
    window : int
        Pieces that may be under way at once.
    fast_window : int, optional
        The same on a link that has just taken a piece within `_SLOW`; default `window`.
    """

    def __init__(
        self,
        comm: "Intracomm",
        dest: int,
        tag: int,
        recorder: Recorder,
        probe: FaultProbe | None = None,
        window: int = 2,
        fast_window: int | None = None,
    ) -> None:
        self.comm, self.dest, self.tag, self.recorder, self.probe = comm, dest, tag, recorder, probe
        self.window, self.fast_window = window, fast_window or window
        self._prepared: list[Prequest] = []
        self._waiting: deque[tuple[Prequest, int]] = deque()
        self._under_way: deque[tuple[Prequest, int]] = deque()  # and since when
        self._version = self._stage = -1
        self._slow = False

    def prepare(self, pieces: Sequence[Array]) -> Outgoing:
        """Make the requests of `pieces`, once for all versions that lie in the same place."""
        prepared = [(self.comm.Send_init(piece, self.dest, self.tag), piece.nbytes) for piece in pieces]
        self._prepared += [request for request, _ in prepared]
        return prepared

    def add(self, pieces: Outgoing, version: int, stage: int = -1) -> None:
        """Send `pieces` after those before; `version` - 1 and `stage` are noted in the trace."""
        self._waiting.extend(pieces)
        self._version, self._stage = version, stage

    def _has_room(self) -> bool:
        return len(self._under_way) < (self.window if self._slow else self.fast_window)

    def poll(self) -> bool:
        """Start the pieces that may leave; True if anything has happened."""
        under_way, moved = self._under_way, False
        while under_way and under_way[0][0].Test():
            self._slow = clock() - under_way.popleft()[1] > _SLOW
            moved = True
        while self._waiting and self._has_room():
            if self.probe:
                self.probe.at("replicate", self._version - 1)
            begin = clock()
            request, size = self._waiting.popleft()
            request.Start()
            under_way.append((request, begin))
            self.recorder.record("replicate", begin, clock(), self._version - 1, -1, self.dest, size, self._stage)
            moved = True
        return moved

    def can_start(self) -> bool:
        """Whether no piece waits, and one that is added could leave at once."""
        return not self._waiting and self._has_room()

    def idle(self) -> bool:
        """Whether every piece has left."""
        return not self._waiting and not self._under_way

    def requests(self) -> "list[Prequest]":
        """All requests that have been prepared."""
        return self._prepared

    def close(self) -> None:
        """Free all requests, once `idle`."""
        for request in self._prepared:
            request.Free()


class PieceReceiver:
    """Receives pieces from one rank, in order.

    Parameters
    ----------
    comm : Intracomm
        Carries the pieces.
    source, tag : int
        Rank that sends them, and their tag.
    window : int, optional
        Receives that are posted at once; default all that are expected.
    """

    def __init__(self, comm: "Intracomm", source: int, tag: int, window: int | None = None) -> None:
        self.comm, self.source, self.tag, self.window = comm, source, tag, window
        self.arrived = 0  # of the pieces that are expected
        self._posted = 0
        self._prepared: list[Prequest] = []
        self._expected: Incoming = []

    def prepare(self, pieces: Sequence[Array]) -> Incoming:
        """Make the requests of `pieces`, once for all versions that are to lie in the same place."""
        prepared = [self.comm.Recv_init(piece, self.source, self.tag) for piece in pieces]
        self._prepared += prepared
        return prepared

    def expect(self, pieces: Incoming) -> None:
        """Post receives for `pieces`, which arrive next; those before must be `complete`."""
        self._expected, self.arrived, self._posted = pieces, 0, 0
        self._post()

    def _post(self) -> None:
        end = len(self._expected)
        if self.window is not None:
            end = min(end, self.arrived + self.window)
        while self._posted < end:
            self._expected[self._posted].Start()
            self._posted += 1

    def complete(self) -> bool:
        """Whether every piece that is expected has arrived."""
        return self.arrived == len(self._expected)

    def poll(self) -> bool:
        """Whether the next piece has arrived; call it again if so, unless all that are expected are `complete`."""
        if self.complete() or not self._expected[self.arrived].Test():
            return False
        self.arrived += 1
        self._post()
        return True

    def requests(self) -> "list[Prequest]":
        """All requests that have been prepared."""
        return self._prepared

    def close(self) -> None:
        """Cancel the receives that are still posted, once no piece is on its way, and free all requests."""
        for request in self._expected[self.arrived : self._posted]:
            request.Cancel()
            request.Wait()
        for request in self._prepared:
            request.Free()

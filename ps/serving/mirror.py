"""A server's versions on a rank of another node: one lane from the server to the holder, range by range.

A range leaves as soon as it has been copied, while others of its version are still being computed. For each the server
sends its number, then its bytes in pieces; the checksums come last. The holder marks its older version incomplete with
the first range of the next, receives pieces in their final places, and acknowledges a version that is complete.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.shards import KeyRange
from ringtmp.resilience.node_memory import StageReplica
from ringtmp.resilience.replica_stream import PieceReceiver, PieceSender, pieces_of
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_WINDOW, _FAST_WINDOW = 2, 8  # pieces under way, on a slow link and on a fast one
_HEAD, _BODY, _HERE = range(3)  # tags
_SUMS = -1  # number of what is sent last of a version
_END = -1  # instead of a version: nothing follows


def holder_of(server: int, servers: Sequence[int], workers: Sequence[int], nodes: Sequence[str]) -> int:
    """The rank to which a server's versions are sent: the next server of another node, else the first such worker.

    Parameters
    ----------
    server : int
        Rank of the server.
    servers, workers : sequence of int
        Ranks that serve, and ranks that work.
    nodes : sequence of str
        Name of each rank's node.

    Returns
    -------
    int
        The rank; -1: all ranks are on the server's node, where copies would protect nothing.
    """
    at = servers.index(server)
    others = [*servers[at + 1 :], *servers[:at], *workers]
    return next((rank for rank in others if nodes[rank] != nodes[server]), -1)


def _cut(copy: StageReplica, ranges: Sequence[KeyRange]) -> dict[int, list[Array]]:
    """Pieces of a replica by key range, and of its checksums; `ranges`: its server's, in the order of their parts."""
    places, at = copy.layout.places(), 0
    bounds = {_SUMS: (0, places[0]["flat"][0])}
    for keys in ranges:
        mine = places[at : at + len(keys.segments)]
        start, size = list(mine[-1].values())[-1]
        bounds[keys.number] = mine[0]["flat"][0], start + size
        at += len(keys.segments)
    return {number: pieces_of(copy.payload, first, last) for number, (first, last) in bounds.items()}


class Outgoing:
    """The server's end.

    Parameters
    ----------
    comm : Intracomm
        Carries nothing else.
    holder : int
        Rank that receives the versions.
    sides : two StageReplica
        Copies that the server writes alternately.
    ranges : sequence of KeyRange
        The ranges of this server.
    recorder : Recorder
        Records the sends.
    probe : FaultProbe or None
        Called at each send.
    """

    def __init__(
        self,
        comm: "Intracomm",
        holder: int,
        sides: Sequence[StageReplica],
        ranges: Sequence[KeyRange],
        recorder: Recorder,
        probe: FaultProbe | None = None,
    ) -> None:
        self.holder, self.recorder, self.probe = holder, recorder, probe
        self._about, self._answer = aligned(2, np.float64), aligned(1, np.float64)
        self._head = comm.Send_init(self._about, holder, _HEAD)
        self._here = comm.Recv_init(self._answer, holder, _HERE)
        self._body = PieceSender(comm, holder, _BODY, recorder, probe, _WINDOW, _FAST_WINDOW)
        self._pieces = {
            copy.path: {number: self._body.prepare(pieces) for number, pieces in _cut(copy, ranges).items()}
            for copy in sides
        }
        self._queue: deque[int] = deque()  # ranges that are to leave of the version
        self._path: Any = None
        self._version = self._without = _END  # the version that leaves now; one that is left out
        self.busy = self.ended = False
        self.lost = False  # the holder does not answer: do not wait for it
        self.acknowledged = _END  # newest version that the holder has completely

    def begin(self, version: int, copy: StageReplica) -> None:
        """Note that version `version` is being written to `copy`, one of the sides."""
        if self.busy:  # the holder has been lost meanwhile: leave this version out
            self._without = version
            return
        self._version, self._path, self.busy = version, copy.path, True
        self._here.Start()

    def add(self, version: int, number: int = _SUMS) -> None:
        """Send the key range `number` of version `version`; by default the checksums, which come last."""
        if version != self._without:
            self._queue.append(number)

    def has(self, version: int) -> bool:
        """Whether the holder has version `version`, or need not be waited for."""
        return self.lost or self.acknowledged >= version or self._without == version

    def poll(self) -> bool:
        """Send what can leave; return whether anything has happened."""
        if not self.busy:
            return False
        moved = self._body.poll()
        while self._queue and self._body.can_start():
            number = self._queue.popleft()
            self._tell(self._version, number)
            self._body.add(self._pieces[self._path][number], self._version)
            moved |= self._body.poll()
        if not self._queue and self._body.idle() and self._here.Test():
            self.acknowledged, self.busy = int(self._answer[0]), False
            moved = True
        return moved

    def _tell(self, version: int, number: int) -> None:
        self._head.Wait()  # of the one before, which is small
        self._about[:] = version, number
        self._head.Start()

    def finish(self) -> bool:
        """Tell the holder that nothing follows; return whether that is done."""
        if not self.lost and not self.ended and not self.busy:
            self._tell(_END, _SUMS)
            self.ended = True
        return self.lost or self.ended

    def close(self) -> None:
        """Free all requests; after `finish`."""
        self._head.Wait()
        self._body.close()
        for request in (self._head, self._here):
            request.Free()


class Incoming:
    """The holder's end.

    Parameters
    ----------
    comm : Intracomm
        Carries nothing else.
    server : int
        Rank that sends the versions.
    sides : two StageReplica
        New copies, on this node.
    ranges : sequence of KeyRange
        The ranges of the server.
    """

    def __init__(
        self, comm: "Intracomm", server: int, sides: Sequence[StageReplica], ranges: Sequence[KeyRange]
    ) -> None:
        self.sides = list(sides)  # the first is overwritten next
        self.ended = False
        self._about, self._answer = aligned(2, np.float64), aligned(1, np.float64)
        self._head = comm.Recv_init(self._about, server, _HEAD)
        self._here = comm.Send_init(self._answer, server, _HERE)
        self._body = PieceReceiver(comm, server, _BODY)
        self._pieces = {
            copy.path: {number: self._body.prepare(pieces) for number, pieces in _cut(copy, ranges).items()}
            for copy in sides
        }
        self._last = False  # what arrives completes a version
        self._head.Start()

    def poll(self) -> bool:
        """Receive what has arrived; return whether anything has."""
        moved = False
        while not self.ended and self._step():
            moved = True
        return moved

    def _step(self) -> bool:
        side = self.sides[0]
        if self._body.complete():
            if not self._head.Test():
                return False
            version, number = (int(each) for each in self._about)
            if version == _END:
                self.ended = True
                return True
            side.begin()
            self._body.expect(self._pieces[side.path][number])
            self._last = number == _SUMS
            return True
        if not self._body.poll():
            return False
        if self._body.complete():
            if self._last:
                side.commit(int(self._about[0]))
                self.sides.reverse()
                self._here.Wait()
                self._answer[0] = self._about[0]
                self._here.Start()
            self._head.Start()
        return True

    def close(self) -> None:
        """Free all requests, once the stream has `ended`."""
        self._here.Wait()
        self._body.close()
        for request in (self._head, self._here):
            request.Free()

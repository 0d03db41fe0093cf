"""Messages that every trainer sends: receives posted ahead, and small control messages.

Every message has its own persistent request, made once per buffer (MPI 4.1, section 3.9): starting one costs a
microsecond, an Isend about twice that, and a lower-case call of mpi4py pickles. Messages of one tag between two ranks
arrive in the order in which they were sent.

Tags: `TAG_CONTROL`, `TAG_CLOCK` and `TAG_INTERVALS` on every trainer's communicator; those from `FIRST_TAG` on are its
own.
"""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.comm.waiting import Backoff
from ringtmp.errors import RunFailure
from ringtmp.nn.layer import Array, aligned

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

TAG_CONTROL, TAG_CLOCK, TAG_INTERVALS, FIRST_TAG = range(1, 5)

CONTROL_FIELDS = 11  # float64 numbers of a control message
_CONTROL_SLOTS = 8


class ReceiveQueue:
    """Receives of one kind from one neighbour, posted ahead, one buffer and persistent request per slot.

    Parameters
    ----------
    comm : Intracomm
        Carries the messages.
    source, tag : int
        Rank that sends them, and their tag.
    buffers : list of array
        The buffer of each slot.

    Attributes
    ----------
    arrived : int
        Messages that have arrived so far, in the order in which their receives were posted.
    """

    def __init__(self, comm: "Intracomm", source: int, tag: int, buffers: list[Array]) -> None:
        self.requests = [comm.Recv_init(buffer, source, tag) for buffer in buffers]
        self.posted: deque[Prequest] = deque()
        self.arrived = 0

    def post(self, slot: int) -> None:
        """Post the receive of the next message, into `slot`."""
        request = self.requests[slot]
        request.Start()
        self.posted.append(request)

    def poll(self) -> bool:
        """Note every message that has arrived; True if any has."""
        posted, before = self.posted, self.arrived
        while posted and posted[0].Test():
            posted.popleft()
            self.arrived += 1
        return self.arrived > before

    def close(self) -> None:
        """Cancel the receives that are still posted, once no message is on its way, and free the requests."""
        for request in self.posted:
            request.Cancel()
            request.Wait()
        self.posted.clear()
        for request in self.requests:
            request.Free()


class ControlChannel:
    """Small messages of `CONTROL_FIELDS` float64 numbers from one rank and to another, queued if none may leave yet.

    Parameters
    ----------
    comm : Intracomm
        Carries the messages.
    source, dest : int
        The rank that it receives from, and the rank that it sends to: the left and the right neighbour in a ring, the
        same rank twice between a server and a worker.
    tag : int
        Tag of the messages in both directions.
    """

    BYTES = CONTROL_FIELDS * 8

    def __init__(self, comm: "Intracomm", source: int, dest: int, tag: int = TAG_CONTROL) -> None:
        self.source, self.dest = source, dest
        self._incoming = [aligned(CONTROL_FIELDS, np.float64) for _ in range(_CONTROL_SLOTS)]
        self._outgoing = [aligned(CONTROL_FIELDS, np.float64) for _ in range(_CONTROL_SLOTS)]
        self._inbox = ReceiveQueue(comm, source, tag, self._incoming)
        self._sends = [comm.Send_init(buffer, dest, tag) for buffer in self._outgoing]
        self._busy: list[bool] = [False] * _CONTROL_SLOTS
        self._queue: deque[tuple[float, ...]] = deque()
        self._sent = 0
        for slot in range(_CONTROL_SLOTS):
            self._inbox.post(slot)

    def send(self, message: tuple[float, ...]) -> None:
        """Send `message`, at most `CONTROL_FIELDS` numbers, after those sent before."""
        self._queue.append(message)
        self._flush()

    def _flush(self) -> None:
        while self._queue:
            slot = self._sent % _CONTROL_SLOTS
            if self._busy[slot] and not self._sends[slot].Test():
                return
            message = self._queue.popleft()
            self._outgoing[slot][: len(message)] = message
            self._sends[slot].Start()
            self._busy[slot] = True
            self._sent += 1

    def poll(self) -> list[tuple[float, ...]]:
        """The messages that have arrived since the last call, in order, each of `CONTROL_FIELDS` numbers."""
        if self._queue:
            self._flush()
        before = self._inbox.arrived
        if not self._inbox.poll():
            return []
        messages = []
        for number in range(before, self._inbox.arrived):
            slot = number % _CONTROL_SLOTS
            messages.append(tuple(self._incoming[slot].tolist()))
            self._inbox.post(slot)
        return messages

    def idle(self) -> bool:
        """Whether every message sent has left."""
        return not self._queue and all(
            not busy or request.Test() for busy, request in zip(self._busy, self._sends, strict=True)
        )

    def requests(self) -> "list[Prequest]":
        """All persistent requests."""
        return [*self._inbox.requests, *self._sends]

    def close(self) -> None:
        """Free everything; call only when `idle`, and after the last message to this rank."""
        self._inbox.close()
        for request in self._sends:
            request.Free()


def receive(comm: "Intracomm", buffer: Any, source: int, tag: int, limit: float = 600.0) -> None:
    """Receive one message, and leave the core to other ranks in the meantime.

    Parameters
    ----------
    comm : Intracomm
        Carries the message.
    buffer : array or buffer
        Receives it.
    source, tag : int
        Rank that sends it, and its tag.
    limit : float
        Seconds to wait.

    Raises
    ------
    RunFailure
        Nothing has arrived for `limit` seconds.
    """
    request, began, backoff = comm.Irecv(buffer, source, tag), time.monotonic(), Backoff(crowded=True)
    while not request.Test():
        backoff.pause()
        if time.monotonic() - began > limit:
            raise RunFailure(f"nothing came from rank {source} for {limit:.0f} s")

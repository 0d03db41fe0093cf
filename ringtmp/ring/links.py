"""Messages between ring neighbours: the one table of tags, receives posted ahead, sends that never block.

Every message has its own persistent request, made once per slot (MPI 4.1, section 3.9): starting one costs a
microsecond, a fresh Isend about twice that, and a lower-case call pickles. Messages of one tag between two ranks
arrive in the order in which they were sent, so a tag names only the direction and the stage that receives; which
micro-batch a message belongs to follows from its place in the stream.

    activations   rank r     -> r + 1    with several chunks also from the last rank to rank 0
    gradients     rank r     -> r - 1    likewise
    labels        rank 0     -> P - 1    the one hop that closes the ring
    control       rank r     -> r + 1    tokens, test results and the order to stop; the last rank's go to rank 0
"""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.nn.layer import Array, aligned
from ringtmp.run.trace import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest, Request

TAG_LABELS, TAG_CONTROL, TAG_CLOCK, _TAG_STAGES = range(1, 5)

CONTROL_FIELDS = 10  # float64 numbers of a control message
_CONTROL_SLOTS = 8


def tag_of(what: str, stage: int = 0) -> int:
    """The tag of `labels`, or of the `activations` or `gradients` that cross the boundary before `stage`."""
    return TAG_LABELS if what == "labels" else _TAG_STAGES + 2 * stage + (what == "gradients")


class Inbox:
    """Receives of one kind from one neighbour, posted ahead, one buffer and persistent request per slot."""

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
        """Note every message that has arrived; True if there was one."""
        posted, before = self.posted, self.arrived
        while posted and posted[0].Test():
            posted.popleft()
            self.arrived += 1
        return self.arrived > before

    def close(self) -> None:
        """Cancel what is still posted (nothing is on its way any more) and free the requests."""
        for request in self.posted:
            request.Cancel()
            request.Wait()
        self.posted.clear()
        for request in self.requests:
            request.Free()


class LabelBox(Inbox):
    """Labels from rank 0, in buffers of their own: they come long before the activations that they belong to.

    Parameters
    ----------
    comm, source
    like : array
        A buffer for the labels of one micro-batch.
    count : int
        Micro-batches whose labels may be here at once.
    """

    def __init__(self, comm: "Intracomm", source: int, like: Array, count: int) -> None:
        self.buffers = [aligned(like.size, like.dtype) for _ in range(count)]
        super().__init__(comm, source, TAG_LABELS, self.buffers)
        self._next = 0
        for slot in range(count):
            self.post(slot)

    def take(self, labels: Array) -> None:
        """Copy the oldest labels out, and post their buffer again."""
        labels[...] = self.buffers[self._next][: labels.size].reshape(labels.shape)
        self.post(self._next)
        self._next = (self._next + 1) % len(self.buffers)


class Outbox:
    """Sends of one kind to one neighbour, a persistent request per (slot, rows), made on first use.

    Where they are `synchronous` none completes before its receive is posted, and those that are to `wait` for that
    block; `blocked` is called meanwhile with the time at which that began.
    """

    def __init__(
        self, comm: "Intracomm", dest: int, tag: int, synchronous: bool, blocked: Callable[[int], None]
    ) -> None:
        self.comm, self.dest, self.tag, self.blocked = comm, dest, tag, blocked
        self.init = comm.Ssend_init if synchronous else comm.Send_init
        self.synchronous = synchronous
        self.requests: dict[Any, Any] = {}

    def send(self, key: Any, buffer: Array, wait: bool) -> "Request":
        """Start sending `buffer`, always the same one for the same `key`; it must stay as it is until Test is true."""
        if key not in self.requests:
            self.requests[key] = self.init(buffer, self.dest, self.tag)
        request = self.requests[key]
        request.Start()
        if self.synchronous and wait:
            since = clock()
            while not request.Test():
                self.blocked(since)
        return request

    def close(self) -> None:
        """Complete and free all sends."""
        for request in self.requests.values():
            request.Wait()
            request.Free()


class ControlLink:
    """Small messages of `CONTROL_FIELDS` float64 numbers to the right neighbour, queued when none may leave yet."""

    BYTES = CONTROL_FIELDS * 8

    def __init__(self, comm: "Intracomm", left: int, right: int) -> None:
        self._incoming = [aligned(CONTROL_FIELDS, np.float64) for _ in range(_CONTROL_SLOTS)]
        self._outgoing = [aligned(CONTROL_FIELDS, np.float64) for _ in range(_CONTROL_SLOTS)]
        self._inbox = Inbox(comm, left, TAG_CONTROL, self._incoming)
        self._sends = [comm.Send_init(buffer, right, TAG_CONTROL) for buffer in self._outgoing]
        self._busy: list[bool] = [False] * _CONTROL_SLOTS
        self._queue: deque[tuple[float, ...]] = deque()
        self._sent = 0
        for slot in range(_CONTROL_SLOTS):
            self._inbox.post(slot)

    def send(self, message: tuple[float, ...]) -> None:
        """Send `message` after those before it."""
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
        """The messages that have arrived, in order."""
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
        """Whether all that was sent has left."""
        return not self._queue and all(
            not busy or request.Test() for busy, request in zip(self._busy, self._sends, strict=True)
        )

    def close(self) -> None:
        """Free everything; call only when `idle`, and after the left neighbour's last message."""
        self._inbox.close()
        for request in self._sends:
            request.Free()


class Patience:
    """How to wait: spin while cores last, then yield, then sleep in small steps where ranks outnumber cores.

    Parameters
    ----------
    crowded : bool
        Whether this node has more ranks than cores.

    Notes
    -----
    Two ranks on two cores: a message that comes within the spin is seen in under 2 microseconds. Eight ranks on two
    cores: a rank that only yields takes its turn in the scheduler again and again; sleeping after 50 yields
    leaves the cores to those that have work (figures in the closing note of issue 2).
    """

    def __init__(self, crowded: bool) -> None:
        self.spins, self.yields, self.nap = (2, 50, 50e-6) if crowded else (200, 20000, 50e-6)
        self.turn = 0

    def reset(self) -> None:
        """Begin a new wait."""
        self.turn = 0

    def pause(self) -> None:
        """Wait a little, a little longer each time."""
        self.turn += 1
        if self.turn <= self.spins:
            return
        if self.turn <= self.spins + self.yields:
            os.sched_yield()
        else:
            time.sleep(self.nap)

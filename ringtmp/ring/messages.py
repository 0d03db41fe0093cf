"""Messages between ring neighbours: the ring's tags, labels, and sends that never block.

A tag names only the direction and the stage that receives; which micro-batch a message belongs to follows from its
place in the stream (`ringtmp.comm.point_to_point`).

    activations   rank r     -> r + 1    with several chunks also from the last rank to rank 0
    gradients     rank r     -> r - 1    likewise
    labels        rank 0     -> P - 1    the one hop that closes the ring
    control       rank r     -> r + 1    tokens, test results and the order to stop; the last rank's go to rank 0
    back          rank r     -> r - 1    signs of life, and which copies are whole
    replica       rank r     -> r + 1    copies of stages
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringtmp.comm.point_to_point import FIRST_TAG, ReceiveQueue
from ringtmp.nn.layer import Array, aligned
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

TAG_LABELS, TAG_BACK, TAG_SPLIT, _TAG_STAGES = range(FIRST_TAG, FIRST_TAG + 4)
_KINDS = ("activations", "gradients", "replica")


def tag_of(what: str, number: int) -> int:
    """The tag of `activations` or `gradients` that cross the boundary before stage `number`, or of a `replica`."""
    return _TAG_STAGES + len(_KINDS) * number + _KINDS.index(what)


class LabelQueue(ReceiveQueue):
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


class SendRequests:
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

"""All that connects a rank with its two neighbours: receives and sends of each stage, and two mailboxes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringtmp.comm.messages import Mailbox
from ringtmp.comm.point_to_point import TAG_CONTROL, ControlChannel, ReceiveQueue
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.stage import Stage
from ringtmp.ring.messages import KINDS, TAG_CONTROL_BACK, TAG_LABELS, tag_of
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest, Request


class LabelQueue(ReceiveQueue):
    """Labels from rank 0, in buffers of their own: they arrive long before the activations that they belong to.

    Parameters
    ----------
    comm : Intracomm
    source : int
        Rank 0.
    like : array
        A buffer for the labels of one micro-batch.
    count : int
        Micro-batches whose labels may have arrived and not been taken.
    """

    def __init__(self, comm: "Intracomm", source: int, like: Array, count: int) -> None:
        self.buffers = [aligned(like.size, like.dtype) for _ in range(count)]
        super().__init__(comm, source, TAG_LABELS, self.buffers)
        self._next = 0
        for slot in range(count):
            self.post(slot)

    def take(self, labels: Array) -> None:
        """Copy the oldest labels into `labels`, and post their buffer again."""
        labels[...] = self.buffers[self._next][: labels.size].reshape(labels.shape)
        self.post(self._next)
        self._next = (self._next + 1) % len(self.buffers)


class SendRequests:
    """Sends of one kind to one neighbour, a persistent request per (slot, rows), made on first use.

    Parameters
    ----------
    comm : Intracomm
    dest, tag : int
    synchronous_sends : bool
        Whether a send completes only once its receive is posted.
    """

    def __init__(self, comm: "Intracomm", dest: int, tag: int, synchronous_sends: bool) -> None:
        self.comm, self.dest, self.tag = comm, dest, tag
        self.init = comm.Ssend_init if synchronous_sends else comm.Send_init
        self.synchronous_sends = synchronous_sends
        self.requests: dict[Any, Any] = {}

    def send(self, key: Any, buffer: Array, blocked: Callable[[int], None] | None = None) -> "Request":
        """Start sending `buffer`; it must stay as it is until `Test` of the returned request is true.

        Parameters
        ----------
        key : hashable
            Names the buffer: always the same one for the same key.
        buffer : array
        blocked : callable, optional
            With `synchronous_sends`, wait here until this one is complete, and call `blocked` meanwhile with the time
            (`clock`) at which the wait began.
        """
        if key not in self.requests:
            self.requests[key] = self.init(buffer, self.dest, self.tag)
        request = self.requests[key]
        request.Start()
        if self.synchronous_sends and blocked is not None:
            since = clock()
            while not request.Test():
                blocked(since)
        return request

    def close(self) -> None:
        """Complete and free all sends."""
        for request in self.requests.values():
            request.Wait()
            request.Free()


@dataclass(frozen=True)
class StageLinks:
    """Receives and sends of one stage; None where the chain ends, or the ring has one rank and one stage.

    Attributes
    ----------
    activations, gradients : ReceiveQueue or None
        From the stage before, and from the stage behind.
    labels : LabelQueue or None
        On the last stage.
    activations_out, gradients_out : SendRequests or None
        To the stage behind, and to the stage before.
    labels_out : SendRequests or None
        On the first stage.
    """

    activations: ReceiveQueue | None = None
    gradients: ReceiveQueue | None = None
    labels: LabelQueue | None = None
    activations_out: SendRequests | None = None
    gradients_out: SendRequests | None = None
    labels_out: SendRequests | None = None


class RingLinks:
    """This rank's connections. Collective over `comm`.

    On two ranks the left and the right neighbour are the same rank, hence a mailbox for each direction. On one rank
    `to_right` delivers to the rank itself.

    Parameters
    ----------
    comm : Intracomm
        The ring: the neighbours are rank - 1 and rank + 1, modulo its size.
    recorder : Recorder
    synchronous_sends : bool
        Whether data are sent with synchronous sends.

    Attributes
    ----------
    rank, size, left, right : int
    to_right : Mailbox
        Sends to the right neighbour, receives from the left one.
    to_left : Mailbox
        Sends to the left neighbour, receives from the right one.
    """

    def __init__(self, comm: "Intracomm", recorder: Recorder, synchronous_sends: bool = False) -> None:
        self.comm, self.synchronous_sends = comm, synchronous_sends
        self.rank, self.size = comm.rank, comm.size
        self.left, self.right = left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        forth: dict[int, ControlChannel] = {}
        back: dict[int, ControlChannel] = {}
        if comm.size > 1:
            forth[right] = ControlChannel(comm, left, right, TAG_CONTROL)
            back[left] = ControlChannel(comm, right, left, TAG_CONTROL_BACK)
        self.to_right = Mailbox(comm.rank, KINDS, forth, recorder, stage=comm.rank)
        self.to_left = Mailbox(comm.rank, KINDS, back, recorder, stage=comm.rank)
        self._queues: list[ReceiveQueue] = []
        self._sends: list[SendRequests] = []

    def connect(self, stage: Stage, number: int, label_slots: int) -> StageLinks:
        """Make the receives and sends of a stage: one tag for each boundary between stages.

        Parameters
        ----------
        stage : Stage
        number : int
            Of the stage along the chain.
        label_slots : int
            On the last stage: micro-batches for which stage 0 has slots, so that no label waits for a buffer.
        """
        buffers = [stage.buffers(slot) for slot in range(stage.slots)]
        comm, before, behind = self.comm, not stage.is_first, not stage.is_last
        activations = gradients = labels = None
        if before:
            tag = tag_of("activations", number)
            activations = ReceiveQueue(comm, self.left, tag, [inputs for inputs, _, _ in buffers])
        if behind:
            tag = tag_of("gradients", number + 1)
            gradients = ReceiveQueue(comm, self.right, tag, [outputs for _, outputs, _ in buffers])
        if stage.is_last and before:  # one stage alone has its labels already
            labels = LabelQueue(comm, self.right, buffers[0][2], label_slots)
        self._queues += [queue for queue in (activations, gradients, labels) if queue]
        return StageLinks(
            activations,
            gradients,
            labels,
            self._send(self.right, tag_of("activations", number + 1)) if behind else None,
            self._send(self.left, tag_of("gradients", number)) if before else None,
            self._send(self.left, TAG_LABELS) if stage.is_first and behind else None,
        )

    def _send(self, dest: int, tag: int) -> SendRequests:
        self._sends.append(SendRequests(self.comm, dest, tag, self.synchronous_sends))
        return self._sends[-1]

    def idle(self) -> bool:
        """Whether all control messages have left."""
        return self.to_right.idle() and self.to_left.idle()

    def requests(self) -> "list[Prequest]":
        """All persistent requests, started or not."""
        found = [request for queue in self._queues for request in queue.requests]
        found += [request for sends in self._sends for request in sends.requests.values()]
        return found + self.to_right.requests() + self.to_left.requests()

    def close_receives(self) -> None:
        """Cancel and free all receives and control channels, once nothing more can arrive."""
        for queue in self._queues:
            queue.close()
        self.to_right.close()
        self.to_left.close()

    def close_sends(self) -> None:
        """Complete and free all sends."""
        for sends in self._sends:
            sends.close()

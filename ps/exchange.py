"""A worker's end of the exchange with servers: gradients leave as soon as they exist, weights come back in order.

One key range is one message each way. Pushes of early layers overtake those of late ones that are still queued, since
the next forward pass needs their answers first (P3: Jayarajan et al. 2019).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ringtmp.comm.messages import Mailbox
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.layer_state import LayerState
from ringtmp.nn.shards import KeyRange
from ringtmp.ps.compression import Compressor
from ringtmp.ps.membership import Membership
from ringtmp.ps.messages import Begin
from ringtmp.ps.send_queue import SendQueue
from ringtmp.ps.serving.server import Server
from ringtmp.ps.tags import pull_tag, push_tag
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Exchange(Protocol):
    """How a worker turns gradients into new weights."""

    def begin(self, step: int, samples: int) -> None:
        """Announce that the gradients that follow are of step `step` and of `samples` samples."""

    def ready(self, layer: int) -> None:
        """Note that the gradient of layer `layer` is complete."""

    def missing(self, layer: int) -> int:
        """Number of a key range whose new weights layer `layer` still waits for; -1: it has them all."""

    def poll(self) -> bool:
        """Start and complete messages; True if anything has happened."""

    def reuse(self, layer: int) -> None:
        """Return once the gradient of layer `layer` may be overwritten."""

    def close(self) -> None:
        """Free all requests; call when nothing is missing."""


class KeyRangeViews:
    """The places of the key ranges in a worker's layers.

    Parameters
    ----------
    ranges : sequence of KeyRange
        All ranges.
    states : sequence of LayerState
        All layers.
    """

    def __init__(self, ranges: Sequence[KeyRange], states: Sequence[LayerState]) -> None:
        self.ranges, self.states = ranges, states
        self.of_layer: list[list[int]] = [[] for _ in states]  # numbers of the ranges that have a part of each layer
        for keys in ranges:
            for segment in keys.segments:
                self.of_layer[segment.layer].append(keys.number)
        self.layers = [len({segment.layer for segment in keys.segments}) for keys in ranges]  # count, for each range

    def view(self, number: int, what: str) -> Array | None:
        """Range `number` of each layer's `what` ("flat" or "gradient") without a copy; None if it spans layers."""
        first, *others = self.ranges[number].segments
        return None if others else getattr(self.states[first.layer], what)[first.start : first.stop]

    def gather(self, number: int, what: str, into: Array) -> None:
        """Copy a range from the layers.

        Parameters
        ----------
        number : int
            Number of the range.
        what : {"flat", "gradient"}
            Array of `LayerState` that is copied.
        into : array [size of the range]
            Receives the numbers.
        """
        for layer, start, stop, at in self.ranges[number].segments:
            into[at : at + stop - start] = getattr(self.states[layer], what)[start:stop]

    def spread(self, number: int, weights: Array) -> None:
        """Copy `weights` [size of the range] to the layers of range `number`."""
        for layer, start, stop, at in self.ranges[number].segments:
            self.states[layer].flat[start:stop] = weights[at : at + stop - start]


class ServerExchange:
    """The exchange with one or several servers, one of which may be on this rank.

    Parameters
    ----------
    comm : Intracomm
        Carries gradients and weights.
    views : KeyRangeViews
        The places of the key ranges in this worker's layers.
    compressor : Compressor
        Compresses gradients, and decompresses weights.
    mailbox : Mailbox
        Delivers control messages.
    recorder : Recorder
        Records sends and receives.
    own_server : Server or None
        The server of this rank.
    membership : Membership or None
        Gives the generation of a step; None: no worker ever rejoins.
    weight : callable or None
        With local steps: the factor of a worker's difference, from its number of samples. The push is then not the
        gradient but the weights received last minus the worker's own, times that factor.
    """

    def __init__(
        self,
        comm: "Intracomm",
        views: KeyRangeViews,
        compressor: Compressor,
        mailbox: Mailbox,
        recorder: Recorder,
        own_server: Server | None,
        membership: Membership | None = None,
        weight: Callable[[int], float] | None = None,
    ) -> None:
        from mpi4py import MPI

        self.rank, self.views, self.compressor = comm.rank, views, compressor
        self.mailbox, self.recorder = mailbox, recorder
        self.own_server, self.membership, self.weight = own_server, membership, weight
        self.pushes_made = 0  # how often every range has been pushed
        ranges = views.ranges
        self._servers = sorted({keys.server for keys in ranges})
        self._testsome = MPI.Prequest.Testsome
        self._step, self._factor = -1, 1.0
        self._here = [True] * len(ranges)  # whether the newest weights of each range have arrived
        self._pushed = [-1] * len(ranges)  # step of each range's newest push
        self._incomplete = views.layers.copy()  # layers of each range whose gradients are not complete yet
        self._send_queue = SendQueue(self._servers, self._start)

        # Buffers and requests of each range; those of this rank's own server have no requests.
        self._pushes: list[Any] = []
        self._pulls: list[Any] = []
        self._gradients: list[Array] = []  # what is pushed, before compression
        self._push_messages: list[Array] = []
        self._pull_messages: list[Array] = []
        self._weights: list[Array] = []  # weights after decompression: in the layer, if the range lies in one
        self._base: list[Array] = []  # with local steps: the weights received last
        dtype = compressor.dtype
        for keys in ranges:
            number, size, remote = keys.number, keys.size, keys.server != self.rank
            gradient = None if weight else views.view(number, "gradient")
            self._gradients.append(aligned(size, dtype) if gradient is None else gradient)
            if weight:
                self._base.append(aligned(size, dtype))
                views.gather(number, "flat", self._base[-1])
            packed = compressor.compresses_gradients and remote
            self._push_messages.append(compressor.gradient_buffer(size) if packed else self._gradients[-1])
            weights = views.view(number, "flat")
            self._weights.append(aligned(size, dtype) if weights is None else weights)
            packed = compressor.compresses_weights
            self._pull_messages.append(compressor.weights_buffer(size) if packed else self._weights[-1])
            null = MPI.REQUEST_NULL
            push, pull = self._push_messages[-1], self._pull_messages[-1]
            self._pushes.append(comm.Send_init(push, keys.server, push_tag(number)) if remote else null)
            self._pulls.append(comm.Recv_init(pull, keys.server, pull_tag(number)) if remote else null)
        if own_server is not None:
            own_server.connect_own_worker(self._arrived)

    # ---- pushes -------------------------------------------------------------------------------------------------

    def begin(self, step: int, samples: int) -> None:
        self._step = step
        if self.weight:
            self._factor = self.weight(samples)
        self._incomplete = self.views.layers.copy()
        generation = self.membership.generation_in(step) if self.membership else 0
        self.mailbox.send_all(self._servers, Begin(step, samples, generation), step)
        if self.own_server is not None:
            self.mailbox.poll()  # the own server must know before the first gradient

    def ready(self, layer: int) -> None:
        for number in self.views.of_layer[layer]:
            self._incomplete[number] -= 1
            if not self._incomplete[number]:
                self._push(number)
        self._send_queue.poll()
        if not any(self._incomplete):
            self.pushes_made += 1

    def _push(self, number: int) -> None:
        """Queue a range whose gradient is complete for its server, or hand it to this rank's own."""
        # Bring it together.
        gradient, keys = self._gradients[number], self.views.ranges[number]
        if self.weight:
            self.views.gather(number, "flat", gradient)
            np.subtract(self._base[number], gradient, out=gradient)
            np.multiply(gradient, gradient.dtype.type(self._factor), out=gradient)
        elif len(keys.segments) > 1:
            self.views.gather(number, "gradient", gradient)
        self._here[number], self._pushed[number] = False, self._step

        # Hand it on.
        if keys.server == self.rank:
            assert self.own_server
            self.own_server.push(number, gradient)
            return
        if self.compressor.compresses_gradients:
            self.compressor.compress_gradient(number, gradient, self._push_messages[number])
        self._pulls[number].Start()
        self._send_queue.add(keys.server, number, self._step)

    def request_weights(self, step: int) -> None:
        """After a rejoin: request all weights again, as if step `step` had been made.

        Pushes of no samples do that; their contents do not count. No weights may be missing.
        """
        assert self.membership
        self._step = step
        self.mailbox.send_all(self._servers, Begin(step, 0, self.membership.generation), step)
        for keys in self.views.ranges:
            self._here[keys.number], self._pushed[keys.number] = False, step
            self._pulls[keys.number].Start()
            self._send_queue.add(keys.server, keys.number, step)
        self.pushes_made += 1

    def _start(self, server: int, number: int, step: int) -> tuple[Any, int]:
        begin, request = clock(), self._pushes[number]
        request.Start()
        self.recorder.record("send", begin, clock(), step, -1, server, self._push_messages[number].nbytes, number)
        return request, 0

    def reuse(self, layer: int) -> None:
        for number in self.views.of_layer[layer]:
            self._send_queue.complete(number)

    # ---- pulls --------------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        begin = clock()
        done = self._testsome(self._pulls)
        for number in done or ():
            message = self._pull_messages[number]
            if self.compressor.compresses_weights:
                self.compressor.decompress_weights(message, self._weights[number])
            self._arrived(number, self._weights[number])
            now = clock()
            server = self.views.ranges[number].server
            self.recorder.record("receive", begin, now, self._pushed[number], -1, server, message.nbytes, number)
            begin = now
        return self._send_queue.poll() or bool(done)

    def _arrived(self, number: int, weights: Array) -> None:
        """Note that new weights of a range have arrived; copy them to its layers if they are not there yet."""
        if weights is not self._weights[number] or len(self.views.ranges[number].segments) > 1:
            self.views.spread(number, weights)
        if self.weight:
            self.views.gather(number, "flat", self._base[number])
        self._here[number] = True

    def missing(self, layer: int) -> int:
        for number in self.views.of_layer[layer]:
            if not self._here[number]:
                return number
        return -1

    def close(self) -> None:
        for request in [*self._pushes, *self._pulls]:
            if request:  # not of this rank's own server
                request.Wait()
                request.Free()

"""A worker's end of the exchange with servers: gradients leave as soon as they exist, weights come back in order.

One range of keys is one message each way. Pushes of early layers overtake those of late ones that are still queued,
since the next forward needs their answers first (P3: Jayarajan et al. 2019).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ps import messages as post
from ps.compression import Filter
from ps.messages import Post
from ps.send_queue import SendQueue
from ps.server import Server, pull_tag, push_tag
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.layer_state import LayerState
from ringtmp.nn.shards import KeyRange
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Exchange(Protocol):
    """How a worker comes from gradients to new weights."""

    def begin(self, step: int, samples: int) -> None:
        """The gradients that follow are of this step, and of so many samples."""

    def ready(self, layer: int) -> None:
        """The gradient of a layer exists."""

    def missing(self, layer: int) -> int:
        """A range of keys whose new weights a layer waits for, or -1: it has them."""

    def poll(self) -> bool:
        """Let messages move; whether anything has happened."""

    def reuse(self, layer: int) -> None:
        """The gradient of a layer will be overwritten."""

    def close(self) -> None:
        """Give back all requests; when nothing is missing."""


class Parameters:
    """Ranges of keys in a worker's layers: gathered into one buffer to be sent, spread when they have come.

    Parameters
    ----------
    ranges : sequence of KeyRange
        All of them.
    states : sequence of LayerState
        All layers.
    """

    def __init__(self, ranges: Sequence[KeyRange], states: Sequence[LayerState]) -> None:
        self.ranges, self.states = ranges, states
        self.of_layer: list[list[int]] = [[] for _ in states]
        for keys in ranges:
            for segment in keys.segments:
                self.of_layer[segment.layer].append(keys.number)
        self.layers = [len({segment.layer for segment in keys.segments}) for keys in ranges]

    def view(self, number: int, what: str) -> Array | None:
        """A range of `flat` or `gradient` as it lies there, if it lies in one layer."""
        first, *others = self.ranges[number].segments
        return None if others else getattr(self.states[first.layer], what)[first.start : first.stop]

    def gather(self, number: int, what: str, into: Array) -> None:
        """Copy a range of `flat` or `gradient`."""
        for layer, start, stop, at in self.ranges[number].segments:
            into[at : at + stop - start] = getattr(self.states[layer], what)[start:stop]

    def spread(self, number: int, weights: Array) -> None:
        """Put new weights of a range where they belong."""
        for layer, start, stop, at in self.ranges[number].segments:
            self.states[layer].flat[start:stop] = weights[at : at + stop - start]


class ServerLink:
    """The exchange with one or several servers, one of which may be on this rank.

    Parameters
    ----------
    comm : Intracomm
    parameters : Parameters
    filtered : Filter
    letters : Post
    recorder : Recorder
    local : Server or None
        This rank's own.
    share : callable or None
        With local steps: what a worker's difference counts for, from its samples. What is pushed is then not a gradient
        but how far its own steps have led from the weights that came last.
    generation : callable
        How many workers have come back by a step.
    """

    def __init__(
        self,
        comm: "Intracomm",
        parameters: Parameters,
        filtered: Filter,
        letters: Post,
        recorder: Recorder,
        local: Server | None,
        share: Callable[[int], float] | None = None,
        generation: Callable[[int], int] = lambda step: 0,
    ) -> None:
        from mpi4py import MPI

        self.rank, self.parameters, self.filter = comm.rank, parameters, filtered
        self.post, self.recorder = letters, recorder
        self.local, self.share, self.generation = local, share, generation
        self.pushes_made = 0  # of each range
        self.testsome = MPI.Prequest.Testsome
        ranges = parameters.ranges
        self.servers = sorted({keys.server for keys in ranges})
        self.step, self.factor = -1, 1.0
        self.here = [True] * len(ranges)
        self.pushed = [-1] * len(ranges)  # step of each range's newest gradient
        self.left = parameters.layers.copy()  # layers of each range whose gradients do not exist yet
        self.departures = SendQueue(self.servers, self._start)
        self.pushes: list[Any] = []
        self.pulls: list[Any] = []
        self.dense: list[Array] = []  # what is pushed, before it is recoded
        self.wires: list[Array] = []
        self.comes: list[Array] = []  # where weights come in
        self.targets: list[Array] = []  # where they are put together; where they belong, if that is one place
        self.base: list[Array] = []
        dtype = filtered.dtype
        for keys in ranges:
            gradient = None if share else parameters.view(keys.number, "gradient")
            self.dense.append(aligned(keys.size, dtype) if gradient is None else gradient)
            if share:
                self.base.append(aligned(keys.size, dtype))
                parameters.gather(keys.number, "flat", self.base[-1])
            wire = filtered.wire(keys.size) if filtered.pushes and keys.server != self.rank else self.dense[-1]
            self.wires.append(wire)
            target = parameters.view(keys.number, "flat")
            self.targets.append(aligned(keys.size, dtype) if target is None else target)
            self.comes.append(filtered.answer(keys.size) if filtered.pulls else self.targets[-1])
            if keys.server == self.rank:
                self.pushes.append(MPI.REQUEST_NULL)
                self.pulls.append(MPI.REQUEST_NULL)
                continue
            self.pushes.append(comm.Send_init(wire, keys.server, push_tag(keys.number)))
            self.pulls.append(comm.Recv_init(self.comes[-1], keys.server, pull_tag(keys.number)))
        if local is not None:
            local.local = self._arrived

    def begin(self, step: int, samples: int) -> None:
        self.step = step
        if self.share:
            self.factor = self.share(samples)
        self.left = self.parameters.layers.copy()
        self.post.tell(self.servers, post.BEGIN, step, samples, self.generation(step))
        if self.local is not None:
            self.post.poll()  # the own server knows before the first gradient

    def ready(self, layer: int) -> None:
        for number in self.parameters.of_layer[layer]:
            self.left[number] -= 1
            if not self.left[number]:
                self._push(number)
        self.departures.poll()
        if not any(self.left):
            self.pushes_made += 1

    def _push(self, number: int) -> None:
        """A whole range exists: to its server's queue, or to that server itself."""
        dense, server = self.dense[number], self.parameters.ranges[number].server
        if self.share:
            self.parameters.gather(number, "flat", dense)
            np.subtract(self.base[number], dense, out=dense)
            np.multiply(dense, dense.dtype.type(self.factor), out=dense)
        elif len(self.parameters.ranges[number].segments) > 1:
            self.parameters.gather(number, "gradient", dense)
        self.here[number], self.pushed[number] = False, self.step
        if server == self.rank:
            assert self.local
            self.local.push(number, dense)
            return
        if self.filter.pushes:
            self.filter.pack(number, dense, self.wires[number])
        self.pulls[number].Start()
        self.departures.add(server, number, self.step)

    def ask(self, step: int, generation: int) -> None:
        """Have all weights sent anew, as if `step` had been made: pushes of no samples, whose contents do not count.

        Nothing may be under way.
        """
        self.step = step
        self.post.tell(self.servers, post.BEGIN, step, 0, generation)
        for keys in self.parameters.ranges:
            self.here[keys.number], self.pushed[keys.number] = False, step
            self.pulls[keys.number].Start()
            self.departures.add(keys.server, keys.number, step)
        self.pushes_made += 1

    def _start(self, server: int, number: int, step: int) -> tuple[Any, int]:
        begin, request = clock(), self.pushes[number]
        request.Start()
        self.recorder.record("send", begin, clock(), step, -1, server, self.wires[number].nbytes, number)
        return request, 0

    def _arrived(self, number: int, weights: Array) -> None:
        """New weights are here; put them where they belong if that is not where they came in."""
        if weights is not self.targets[number] or len(self.parameters.ranges[number].segments) > 1:
            self.parameters.spread(number, weights)
        if self.share:
            self.parameters.gather(number, "flat", self.base[number])
        self.here[number] = True

    def poll(self) -> bool:
        begin = clock()
        done = self.testsome(self.pulls)
        for number in done or ():
            came = self.comes[number]
            if self.filter.pulls:
                self.filter.unpack_weights(came, self.targets[number])
            self._arrived(number, self.targets[number])
            now = clock()
            server = self.parameters.ranges[number].server
            self.recorder.record("receive", begin, now, self.pushed[number], -1, server, came.nbytes, number)
            begin = now
        return self.departures.poll() or bool(done)

    def missing(self, layer: int) -> int:
        for number in self.parameters.of_layer[layer]:
            if not self.here[number]:
                return number
        return -1

    def reuse(self, layer: int) -> None:
        for number in self.parameters.of_layer[layer]:
            self.departures.complete(number)

    def close(self) -> None:
        for request in [*self.pushes, *self.pulls]:
            if request:  # not of this rank's own server
                request.Wait()
                request.Free()

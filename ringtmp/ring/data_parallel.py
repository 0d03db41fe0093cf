"""Rings side by side: each takes a share of every batch, and the gradients of a layer are summed across them.

Rank r of ring q stands in two rings: its own, and the one across, of rank r of every ring, all of which hold the same
layers. As soon as a layer's gradient is complete here it goes round the ring across (`ringtmp.comm.ring_allreduce`)
beside whatever this rank still has to do; the update waits for it. So every rank still talks to neighbours only, two in
each of two directions, and a network can use more ranks than it has layers.

The first ranks of the rings pass on what their tokens have brought (`RingLeaders`): losses to the first ring, which
reports them, and its order to stop to the others.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ringtmp.comm.messages import Mailbox
from ringtmp.comm.point_to_point import FIRST_TAG, ControlChannel
from ringtmp.comm.ring_allreduce import RingSums, Summand
from ringtmp.nn.stage import Stage
from ringtmp.ring.gates import SumsComplete
from ringtmp.ring.messages import KINDS, RingStep, RingTest, Stop
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_TAG_UP, _TAG_DOWN, _TAG_LAYERS = range(FIRST_TAG, FIRST_TAG + 3)


class CrossRingSums:
    """This rank's sums. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring across.
    stages : sequence of Stage
        Of this rank.
    numbers : sequence of int
        Of the stages along the chain.
    recorder : Recorder

    Attributes
    ----------
    gates : list of SumsComplete
        One for each stage.
    """

    def __init__(self, comm: "Intracomm", stages: Sequence[Stage], numbers: Sequence[int], recorder: Recorder) -> None:
        self.layers = [[n for n, state in enumerate(stage.states) if state.flat.size] for stage in stages]
        self.gates = [SumsComplete(len(layers)) for layers in self.layers]
        summands = [
            ((c, n), Summand(state.gradient, _TAG_LAYERS + state.index, numbers[c]))
            for c, stage in enumerate(stages)
            for n, state in enumerate(stage.states)
            if state.flat.size
        ]
        self.sums = RingSums(comm, summands, recorder, self._completed, sends_as="across")

    def starter(self, chunk: int) -> Callable[[Sequence[int], int], None]:
        """What a chunk calls when gradients are complete: `start` for that chunk."""
        return partial(self.start, chunk)

    def start(self, chunk: int, layers: Sequence[int], step: int) -> None:
        """The gradients of some layers (places in the stage) of a chunk are complete on this rank: sum them."""
        for n in layers:
            self.sums.start((chunk, n), step)

    def _completed(self, key: tuple[int, int]) -> None:
        self.gates[key[0]].missing -= 1

    def updated(self, chunk: int) -> None:
        """The chunk has made its update: its gate closes until the sums of the next step are complete."""
        self.gates[chunk].missing = len(self.layers[chunk])

    def poll(self) -> None:
        """Add and pass on what has arrived."""
        self.sums.poll()

    def close(self) -> None:
        """Free all requests, once no sum is on its way."""
        self.sums.close()


class RingLeaders:
    """Messages between the first ranks of all rings. Collective over `comm`, which they form.

    Parameters
    ----------
    comm : Intracomm
    recorder : Recorder
    complete : callable
        On the first ring: called with the `RingStep` or `RingTest` of all rings together.
    stop : callable
        On the others: called with the first ring's order to stop.
    """

    def __init__(
        self,
        comm: "Intracomm",
        recorder: Recorder,
        complete: Callable[[RingStep | RingTest], None],
        stop: Callable[[Stop], None],
    ) -> None:
        self.first, self.last = comm.rank == 0, comm.rank == comm.size - 1
        self.before, self.after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.complete, self.stop = complete, stop
        up = ControlChannel(comm, self.after, self.before, _TAG_UP)
        down = ControlChannel(comm, self.before, self.after, _TAG_DOWN)
        self.up = Mailbox(comm.rank, KINDS, {self.before: up}, recorder)
        self.down = Mailbox(comm.rank, KINDS, {self.after: down}, recorder)
        self.up.on(RingStep, lambda sender, message: self.report(message))
        self.up.on(RingTest, lambda sender, message: self.report(message))
        self.down.on(Stop, self._on_stop)
        self.parts: dict[tuple[type, int], list[RingStep | RingTest]] = {}  # by kind and step

    def report(self, result: RingStep | RingTest) -> None:
        """Add a result of this ring, or of the rings behind it, and pass the sum on once both are here."""
        key = type(result), result.step
        parts = self.parts.setdefault(key, [])
        parts.append(result)
        if len(parts) < 2 - self.last:
            return
        del self.parts[key]
        total = result._replace(
            loss=sum(part.loss for part in parts),
            correct=sum(part.correct for part in parts),
            signal=max(part.signal for part in parts),
        )
        if isinstance(total, RingStep):
            steps = [part for part in parts if isinstance(part, RingStep)]
            waited, elapsed = sum(part.waited for part in steps), sum(part.elapsed for part in steps)
            total = total._replace(waited=waited, elapsed=elapsed)
        if self.first:
            self.complete(total)
        else:
            self.up.send(self.before, total, None)

    def order(self, stop: Stop) -> None:
        """Pass an order to stop on to the rings behind this one."""
        if not self.last:
            self.down.send(self.after, stop, None)

    def _on_stop(self, sender: int, message: Stop) -> None:
        self.stop(message)
        self.order(message)

    def poll(self) -> None:
        """Read and answer what has arrived."""
        self.up.poll()
        self.down.poll()

    def finished(self) -> bool:
        """Whether all results are complete, and all messages have left."""
        return not self.parts and self.up.idle() and self.down.idle()

    def close(self) -> None:
        """Free all requests, once nothing more can arrive."""
        self.up.close()
        self.down.close()

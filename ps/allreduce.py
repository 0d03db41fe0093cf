"""The control without a server: gradients are summed round a ring of workers, each of which updates all layers.

A bucket (a range of keys) is summed (`ringtmp.comm.ring_allreduce`) as soon as its gradient exists, during the rest of
the backward pass; all ranks have the same bits of the sum.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringtmp.action_kinds import U
from ringtmp.comm.ring_allreduce import RingSums, Summand
from ringtmp.emulate.nodes import Paced
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import KeyRange
from ringtmp.ps.exchange import KeyRangeViews
from ringtmp.ps.tags import push_tag
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Bucket:
    """One key range and its gradient.

    Parameters
    ----------
    keys : KeyRange
        The range.
    gradient : array [keys.size]
        Its gradient, which the sum overwrites.

    Attributes
    ----------
    step : int
        Step in which the gradient was last summed; -1: never.
    here : bool
        Whether the update with the sum has been made.
    """

    def __init__(self, keys: KeyRange, gradient: Array) -> None:
        self.keys, self.gradient = keys, gradient
        self.step = -1
        self.here = True


class AllReduce:
    """The exchange of a worker in a ring of all ranks. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        All ranks.
    parameters : KeyRangeViews
        The places of the key ranges in this worker's layers.
    optimizer : Optimizer
        Updates the layers.
    rate : callable
        Learning rate of a step.
    recorder : Recorder
        Records sends, receives and updates.
    paced : Paced or None
        The emulated node, if any.
    nanoseconds : float
        Duration of an update of one parameter on the emulated node at its first speed.
    """

    def __init__(
        self,
        comm: "Intracomm",
        parameters: KeyRangeViews,
        optimizer: Optimizer,
        rate: Callable[[int], float],
        recorder: Recorder,
        paced: Paced | None = None,
        nanoseconds: float = 0.0,
    ) -> None:
        self.parameters, self.optimizer, self.rate, self.recorder = parameters, optimizer, rate, recorder
        self.paced, self.nanoseconds = paced, nanoseconds
        self.buckets: dict[int, Bucket] = {}
        for keys in parameters.ranges:
            own = parameters.view(keys.number, "gradient")
            dtype = parameters.states[0].flat.dtype
            self.buckets[keys.number] = Bucket(keys, aligned(keys.size, dtype) if own is None else own)
        summands = [
            (number, Summand(bucket.gradient, push_tag(number), number)) for number, bucket in self.buckets.items()
        ]
        neighbours = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.sums = RingSums(comm, summands, recorder, self._update, peers=neighbours)
        self.waits_for = parameters.layers.copy()
        self.step = -1

    def begin(self, step: int, samples: int) -> None:
        self.step = step
        self.waits_for = self.parameters.layers.copy()

    def ready(self, layer: int) -> None:
        for number in self.parameters.of_layer[layer]:
            self.waits_for[number] -= 1
            if not self.waits_for[number]:
                self._start(self.buckets[number])

    def _start(self, bucket: Bucket) -> None:
        if len(bucket.keys.segments) > 1:
            self.parameters.gather(bucket.keys.number, "gradient", bucket.gradient)
        bucket.here, bucket.step = False, self.step
        self.sums.start(bucket.keys.number, self.step)

    def poll(self) -> bool:
        return self.sums.poll()

    def _update(self, number: int) -> None:
        """Update the parameters of a key range whose sum is complete."""
        begin, bucket = clock(), self.buckets[number]
        for layer, start, stop, at in bucket.keys.segments:
            state = self.parameters.states[layer]
            g = bucket.gradient[at : at + stop - start]
            self.optimizer.clip(g, 0.0)
            slots = {name: slot[start:stop] for name, slot in state.slots.items()}
            self.optimizer.update(state.flat[start:stop], g, slots, self.rate(bucket.step), bucket.step + 1)
        bucket.here = True
        if self.paced:
            self.paced.stepped(bucket.step)
            factor = self.paced.factor(U, bucket.step)
            self.paced.until(begin, bucket.keys.size * self.nanoseconds * factor)
        self.recorder.record("U", begin, clock(), bucket.step, stage=bucket.keys.number, version=bucket.step + 1)

    def missing(self, layer: int) -> int:
        for number in self.parameters.of_layer[layer]:
            if not self.buckets[number].here:
                return number
        return -1

    def reuse(self, layer: int) -> None:
        pass  # all sends are complete once a bucket has been updated

    def close(self) -> None:
        self.sums.close()

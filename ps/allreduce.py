"""The control without a server: gradients are summed round a ring of workers, each of which updates all layers.

A bucket (a range of keys) goes round (`ringtmp.comm.ring_allreduce`) as soon as its gradient exists and beside what follows in
the backward pass; all ranks have the same bits of the sum.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ps.exchange import KeyRangeViews
from ps.tags import push_tag
from ringtmp.comm.ring_allreduce import RingAllreduce
from ringtmp.emulate.nodes import Paced
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import KeyRange
from ringtmp.schedule.local_rule import U
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Bucket:
    """One range of keys on its way round."""

    def __init__(self, keys: KeyRange, gradient: Array) -> None:
        self.keys, self.gradient = keys, gradient
        self.sum: RingAllreduce
        self.step = -1
        self.here = True


class AllReduce:
    """The exchange of a worker in a ring of all ranks. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
    parameters : KeyRangeViews
    optimizer : Optimizer
    rate : callable
        Learning rate of a step.
    recorder : Recorder
    paced : Paced or None
        The emulated node, with `nanoseconds` for an update of one parameter.
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
        from mpi4py import MPI

        self.parameters, self.optimizer, self.rate, self.recorder = parameters, optimizer, rate, recorder
        self.paced, self.nanoseconds = paced, nanoseconds
        self.left, self.right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.testsome = MPI.Prequest.Testsome
        self.buckets = []
        for keys in parameters.ranges:
            own = parameters.view(keys.number, "gradient")
            dtype = parameters.states[0].flat.dtype
            bucket = Bucket(keys, aligned(keys.size, dtype) if own is None else own)
            bucket.sum = RingAllreduce(comm, bucket.gradient, push_tag(keys.number), partial(self._sent, bucket))
            self.buckets.append(bucket)
        self.hops = self.buckets[0].sum.hops if self.buckets else 0
        self.waits_for = parameters.layers.copy()
        self.round: list[Bucket] = []  # buckets on their way
        self.leaving: list[Bucket] = []  # whole, and not yet read by the next worker
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
        bucket.sum.start()
        if self.hops:
            self.round.append(bucket)
        else:
            self._update(bucket)

    def _sent(self, bucket: Bucket, begin: int, end: int, hop: int, size: int) -> None:
        self.recorder.record("send", begin, end, bucket.step, hop, self.right, size, bucket.keys.number)

    def poll(self) -> bool:
        begin = clock()
        done = self.testsome([bucket.sum.awaited for bucket in self.round]) if self.round else None
        for bucket in [self.round[at] for at in sorted(done or ())]:
            hop, size = bucket.sum.hop, bucket.sum.bytes[bucket.sum.hop]
            whole = bucket.sum.came()
            now = clock()
            self.recorder.record("receive", begin, now, bucket.step, hop, self.left, size, bucket.keys.number)
            if whole:
                self.round.remove(bucket)
                self.leaving.append(bucket)
            begin = now
        left = [bucket for bucket in self.leaving if bucket.sum.left()]
        for bucket in left:
            self.leaving.remove(bucket)
            self._update(bucket)
        return bool(done or left)

    def _update(self, bucket: Bucket) -> None:
        begin = clock()
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
        for bucket in self.buckets:
            bucket.sum.close()


__all__: Sequence[str] = ["AllReduce", "Bucket"]

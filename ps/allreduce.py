"""The control without a server: gradients are summed round a ring of workers, each of which updates all layers.

A bucket (a range of keys) goes round in 2 (n - 1) hops of an n-th of it (Patarasuk & Yuan 2009), as soon as its
gradient exists and beside what follows in the backward pass. Each part is added up once, in the order of the ring, and
then handed on, so that all ranks have the same bits.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import kernels
from kernels.rule import U
from ps.link import Parameters
from ps.server import push_tag
from ringtmp.nn.layer import Array, aligned, pieces
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.shards import KeyRange
from ringtmp.run.pace import Paced
from ringtmp.run.trace import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Bucket:
    """One range of keys on its way round: its parts, its hops and their requests.

    In hop h < n - 1 a rank sends part rank - h and adds what comes to the part before; in those that follow it hands on
    part rank + 1 - g, g = h - (n - 1), which is complete.
    """

    def __init__(self, comm: "Intracomm", keys: KeyRange, gradient: Array) -> None:
        self.keys, self.gradient = keys, gradient
        n, rank, tag = comm.size, comm.rank, push_tag(keys.number)
        left, right = (rank - 1) % n, (rank + 1) % n
        sizes = pieces(keys.size, n)
        bounds = [sum(sizes[:k]) for k in range(n + 1)]
        parts = [gradient[bounds[k] : bounds[k + 1]] for k in range(n)]
        rooms = [aligned(sizes[0], gradient.dtype) for _ in range(min(2, n - 1))]
        self.adds: list[tuple[Array, Array] | None] = []  # by hop: what is added to what when it has come
        self.sends: list[Any] = []
        self.receives: list[Any] = []
        self.bytes: list[int] = []
        for hop in range(2 * (n - 1)):
            reducing = hop < n - 1
            out = parts[(rank - hop) % n] if reducing else parts[(rank + n - hop) % n]
            into = parts[(rank - hop - 1) % n] if reducing else parts[(rank + n - hop - 1) % n]
            room = rooms[hop % 2][: into.size] if reducing else into
            self.adds.append((into, room) if reducing else None)
            self.sends.append(comm.Send_init(out, right, tag))
            self.receives.append(comm.Recv_init(room, left, tag))
            self.bytes.append(out.nbytes)
        self.hop = self.posted = 0
        self.step = -1
        self.here = True


class AllReduce:
    """The exchange of a worker in a ring of all ranks. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
    parameters : Parameters
    optimizer : Optimizer
    rate : callable
        Learning rate of a step.
    recorder : Recorder
    paced : Paced or None
        The emulated node, with `nanoseconds` for an update of one parameter.
    """

    def __init__(
        self, comm: "Intracomm", parameters: Parameters, optimizer: Optimizer, rate: Callable[[int], float],
        recorder: Recorder, paced: Paced | None = None, nanoseconds: float = 0.0,
    ) -> None:  # fmt: skip
        from mpi4py import MPI

        self.parameters, self.optimizer, self.rate, self.recorder = parameters, optimizer, rate, recorder
        self.paced, self.nanoseconds = paced, nanoseconds
        self.left, self.right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.testsome = MPI.Prequest.Testsome
        self.buckets = []
        for keys in parameters.ranges:
            own = parameters.view(keys.number, "gradient")
            dtype = parameters.states[0].flat.dtype
            self.buckets.append(Bucket(comm, keys, aligned(keys.size, dtype) if own is None else own))
        self.hops = len(self.buckets[0].sends) if self.buckets else 0
        self.waits_for = parameters.layers.copy()
        self.round: list[Bucket] = []  # buckets on their way
        self.step = -1

    def begin(self, step: int, samples: int) -> None:  # noqa: D102
        self.step = step
        self.waits_for = self.parameters.layers.copy()

    def ready(self, layer: int) -> None:  # noqa: D102
        for number in self.parameters.of_layer[layer]:
            self.waits_for[number] -= 1
            if not self.waits_for[number]:
                self._start(self.buckets[number])

    def _start(self, bucket: Bucket) -> None:
        if len(bucket.keys.segments) > 1:
            self.parameters.gather(bucket.keys.number, "gradient", bucket.gradient)
        bucket.here, bucket.hop, bucket.posted, bucket.step = False, 0, 0, self.step
        if not self.hops:
            self._update(bucket)
            return
        self._post(bucket)
        self._hand_on(bucket)
        self.round.append(bucket)

    def _post(self, bucket: Bucket) -> None:
        """Post the next receives: two while sums are made, for there are two rooms, else one after the other."""
        reducing = self.hops // 2
        while bucket.posted < self.hops and bucket.posted <= bucket.hop + (bucket.posted < reducing):
            bucket.receives[bucket.posted].Start()
            bucket.posted += 1

    def _hand_on(self, bucket: Bucket) -> None:
        begin, hop = clock(), bucket.hop
        bucket.sends[hop].Start()
        self.recorder.record(
            "send", begin, clock(), bucket.step, hop, self.right, bucket.bytes[hop], bucket.keys.number
        )

    def poll(self) -> bool:  # noqa: D102
        if not self.round:
            return False
        begin = clock()
        done = self.testsome([bucket.receives[bucket.hop] for bucket in self.round])
        for bucket in [self.round[at] for at in sorted(done or ())]:
            hop, size = bucket.hop, bucket.bytes[bucket.hop]
            added = bucket.adds[hop]
            if added is not None:
                kernels.add_to(*added)
            bucket.hop += 1
            if bucket.hop < self.hops:
                self._hand_on(bucket)
                self._post(bucket)
            now = clock()
            self.recorder.record("receive", begin, now, bucket.step, hop, self.left, size, bucket.keys.number)
            if bucket.hop == self.hops:
                self.round.remove(bucket)
                self._update(bucket)
                now = clock()
            begin = now
        return bool(done)

    def _update(self, bucket: Bucket) -> None:
        begin = clock()
        for send in bucket.sends:
            send.Wait()  # what was sent has come round again
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

    def missing(self, layer: int) -> int:  # noqa: D102
        for number in self.parameters.of_layer[layer]:
            if not self.buckets[number].here:
                return number
        return -1

    def reuse(self, layer: int) -> None:  # noqa: D102
        pass  # all sends are complete once a bucket has been updated

    def close(self) -> None:  # noqa: D102
        for bucket in self.buckets:
            for request in (*bucket.sends, *bucket.receives):
                request.Free()


__all__: Sequence[str] = ["AllReduce", "Bucket"]

"""A server: it keeps key ranges, adds up what workers push, updates, and answers with new weights.

    receive -> may somebody read? -> update with all that has come -> answer, first layers first

Everything is persistent requests on buffers made once. A range's weights stay as they are while an answer is under way:
if an update is due, it goes to another buffer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.update import BLOCK as SERVE_BLOCK
from ps import messages as post
from ps.compression import Filter
from ps.consistency import Consistency, VectorClock
from ps.messages import Message, Post
from ps.send_queue import SendQueue
from ringtmp.comm.point_to_point import FIRST_TAG
from ringtmp.emulate.nodes import Paced
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.optimizers import Optimizer, make_slots
from ringtmp.nn.shards import KeyRange
from ringtmp.nn.threads import Pool
from ringtmp.schedule.local_rule import U
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ps.node_memory import Versions


@dataclass
class Served:
    """A key range on its server.

    Attributes
    ----------
    keys : KeyRange
    buffers : list of array [size]
        The weights are in `buffers[live]`; what travels may still lie in others.
    wires : list of array
        What travels, where it is not the weights themselves; `wire` is the newest.
    busy : list of int
        Answers under way from each of what travels.
    rows : array [workers, size]
        The gradient of each worker.
    version : int
        Updates made.
    came, left : dict
        By worker: gradients received, and answers sent. After each gradient it waits for one.
    """

    keys: KeyRange
    buffers: list[Array]
    slots: dict[str, Array]
    rows: Array
    clock: VectorClock
    version: int
    met: dict[int, int]  # version of each worker's weights
    busy: list[int] = field(default_factory=lambda: [0])
    wires: list[Array] = field(default_factory=list)
    live: int = 0
    packed: int = -1  # version that `wires[wire]` holds
    wire: int = 0
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)  # by worker: step and samples, not yet applied
    owed: dict[int, int] = field(default_factory=dict)  # by worker: the step whose answer it waits for
    came: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)

    @property
    def weights(self) -> Array:
        """The newest weights."""
        return self.buffers[self.live]


class Server:
    """The server of this rank. Collective: every worker must have its end of each key range.

    Parameters
    ----------
    comm : Intracomm
    ranges : sequence of KeyRange
        Those of this server, with `load` to give them weights.
    workers : sequence of int
        Ranks that work; this one may be among them.
    rule : Consistency
    optimizer : Optimizer
    filtered : Filter
    letters : Post
    recorder : Recorder
    rate : callable
        Learning rate of a step.
    batch_size : int
        Samples of a step.
    start : int
        Steps made before.
    threads : int
    paced : Paced or None
        The emulated node, with `nanoseconds` for an update of one parameter.
    """

    def __init__(
        self,
        comm: "Intracomm",
        ranges: Sequence[KeyRange],
        workers: Sequence[int],
        rule: Consistency,
        optimizer: Optimizer,
        filtered: Filter,
        letters: Post,
        recorder: Recorder,
        *,
        rate: Callable[[int], float],
        batch_size: int,
        start: int = 0,
        threads: int = 1,
        paced: Paced | None = None,
        nanoseconds: float = 0.0,
    ) -> None:
        from mpi4py import MPI

        self.comm, self.rank, self.rule, self.optimizer, self.filter = comm, comm.rank, rule, optimizer, filtered
        self.post, self.recorder, self.rate, self.batch_size = letters, recorder, rate, batch_size
        self.paced, self.nanoseconds = paced, nanoseconds
        self.testsome = MPI.Prequest.Testsome
        self.alive = list(workers)
        self.row = {worker: n for n, worker in enumerate(workers)}
        dtype = filtered.dtype
        self.served = [
            Served(
                keys,
                [aligned(keys.size, dtype)],
                make_slots(optimizer, aligned(keys.size, dtype), aligned),
                aligned(len(workers) * keys.size, dtype).reshape(len(workers), -1),
                VectorClock(workers, start),
                start,
                dict.fromkeys(workers, start),
                came=dict.fromkeys(workers, 0),
                left=dict.fromkeys(workers, 0),
            )
            for keys in ranges
        ]
        self.threads = Pool(threads)
        self.which: dict[tuple[int, ...], Array] = {}  # rows of workers, as the kernels take them
        self.rooms = [aligned(SERVE_BLOCK, dtype) for _ in range(threads)]
        self.arrived: Callable[[Served], None] = lambda served: (
            None
        )  # a range has passed a step (`CheckpointCollector`)
        self.versions: Versions | None = None
        self.probe: FaultProbe | None = None
        self.withheld: list[tuple[Served, int, int]] = []  # answers that wait for a version: range, worker, step
        self.local: Callable[[int, Array], None] | None = None  # how this rank's own worker is answered
        self.begun: dict[int, dict[int, list[int]]] = {w: {} for w in workers}  # by push: step, samples, ranges to come
        self.count = dict.fromkeys(workers, 0)  # announcements
        self.generation = 0  # workers that have come back
        self.since = dict.fromkeys(workers, 0)  # the generation in which a worker came (back): what is older is void
        self.void = dict.fromkeys(workers, 0)  # pushes of a worker before that
        self.ahead: list[tuple[int, Message]] = []  # announcements of a generation that is not known here yet
        self.early: list[tuple[Served, int]] = []  # gradients that came before their announcement
        self.heard = dict.fromkeys(workers, clock())
        self.ended: set[int] = set()
        self._connect(MPI)
        for kind in (post.BEGIN, post.DONE, post.TEST, post.ALIVE, post.END):
            letters.on(kind, self._hear)
        letters.on(post.BEGIN, self._begin)
        letters.on(post.END, lambda worker, message: self.ended.add(worker))

    def load(self, layer: int, flat: Array, slots: dict[str, Array]) -> None:
        """Take this server's part of a layer's parameters, and of those slots that it has."""
        for served in self.served:
            for index, start, stop, at in served.keys.segments:
                if index == layer:
                    served.weights[at : at + stop - start] = flat[start:stop]
                    for name in served.slots.keys() & slots.keys():
                        served.slots[name][at : at + stop - start] = slots[name][start:stop]

    def _connect(self, mpi: Any) -> None:
        """Receives of every worker's gradients, all posted; answers are made when first sent."""
        self.receives: list[Any] = []
        self.posted: list[bool] = []  # whether each is under way
        self.origin: list[tuple[Served, int]] = []  # of each
        self.place: dict[tuple[int, int], int] = {}
        self.inboxes: dict[tuple[int, int], Array] = {}
        for served in self.served:
            number = served.keys.number
            for worker, row in self.row.items():
                if worker == self.rank:
                    continue
                wire = self.filter.wire(served.keys.size) if self.filter.pushes else served.rows[row]
                request = self.comm.Recv_init(wire, worker, push_tag(number))
                request.Start()
                self.place[number, worker] = len(self.receives)
                self.receives.append(request)
                self.posted.append(True)
                self.origin.append((served, worker))
                self.inboxes[number, worker] = wire
        self.sends: dict[tuple[int, int, int], Any] = {}  # by key range, buffer and worker
        self.answers = SendQueue(self.row, self._start, self._gone)
        self.numbered = {served.keys.number: served for served in self.served}

    # ---- what comes ---------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take what has come, update, answer; whether anything has happened. `Post.poll` comes before it."""
        begin = clock()
        moved = False
        done = self.testsome(self.receives) if self.receives else None
        if done:
            moved = True
            for at in done:
                self._receive(*self.origin[at], begin)
                begin = clock()
        if self.withheld and self.versions:
            waiting, self.withheld = self.withheld, []
            for each in waiting:
                if self.versions.withholds(each[0], each[2]):
                    self.withheld.append(each)
                else:
                    self._answer(*each)
                    moved = True
        if self.early:
            early, self.early = self.early, []
            for served, worker in early:
                moved |= self._take(served, worker, begin)
        return self.answers.poll() or moved

    def _hear(self, worker: int, message: Message) -> None:
        self.heard[worker] = clock()

    def _begin(self, worker: int, message: Message) -> None:
        step, samples, generation = (int(number) for number in message[1:4])
        if generation > self.generation:
            self.ahead.append((worker, message))
        elif worker in self.count and generation >= self.since[worker]:
            self.begun[worker][self.count[worker]] = [step, samples, len(self.served)]
            self.count[worker] += 1

    def push(self, number: int, gradient: Array) -> None:
        """Take the gradient of this rank's own worker."""
        served = self.numbered[number]
        served.rows[self.row[self.rank]][...] = gradient
        served.came[self.rank] += 1
        self._take(served, self.rank, clock())

    def _receive(self, served: Served, worker: int, begin: int) -> None:
        served.came[worker] += 1
        self.posted[self.place[served.keys.number, worker]] = False
        if served.came[worker] <= self.void[worker]:  # of before it was dropped
            self._release(served, worker)
            return
        if self.filter.pushes:
            self.filter.unpack(self.inboxes[served.keys.number, worker], served.rows[self.row[worker]])
        self._take(served, worker, begin)

    def _take(self, served: Served, worker: int, begin: int) -> bool:
        """A gradient is here: let it count, and answer whoever may be answered. False if it is not known whose it is.

        One that comes after its step was made without it (backup workers) counts for nothing, and so does one of no
        samples: a worker that is back asks for weights.
        """
        if worker not in served.clock.ticks:
            return False
        number = served.came[worker] - 1
        known = self.begun[worker].get(number)
        if known is None:
            self.early.append((served, worker))
            return False
        step, samples, _ = known
        known[2] -= 1
        if not known[2]:
            del self.begun[worker][number]
        self.heard[worker] = clock()
        late = bool(self.rule.backup) and step < served.version
        counts = samples > 0 and not late
        size = 0 if worker == self.rank else self.inboxes[served.keys.number, worker].nbytes
        self.recorder.record(
            "receive",
            begin,
            self.heard[worker],
            step,
            -1,
            worker,
            size,
            served.keys.number,
            served.met[worker] if counts else -1,
        )
        if samples:
            served.clock.tick(worker, step + 1)
        if late:
            self.post.send(worker, post.SKIP, served.version)
            self._answer(served, worker, step)
        else:
            if counts:
                served.pending[worker] = step, samples
            served.owed[worker] = step
        self._settle(served)
        return True

    def _settle(self, served: Served) -> None:
        """Update, if somebody may read what would come of it, and answer them."""
        due = [worker for worker, step in served.owed.items() if self.rule.may_read(served.clock, step)]
        if not due:
            return
        if served.pending:
            self._update(served)
        self.arrived(served)
        for worker in due:
            step = served.owed.pop(worker)
            if self.versions and self.versions.withholds(served, step):
                self.withheld.append((served, worker, step))
            else:
                self._answer(served, worker, step)

    def _update(self, served: Served) -> None:
        if self.versions:
            self.versions.before_update(served)
        begin = clock()
        order = tuple(sorted(served.pending))
        counted = sum(samples for _, samples in served.pending.values())
        step = max(step for step, _ in served.pending.values())
        # A step of BSP is a mean over its samples; otherwise every sample counts as much, whoever saw it when.
        scale = self.batch_size / counted if self.rule.bound == 0 and counted != self.batch_size else 1.0
        served.pending.clear()
        if not self.filter.pulls:
            self._move(served)
        which = self.which.get(order)
        if which is None:
            which = self.which[order] = np.array([self.row[worker] for worker in order], np.int64)
        rate, number, size = self.rate(step), served.version + 1, served.keys.size

        def run(thread: int) -> None:
            first = size * thread // len(self.rooms)
            last = size * (thread + 1) // len(self.rooms)
            self.optimizer.serve(
                served.weights, served.rows, which, scale, self.rooms[thread], served.slots, rate, number, first, last
            )

        self.threads.each(run, range(len(self.rooms)))
        if self.probe:
            self.probe.at("U", step)  # the other ranges of the step are made, or not
        served.version = number
        if self.paced:
            self.paced.stepped(step)
            factor = self.paced.factor(U, number)
            self.paced.until(begin, size * self.nanoseconds * factor)
        self.recorder.record("U", begin, clock(), step, -1, -1, 0, served.keys.number, number)

    def _move(self, served: Served) -> None:
        """Let the next update go to a buffer from which nothing is being sent."""
        if served.busy[served.live]:
            before = served.weights
            served.live = self._free(served, served.buffers, lambda: aligned(before.size, before.dtype))
            served.weights[...] = before

    @staticmethod
    def _free(served: Served, pool: list[Array], make: Callable[[], Array]) -> int:
        """Number of a buffer in `pool` from which nothing is being sent; of a new one, if there is none."""
        free = next((n for n in range(len(pool)) if not served.busy[n]), len(pool))
        if free == len(pool):
            pool.append(make())
            served.busy.extend([0] * (len(pool) - len(served.busy)))
        return free

    # ---- answers ------------------------------------------------------------------------------------------------

    def _answer(self, served: Served, worker: int, step: int) -> None:
        if worker == self.rank:
            assert self.local
            self.rule.check(served.clock, worker, step)
            served.met[worker] = served.version
            self.local(served.keys.number, served.weights)
            return
        place = self.place[served.keys.number, worker]
        if not self.posted[place]:
            self.posted[place] = True
            self.receives[place].Start()  # before it can push again
        self.answers.add(worker, served.keys.number, step)

    def _start(self, worker: int, number: int, step: int) -> tuple[Any, int]:
        """Send the newest weights; those that the next forward needs first leave before others."""
        served = self.numbered[number]
        self.rule.check(served.clock, worker, step)
        begin = clock()
        buffer, wire = self._outgoing(served)
        key = (number, buffer, worker)
        if key not in self.sends:
            self.sends[key] = self.comm.Send_init(wire, worker, pull_tag(number))
        request = self.sends[key]
        request.Start()
        served.busy[buffer] += 1
        served.met[worker] = served.version
        served.left[worker] += 1
        self.recorder.record("send", begin, clock(), step, -1, worker, wire.nbytes, number, served.version)
        return request, buffer

    def _gone(self, number: int, buffer: int) -> None:
        self.numbered[number].busy[buffer] -= 1

    def _outgoing(self, served: Served) -> tuple[int, Array]:
        """What is sent of the newest weights, and its number among what may be under way."""
        if not self.filter.pulls:
            return served.live, served.weights
        if served.packed != served.version:
            free = self._free(served, served.wires, lambda: self.filter.answer(served.keys.size))
            self.filter.pack_weights(served.weights, served.wires[free])
            served.wire, served.packed = free, served.version
        return served.wire, served.wires[served.wire]

    # ---- who is there -------------------------------------------------------------------------------------------

    def drop(self, worker: int, gone: bool = False) -> None:
        """Go on without a worker: what it has pushed counts, what it has not is not waited for.

        `gone`: it will not come back.
        """
        if worker not in self.alive:
            return
        self.alive.remove(worker)
        self.answers.forget(worker, gone)
        self.withheld = [each for each in self.withheld if each[1] != worker]
        for served in self.served:
            served.clock.drop(worker)
            served.owed.pop(worker, None)
        for served in self.served:
            if self.alive:
                if served.pending or served.owed:
                    self._settle(served)
                self.arrived(served)

    def join(self, worker: int, step: int, pushes: int, generation: int) -> None:
        """Take a worker back from `step` on: nothing that it sent before counts, its last `pushes` included.

        Where it waits for the answer to the last of these it gets one now, so that it can push again: a push of no
        samples, answered as if it had made the step before `step`.
        """
        self.generation, self.since[worker], self.void[worker] = generation, generation, pushes
        self.begun[worker], self.count[worker], self.heard[worker] = {}, pushes, clock()
        self.alive.append(worker)
        self.answers.remember(worker)
        self.early = [each for each in self.early if each[1] != worker]
        for served in self.served:
            served.clock.join(worker, step)
            self._release(served, worker)
        ahead, self.ahead = self.ahead, []
        for each in ahead:
            self._begin(*each)

    def _release(self, served: Served, worker: int) -> None:
        """Answer the last push of before, once it is here, if that has not been done."""
        pushes = self.void[worker]
        if worker in served.clock.ticks and served.came[worker] == pushes and served.left[worker] < pushes:
            self._answer(served, worker, -1)

    def listen(self, now: int) -> None:
        """Nobody has been silent up to now: this rank was."""
        self.heard = dict.fromkeys(self.heard, now)

    def silent(self, now: int, limit: float) -> list[int]:
        """Workers that are waited for and have not been heard of for `limit` nanoseconds."""
        return [w for w in self.alive if w not in self.ended and w != self.rank and now - self.heard[w] > limit]

    def finished(self) -> bool:
        """Every worker has its last weights."""
        return self.ended.issuperset(self.alive) and self.answers.idle()

    def close(self) -> None:
        """Give back all requests of workers that are there."""
        for (served, worker), request in zip(self.origin, self.receives, strict=True):
            if worker in self.alive:
                if self.posted[self.place[served.keys.number, worker]]:
                    request.Cancel()
                request.Wait()
                request.Free()
        for (_, _, worker), request in self.sends.items():
            if worker in self.alive:
                request.Wait()
                request.Free()


def push_tag(number: int) -> int:
    """Tag of the gradient of a key range."""
    return FIRST_TAG + 2 * number


def pull_tag(number: int) -> int:
    """Tag of its new weights."""
    return FIRST_TAG + 2 * number + 1

"""The engine: one loop per rank that runs what a policy chooses among what can run.

    read the whole inbox -> choose -> run one action -> send what it made -> again

Steps chain: a stage begins step k + 1 as soon as its own update of step k is done, without a barrier. W is run layer
by layer, and what is more urgent goes in between.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ringtmp.comm.point_to_point import ControlChannel, ReceiveQueue
from ringtmp.comm.waiting import Backoff
from ringtmp.emulate.nodes import Pace
from ringtmp.errors import RunFailure
from ringtmp.nn.layer import Array, StepContext
from ringtmp.nn.stage import Stage, Work
from ringtmp.ring.chunk import Chunk, Versions
from ringtmp.ring.data_parallel import CrossRingSums, RingLeaders
from ringtmp.ring.liveness import Liveness
from ringtmp.ring.messages import TAG_BACK, TAG_LABELS, LabelQueue, SendRequests, tag_of
from ringtmp.ring.replicas import Replicas
from ringtmp.ring.tokens import BEAT, Home, Tokens
from ringtmp.run.timetable import Phase, Timetable
from ringtmp.schedule.local_rule import NONE, F, I, U, W
from ringtmp.schedule.policies import Policy
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


class Hooks(Home, Protocol):
    """What the engine asks of its surroundings."""

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Fill in micro-batch `number` of `phase` (first rank only)."""

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""

    def stepped(self, step: int) -> None:
        """All updates of a step are made."""

    def save(self, step: int) -> None:
        """After `step` updates: have this rank's part of a checkpoint written if one is due."""

    def hung(self, rank: int) -> None:
        """A neighbour gives no sign of life: end it, and this."""


class Engine:
    """Runs a timetable on this rank's stages. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring: neighbours are rank - 1 and rank + 1, modulo its size.
    stages : sequence of Stage
        One for each chunk; chunk c of rank r is stage c x ranks + r of the chain.
    table : Timetable
    policy : Policy
    hooks : Hooks
    recorder : Recorder
    start : int
        Updates made before (0 for a new run).
    crowded : bool
        Whether ranks outnumber the cores of this node.
    w_group : int
        Most micro-batches that one W takes together.
    lag : int or None
        Which weights a forward takes (`Versions`).
    stashed : bool
        Whether the stages' first stash holds the weights before `start`'s.
    paces : sequence of Pace
        One for each stage on an emulated node, else empty.
    seed, synchronous, delay, stall_timeout, heartbeat :
        As in `RunConfig`.
    probe : FaultProbe or None
        Where this rank says what it is about to do.
    rings, leads :
        As in `Tokens`.
    """

    def __init__(
        self,
        comm: "Intracomm",
        stages: Sequence[Stage],
        table: Timetable,
        policy: Policy,
        hooks: Hooks,
        recorder: Recorder,
        *,
        start: int = 0,
        w_group: int = 1,
        seed: int = 0,
        crowded: bool = False,
        synchronous: bool = False,
        delay: float = 0.0,
        stall_timeout: float = 600.0,
        lag: int | None = 0,
        stashed: bool = False,
        paces: Sequence[Pace] = (),
        stop_request: Callable[[], int] = lambda: 0,
        heartbeat: float = 60.0,
        probe: FaultProbe | None = None,
        rings: int = 1,
        leads: bool = True,
    ) -> None:
        self.table, self.policy, self.hooks, self.recorder = table, policy, hooks, recorder
        self.rank, self.size = comm.rank, comm.size
        self.left, self.right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.patience = Backoff(crowded)
        self.stall = stall_timeout * 1e9
        self.delay, self.random = delay, random.Random(comm.rank)
        self.w_group, self.seed, self.paces = w_group, seed, paces
        self.loss_scale = 1.0 / (table.batch_size * stages[0].model.scored)
        self.loss_sum = self.correct = 0.0
        self.chunks = [
            Chunk(
                stage,
                c * comm.size + comm.rank,
                table,
                start,
                Versions(stage, lag, start, stashed),
                partial(policy.window, c),
            )
            for c, stage in enumerate(stages)
        ]
        last_stage = comm.size * len(stages) - 1
        self.control = self.back = self.neighbours = None
        if self.size > 1:
            self.control = ControlChannel(comm, self.left, self.right)
            self.back = ControlChannel(comm, self.right, self.left, TAG_BACK)
            self.neighbours = Liveness(self.left, self.right, self.control, self.back, heartbeat)
        self.replicas: Replicas | None = None  # set once there is something to copy
        self.across: CrossRingSums | None = None  # and with several rings
        self.sisters: RingLeaders | None = None  # on their first ranks
        self.probe = probe
        self.tokens = Tokens(
            self.rank,
            self.size,
            self.control,
            self.chunks,
            table,
            hooks,
            recorder,
            start,
            stop_request,
            rings,
            leads,
            lambda message: self.heed_beat(self.left, message),
        )
        self.bounded = stages[0].optimizer.clip_norm is not None
        if self.bounded:
            for chunk in self.chunks:
                chunk.norm_known = lambda: self.tokens.norm is not None
        self.outboxes: list[SendRequests] = []
        self.right_out: list[SendRequests | None] = []
        self.left_out: list[SendRequests | None] = []
        for chunk in self.chunks:
            self._connect(comm, chunk, synchronous)
        self.labels_out: SendRequests | None = None
        if last_stage and self.rank == 0:
            self.labels_out = self._outbox(comm, self.left, TAG_LABELS, synchronous)
        if last_stage and self.rank == self.size - 1:
            # As many as rank 0 can ever have under way, so that no label waits for a slot here.
            self.chunks[-1].labels = LabelQueue(comm, self.right, stages[-1].buffers(0)[2], policy.room(0))
        for pace in paces:
            pace.stepped(start)
        self.step_began = clock()

    def _connect(self, comm: "Intracomm", chunk: Chunk, synchronous: bool) -> None:
        """Receives and sends of a chunk's activations and gradients; a tag for each boundary between stages."""
        stage, s = chunk.stage, chunk.number
        buffers = [stage.buffers(slot) for slot in range(stage.slots)]
        self.left_out.append(None)
        self.right_out.append(None)
        if not chunk.first:
            chunk.activations = ReceiveQueue(comm, self.left, tag_of("activations", s), [b[0] for b in buffers])
            self.left_out[-1] = self._outbox(comm, self.left, tag_of("gradients", s), synchronous)
        if not chunk.last:
            chunk.gradients = ReceiveQueue(comm, self.right, tag_of("gradients", s + 1), [b[1] for b in buffers])
            self.right_out[-1] = self._outbox(comm, self.right, tag_of("activations", s + 1), synchronous)

    def _outbox(self, comm: "Intracomm", dest: int, tag: int, synchronous: bool) -> SendRequests:
        self.outboxes.append(SendRequests(comm, dest, tag, synchronous, self._while_blocked))
        return self.outboxes[-1]

    @property
    def updates(self) -> int:
        """Updates that every stage of this rank has made."""
        return self.tokens.updates

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the timetable ends or a stop is ordered."""
        choose, chunks, tokens = self.policy.choose, self.chunks, self.tokens
        perform = [self._forward, self._backward_input, self._weights, self._update, self._backward]
        free = self.step_began = clock()  # since when this rank has had nothing to run
        while True:
            peer = self._poll()
            what = choose(chunks)
            if what == NONE:
                if self._finished():
                    break
                what = self._wait(clock() if tokens.interrupted else free)
                if what == NONE:
                    break
            elif peer >= 0 and not tokens.interrupted:
                self._record("receive", free, clock(), self.chunks[0], peer=peer)
            tokens.interrupted = False
            if self.probe:
                self._tell(self.probe, what)
            if self.delay:
                time.sleep(self.random.random() * self.delay)
            perform[what % 8](chunks[what // 8])
            free = clock()
        self._part()

    def _part(self) -> None:
        """Take leave of the neighbours: after that nothing comes from them any more."""
        if not self.neighbours or not self.control or not self.back:
            return
        self.neighbours.leave()
        self.patience.reset()
        with self.recorder.timed("wait", self.updates):
            while self.neighbours.heard or not (self.control.idle() and self.back.idle()):
                self._poll()
                self._look_for_the_hung(clock())
                self.patience.pause()

    def _look_for_the_hung(self, now: int) -> None:
        if self.neighbours and (silent := self.neighbours.silent(now)) >= 0:
            self.neighbours.heard[silent] = now  # told once
            self.hooks.hung(silent)

    def _tell(self, probe: FaultProbe, what: int) -> None:
        """Say what comes next, where somebody listens."""
        evaluates = what % 8 == F and self.chunks[what // 8].evaluating()
        probe.at("E" if evaluates else "FIWUB"[what % 8], self.updates)

    def _wait(self, since: int) -> int:
        """Poll until something can run or all is done (-1). Books the wait, and the poll that ended it."""
        self.patience.reset()
        self.tokens.interrupted, peer = False, -1
        chunk = self.chunks[0]
        while True:
            begin = clock()
            peer = max(self._poll(), peer)
            if self.tokens.interrupted:
                self.tokens.interrupted = False
                self._record("wait", since, begin, chunk)
                self.policy.waited(begin - since)
                since = clock()
                continue
            what = self.policy.choose(self.chunks)
            if what != NONE or self._finished():
                self._record("wait", since, begin, chunk, peer=peer)
                self._record("receive", begin, clock(), chunk, peer=peer)
                self.policy.waited(begin - since)
                return what
            self._look_for_the_hung(begin)
            if begin - since > self.stall:
                raise RunFailure(self._stalled(begin - since))
            self.patience.pause()

    def _stalled(self, nanoseconds: int) -> str:
        return (
            f"nothing came from the neighbours (ranks {self.left} and {self.right}) for "
            f"{nanoseconds / 1e9:.0f} s in step {self.updates} (--stall-timeout)"
        )

    def _while_blocked(self, since: int) -> None:
        """A blocking send is waiting for its receive: keep reading, and never for ever."""
        self._poll()
        self._look_for_the_hung(clock())
        if clock() - since > self.stall:
            raise RunFailure(self._stalled(clock() - since))
        os.sched_yield()

    def look(self) -> None:
        """Read what has come, and give signs of life, while something else than training goes on."""
        self._poll()

    def _poll(self) -> int:
        """Read the whole inbox, retire and acquire slots; the rank of a neighbour from which something came, or -1."""
        peer = left = right = -1
        for chunk in self.chunks:
            came, back = chunk.poll()
            if came:
                peer = left = self.left
            if back:
                peer = right = self.right
        if self.tokens.poll():
            left = self.left
        if self.back is not None and self._read_back():
            right = self.right
        if self.replicas is not None:
            self.replicas.poll()
        if self.across is not None:
            self.across.poll()
        if self.sisters is not None:  # after what has come across: an order left before that
            self.sisters.poll()
        if self.neighbours is not None:
            self.neighbours.poll(left, right)
        if self.bounded:
            self.tokens.sum_squares()
        return peer

    def _read_back(self) -> bool:
        """Heed what the right neighbour says; whether it has said anything."""
        assert self.back
        messages = self.back.poll()
        for message in messages:
            if message[0] == BEAT:
                self.heed_beat(self.right, message)
            elif self.replicas:
                self.replicas.heed(message)
        return bool(messages)

    def heed_beat(self, rank: int, message: tuple[float, ...]) -> None:
        """A sign of life, perhaps the last one."""
        if message[1] and self.neighbours:
            self.neighbours.forget(rank)

    def _finished(self) -> bool:
        return (
            all(chunk.finished() for chunk in self.chunks)
            and self.tokens.finished()
            and (self.replicas is None or self.replicas.finished(self.updates))
            and (self.sisters is None or self.sisters.finished())
        )

    def requests(self) -> "list[Prequest]":
        """All persistent requests, started or not: what `close` would give back."""
        inboxes = [box for chunk in self.chunks for box in (chunk.activations, chunk.gradients, chunk.labels) if box]
        found = [request for box in inboxes for request in box.requests]
        found += [request for outbox in self.outboxes for request in outbox.requests.values()]
        found += [request for link in (self.control, self.back) if link for request in link.requests()]
        return found + (self.replicas.requests() if self.replicas else [])

    def close(self) -> None:
        """Give back all requests. Collective."""
        for chunk in self.chunks:
            chunk.close()
        for link in (self.control, self.back):
            if link is not None:
                link.close()
        for also in (self.replicas, self.across, self.sisters):
            if also is not None:
                also.close()
        for outbox in self.outboxes:
            outbox.close()

    # ---- actions ------------------------------------------------------------------------------------------------

    def _forward(self, chunk: Chunk) -> None:
        f, phase, c = chunk.f, chunk.f.phase, self._index(chunk)
        number, place = f.number, chunk.place
        slot = chunk.slot(place)
        work = chunk.stage.work(slot, f.rows)
        begin = clock()
        if chunk.first:
            self.hooks.read(phase, number, work.x, work.labels)
            read = clock()
            self._record("data", begin, read, chunk, number, step=phase.step)
            begin = read
            if self.labels_out is not None:
                self._send(self.labels_out, chunk, slot, work.labels, begin, phase.step, number)
                begin = clock()
        elif chunk.labels is not None:
            chunk.labels.take(work.labels)
        chunk.forward(self._moment(phase, number))
        if chunk.last:
            loss, correct = chunk.stage.loss(work, self.loss_scale if phase.training else 0.0)
            self.loss_sum += loss
            self.correct += correct
        if self.paces:
            self._last(c, begin, F, f.rows, chunk.forwards if phase.training else -1 - place)
        end = clock()
        if phase.training and chunk.gradients is not None:
            chunk.gradients.post(slot)
        out = self.right_out[c]
        if out is not None:  # before all bookkeeping: the neighbour waits for it
            self._send(out, chunk, slot, work.y, end, phase.step, number)
        version = chunk.versions.of(place, phase)
        self._record("F" if phase.training else "E", begin, end, chunk, number, step=phase.step, version=version)
        if phase.training:
            chunk.forwards += 1
        else:
            chunk.done = place + 1
        if f.advance() and chunk.last:
            loss, correct, self.loss_sum, self.correct = self.loss_sum, self.correct, 0.0, 0.0
            self.tokens.summed(phase, loss, correct)

    def _backward_input(self, chunk: Chunk) -> None:
        self._send_gradient(chunk, *self._gradient(chunk))
        if chunk.stage.recompute:  # what W needs is gone with the next I
            self._whole_weights(chunk)

    def _backward(self, chunk: Chunk) -> None:
        """B: the gradient leaves after W, as where a framework makes both in one go."""
        made = self._gradient(chunk)
        self._whole_weights(chunk)
        self._send_gradient(chunk, *made)

    def _gradient(self, chunk: Chunk) -> tuple[Work, int, int, int]:
        i = chunk.i
        step, number = i.phase.step, i.number
        version = chunk.versions.of(i.place, i.phase)
        begin = clock()
        work, slot = chunk.backward_input(self._moment(i.phase, number))
        if self.paces:
            self._last(self._index(chunk), begin, I, len(work.dy), chunk.inputs - 1)
        self._record("I", begin, clock(), chunk, number, step=step, version=version)
        return work, slot, step, number

    def _send_gradient(self, chunk: Chunk, work: Work, slot: int, step: int, number: int) -> None:
        out = self.left_out[self._index(chunk)]
        if out is not None:
            self._send(out, chunk, slot, work.dx, clock(), step, number)

    def _weights(self, chunk: Chunk) -> None:
        """W layer by layer, until nothing is left of the group or something more urgent can run."""
        owner = next((other for other in self.chunks if other.group), chunk)  # what was begun is ended first
        if owner.group is None:
            owner.begin_weights(self.w_group)
        self._pieces(owner, not self.policy.patient)

    def _whole_weights(self, chunk: Chunk) -> None:
        chunk.begin_weights(1)
        self._pieces(chunk, False)

    def _pieces(self, chunk: Chunk, interruptible: bool) -> None:
        """Some pieces of W in one go, and an event for each of the group's micro-batches, the time dealt evenly."""
        assert chunk.group
        works, step, number, count, _ = chunk.group
        begin = clock()
        first, at = chunk.weights, begin
        while not chunk.weights_piece():
            at = self._last_piece(chunk, at, works, first)
            if interruptible:
                self._poll()
                what = self.policy.choose(self.chunks)
                if what != NONE and what % 8 != W:
                    break
        else:
            self._last_piece(chunk, at, works, first)
        end = clock()
        for n in range(count):
            self._record(
                "W",
                begin + (end - begin) * n // count,
                begin + (end - begin) * (n + 1) // count,
                chunk,
                number + n,
                step=step,
            )

    def _update(self, chunk: Chunk) -> None:
        step, begin = chunk.updates, clock()
        chunk.update(self.hooks.rate(step), self.tokens.norm or 0.0)
        if self.paces:
            pace = self.paces[self._index(chunk)]
            pace.until(begin, pace.update * pace.factor(U, step - chunk.start))
            pace.stepped(step + 1)
        end = clock()
        self._record("U", begin, end, chunk, step=step, version=step + 1)
        if self.replicas is not None:
            self.replicas.updated(self._index(chunk), step + 1)
        if self.across is not None:
            self.across.updated(self._index(chunk))
        if self.updates == chunk.updates:  # the last of this rank's stages
            self.policy.stepped(end - self.step_began)
            self.step_began = end
            self.hooks.stepped(step)
            self.hooks.save(self.updates)
            self.recorder.between_steps(step)
            self.tokens.stepped(step)

    # ---- what actions share -------------------------------------------------------------------------------------

    def _index(self, chunk: Chunk) -> int:
        return chunk.number // self.size

    def _moment(self, phase: Phase, number: int) -> StepContext:
        return StepContext(phase.training, self.seed, phase.step, phase.first_sample(number))

    def _last(self, c: int, begin: int, kind: int, rows: int, number: int) -> None:
        """On an emulated node: let an action last as long as it would there."""
        pace = self.paces[c]
        pace.until(begin, pace.row * rows * pace.factor(kind, number))

    def _last_piece(self, chunk: Chunk, begin: int, works: list[Work], first: int) -> int:
        """The same for a piece of W; when it ended."""
        if not self.paces:
            return begin
        pace = self.paces[self._index(chunk)]
        pieces = chunk.stage.pieces
        whole = sum(len(work.dy) * pace.factor(W, first + n) for n, work in enumerate(works))
        layers = pieces[chunk.piece - 1] if pieces else range(len(pace.layers))
        pace.until(begin, whole * pace.row * sum(pace.layers[n] for n in layers) / pace.weights)
        return clock()

    def _record(
        self,
        kind: str,
        start: int,
        end: int,
        chunk: Chunk,
        number: int = -1,
        *,
        step: int | None = None,
        peer: int = -1,
        version: int = -1,
    ) -> None:
        self.recorder.record(
            kind, start, end, self.updates if step is None else step, number, peer, 0, chunk.number, version
        )

    def _send(
        self, outbox: SendRequests, chunk: Chunk, slot: int, buffer: Array, begin: int, step: int, number: int
    ) -> None:
        wait = len(self.chunks) == 1 or (self.policy.patient and not chunk.evaluating())
        chunk.pending[slot].append(outbox.send((slot, len(buffer)), buffer, wait))
        self.recorder.record("send", begin, clock(), step, number, outbox.dest, buffer.nbytes, chunk.number)

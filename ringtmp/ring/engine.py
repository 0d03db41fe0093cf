"""The engine: one loop per rank that runs what a policy chooses among what can run.

    read the whole inbox -> choose -> run one action -> send what it made -> again

Steps chain: a rank begins step k + 1 as soon as its own update of step k is done, without a barrier. What rank 0
needs to know of the others comes to it over the ring's links as a *token*: rank 0 sends one to the right after each
of its updates, each rank passes it on once its own update of that step is done, adding its share, and the last rank
adds the loss and sends it home. An order to stop goes the same way.
"""

import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ringtmp.errors import RunFailure
from ringtmp.nn.layer import Array, Moment
from ringtmp.nn.stage import Stage
from ringtmp.ring.links import (
    CONTROL_FIELDS,
    TAG_ACTIVATION,
    TAG_GRADIENT,
    TAG_LABELS,
    ControlLink,
    Inbox,
    Outbox,
    Patience,
)
from ringtmp.run.timetable import Cursor, Phase, Timetable
from ringtmp.run.trace import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

TOKEN, TEST, STOP, SQUARES, NORM = range(5)  # first number of a control message


class Policy(Protocol):
    """Chooses the next action (`ringtmp.ring.rule`)."""

    slots: int

    def choose(self, at: Any) -> str | None: ...  # noqa: D102
    def took(self, kind: str) -> None: ...  # noqa: D102


class Hooks(Protocol):
    """What the engine asks of its surroundings."""

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Fill in micro-batch `number` of `phase` (first rank only)."""

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""

    def save(self, step: int) -> bool:
        """Write this rank's part of a checkpoint after `step` updates if one is due; False if writing failed."""

    def trained(self, step: int, loss: float, correct: float, idle: float, saved: bool) -> None:
        """A step has been finished by every rank (rank 0 only): loss and correct answers summed over its samples."""

    def tested(self, step: int, loss: float, correct: float) -> None:
        """An evaluation after `step` updates is complete (rank 0 only); sums over the test samples."""


class Engine:
    """Runs a timetable on this rank's stage. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring: neighbours are rank - 1 and rank + 1, modulo its size.
    stage : Stage
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
    seed, synchronous, delay, stall_timeout :
        As in `RunConfig`.
    """

    def __init__(
        self, comm: "Intracomm", stage: Stage, table: Timetable, policy: Policy, hooks: Hooks, recorder: Recorder,
        *, start: int = 0, w_group: int = 1, seed: int = 0, crowded: bool = False, synchronous: bool = False,
        delay: float = 0.0, stall_timeout: float = 600.0, stop_request: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self.stage, self.table, self.policy, self.hooks, self.recorder = stage, table, policy, hooks, recorder
        self.rank, self.size = comm.rank, comm.size
        self.left, self.right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.first, self.last = stage.is_first, stage.is_last
        self.stop_request = stop_request
        self.stop_signal = 0
        self.patience = Patience(crowded)
        self.stall = stall_timeout * 1e9
        self.delay, self.jitter = delay, random.Random(comm.rank)
        self.w_group, self.seed = w_group, seed
        self.loss_scale = 1.0 / (table.batch_size * stage.model.scored)

        index = table.index_of(start)
        self.end = table.end  # phases from here on are not run
        self.f = Cursor(table, index, stage.slots, training_only=False)
        self.i = Cursor(table, index, stage.slots, training_only=True)
        self.w = Cursor(table, index, stage.slots, training_only=True)
        self.forwards = self.inputs = self.weights = 0
        self.start = self.updates = start
        self.origin = self.acquired = self.retired = self.done = self.f.place
        self.tokens = start  # tokens passed on (rank 0: come home)
        self.waiting_tokens: dict[int, tuple[float, ...]] = {}
        self.losses: dict[int, tuple[float, float]] = {}
        self.saved: dict[int, bool] = {}
        self.tests_home = index - start  # evaluations that rank 0 has heard of
        self.loss_sum = self.correct = 0.0
        self.squares: float | None = None  # of this step's gradients on all ranks before this one, once it is here
        self.norm: float | None = None  # of all gradients of this step
        self.added = False  # whether this rank's squares have been passed on
        self.interrupted = False  # a control message has just been dealt with: that was neither wait nor transfer

        self.pending: list[list[Request]] = [[] for _ in range(stage.slots)]
        self.activations = self.gradients = self.labels = self.control = None
        self.outboxes: list[Outbox] = []
        buffers = [stage.buffers(slot) for slot in range(stage.slots)]
        if self.size > 1:
            self.control = ControlLink(comm, self.left, self.right)
            if self.first:
                self.label_out = self._outbox(comm, self.left, TAG_LABELS, synchronous)
            else:
                self.activations = Inbox(comm, self.left, TAG_ACTIVATION, [b[0] for b in buffers])
                self.gradient_out = self._outbox(comm, self.left, TAG_GRADIENT, synchronous)
            if self.last:
                self.labels = Inbox(comm, self.right, TAG_LABELS, [b[2] for b in buffers])
            else:
                self.gradients = Inbox(comm, self.right, TAG_GRADIENT, [b[1] for b in buffers])
                self.activation_out = self._outbox(comm, self.right, TAG_ACTIVATION, synchronous)

    def _outbox(self, comm: "Intracomm", dest: int, tag: int, synchronous: bool) -> Outbox:
        self.outboxes.append(Outbox(comm, dest, tag, synchronous))
        return self.outboxes[-1]

    # ---- what can run -------------------------------------------------------------------------------------------

    def can_forward(self) -> bool:
        """The next F has its slot, its input, its labels, and the weights of its step."""
        f = self.f
        if f.index >= self.end or f.phase.step != self.updates:
            return False
        place = f.phase.start + f.number
        if place >= self.acquired:
            return False
        arrived = place - self.origin
        if self.activations is not None and self.activations.arrived <= arrived:
            return False
        return self.labels is None or self.labels.arrived > arrived

    def can_backward_input(self) -> bool:
        """The gradient of the oldest micro-batch without I is here."""
        return self.inputs < (self.forwards if self.gradients is None else self.gradients.arrived)

    def can_backward_weight(self) -> bool:
        """A micro-batch has had I and not W."""
        return self.weights < self.inputs

    def must_update(self) -> bool:
        """Every W of the step is done, and the norm of all gradients is known if it bounds them."""
        if self.weights != (self.updates - self.start + 1) * len(self.table.train_sizes):
            return False
        return self.stage.optimizer.clip_norm is None or self._knows_norm()

    def evaluating(self) -> bool:
        """The next F belongs to an evaluation."""
        return not self.f.phase.training

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the timetable ends or a stop is ordered."""
        perform = {"F": self._forward, "I": self._backward_input, "W": self._backward_weight, "U": self._update}
        choose = self.policy.choose
        free = clock()  # since when this rank has had nothing to run
        while True:
            peer = self._poll()
            kind = choose(self)
            if kind is None:
                if self._finished():
                    break
                kind = self._wait(clock() if self.interrupted else free)
                if kind is None:
                    break
            elif peer >= 0 and not self.interrupted:
                self.recorder.record("receive", free, clock(), self.updates, peer=peer)
            self.interrupted = False
            if self.delay:
                time.sleep(self.jitter.random() * self.delay)
            perform[kind]()
            free = clock()

    def _wait(self, since: int) -> str | None:
        """Poll until something can run (its kind) or all is done (None). Books the wait, and the poll that ended it."""
        self.patience.reset()
        self.interrupted, peer = False, -1
        while True:
            begin = clock()
            peer = max(self._poll(), peer)
            if self.interrupted:
                self.interrupted = False
                self.recorder.record("wait", since, begin, self.updates)
                since = clock()
                continue
            kind = self.policy.choose(self)
            if kind is not None or self._finished():
                self.recorder.record("wait", since, begin, self.updates, peer=peer)
                self.recorder.record("receive", begin, clock(), self.updates, peer=peer)
                return kind
            if begin - since > self.stall:
                raise RunFailure(
                    f"nothing came from the neighbours (ranks {self.left} and {self.right}) for "
                    f"{(begin - since) / 1e9:.0f} s in step {self.updates} (--stall-timeout)"
                )
            self.patience.pause()

    def _poll(self) -> int:
        """Read the whole inbox, retire and acquire slots; the rank of a neighbour from which something came, or -1."""
        peer = -1
        if self.activations is not None and self.activations.poll():
            peer = self.left
        if self.gradients is not None and self.gradients.poll():
            peer = self.right
        if self.labels is not None:
            self.labels.poll()
        if self.control is not None:
            for message in self.control.poll():
                self._heed(message)
        slots = self.stage.slots
        while self.retired < self.done:
            sends = self.pending[self.retired % slots]
            while sends and sends[-1].Test():
                sends.pop()
            if sends:
                break
            self.retired += 1
        while self.acquired < self.retired + slots:
            if self.activations is not None:
                self.activations.post(self.acquired % slots)
            if self.labels is not None:
                self.labels.post(self.acquired % slots)
            self.acquired += 1
        return peer

    def _finished(self) -> bool:
        """All phases run, all sends complete, all tokens passed on (rank 0: come home)."""
        if self.f.index < self.end or self.retired < self.f.place or self.tokens < self.updates:
            return False
        if self.rank == 0 and self.tests_home < self.end - self.updates:
            return False
        return self.control is None or self.control.idle()

    def close(self) -> None:
        """Give back all requests. Collective."""
        for inbox in (self.activations, self.gradients, self.labels, self.control):
            if inbox is not None:
                inbox.close()
        for outbox in self.outboxes:
            outbox.close()

    # ---- actions ------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        f, phase, record = self.f, self.f.phase, self.recorder.record
        step, number, slot = phase.step, f.number, f.slot
        work = self.stage.work(slot, f.rows)
        begin = clock()
        moment = self._moment(phase, number)
        if self.first:
            self.hooks.read(phase, number, work.x, work.labels)
            read = clock()
            record("data", begin, read, step, number)
            begin = read
            if self.size > 1:
                self._send(self.label_out, (slot, f.rows), slot, work.labels, begin, step, number)
                begin = clock()
        self.stage.forward(work, moment)
        if self.last:
            loss, correct = self.stage.loss(work, self.loss_scale if phase.training else 0.0)
            self.loss_sum += loss
            self.correct += correct
        end = clock()
        if phase.training and self.gradients is not None:
            self.gradients.post(slot)
        if not self.last:  # before all bookkeeping: the neighbour waits for it
            self._send(self.activation_out, (slot, f.rows), slot, work.y, end, step, number)
        record("F" if phase.training else "E", begin, end, step, number)
        if phase.training:
            self.forwards += 1
            self.policy.took("F")
        if f.advance() and self.last:
            self._sum_up(phase)
        if not phase.training:
            self.done = phase.start + number + 1

    def _backward_input(self) -> None:
        i = self.i
        work = self.stage.work(i.slot, i.rows)
        if self.stage.recompute:  # it writes the output again, which has arrived long ago: complete its send
            for request in self.pending[i.slot]:
                request.Wait()
        begin = clock()
        self.stage.backward_input(work, self._moment(i.phase, i.number))
        end = clock()
        if not self.first:
            self._send(self.gradient_out, (i.slot, i.rows), i.slot, work.dx, end, i.phase.step, i.number)
        self.recorder.record("I", begin, end, i.phase.step, i.number)
        self.inputs += 1
        self.policy.took("I")
        i.advance()
        if self.stage.recompute:  # what W needs is gone with the next I
            self._backward_weight()

    def _backward_weight(self) -> None:
        """W of the oldest micro-batches that wait for it, up to `w_group`, in one product; one event for each."""
        w, step, number = self.w, self.w.phase.step, self.w.number
        count = min(self.w_group, self.inputs - self.weights, len(w.phase.sizes) - number)
        works = []
        for _ in range(count):
            works.append(self.stage.work(w.slot, w.rows))
            self.done = w.place + 1
            w.advance()
        begin = clock()
        self.stage.backward_weight(works, first=number == 0)
        end = clock()
        for n in range(count):  # the time of a product is dealt evenly
            self.recorder.record("W", begin + (end - begin) * n // count, begin + (end - begin) * (n + 1) // count,
                                 step, number + n)  # fmt: skip
            self.policy.took("W")
        self.weights += count

    def _moment(self, phase: Phase, number: int) -> Moment:
        return Moment(phase.training, self.seed, phase.step, phase.first_sample(number))

    def _update(self) -> None:
        step = self.updates
        begin = clock()
        self.stage.update(self.hooks.rate(step), step + 1, self.norm or 0.0)
        self.squares = self.norm = None
        self.added = False
        end = clock()
        self.recorder.record("U", begin, end, step)
        self.updates += 1
        self.policy.took("U")
        self.saved[step] = self.hooks.save(self.updates)
        self.recorder.between_steps(step)
        self.stop_signal = self.stop_signal or self.stop_request()
        if self.rank == 0:
            # An evaluation that is due comes first: a resume would pass it over.
            index = self.f.index + (not self.f.phase.training)
            if self.stop_signal and index < self.end:
                self._order_stop(index)
            self._pass_on(step, (TOKEN, step) + (0.0,) * (CONTROL_FIELDS - 2))
        elif step in self.waiting_tokens:
            self._pass_on(step, self.waiting_tokens.pop(step))

    def _send(
        self, outbox: Outbox, key: tuple[int, int], slot: int, buffer: Array, begin: int, step: int, number: int
    ) -> None:
        self.pending[slot].append(outbox.send(key, buffer))
        self.recorder.record("send", begin, clock(), step, number, outbox.dest, buffer.nbytes)

    def _tell_right(self, step: int, message: tuple[float, ...]) -> None:
        assert self.control
        begin = clock()
        self.control.send(message)
        self.recorder.record("send", begin, clock(), step, -1, self.right, self.control.BYTES)

    # ---- tokens, test results and the order to stop -------------------------------------------------------------

    def _sum_up(self, phase: Phase) -> None:
        """The last rank has finished all forwards of a phase: keep the sums for the token, or send a test's home."""
        loss, correct, self.loss_sum, self.correct = self.loss_sum, self.correct, 0.0, 0.0
        if phase.training:
            if not math.isfinite(loss):
                raise RunFailure(f"the loss became {loss} in step {phase.step}; try a smaller --lr")
            self.losses[phase.step] = loss, correct
        elif self.control is None:
            self._heed((TEST, phase.step, loss, correct))
        else:
            self._tell_right(phase.step, (TEST, phase.step, loss, correct))

    def _heed(self, message: tuple[float, ...]) -> None:
        self.interrupted = True
        kind, step = int(message[0]), int(message[1])  # of STOP: the index of the first phase left out
        if kind == TEST:
            self.tests_home += 1
            self.hooks.tested(step, message[2], message[3])
        elif kind == SQUARES:
            self.squares = message[2]
        elif kind == NORM:
            self._take_norm(message[2])
        elif kind == STOP:
            self.stop_signal = int(message[2])
            self._order_stop(step)
        elif self.rank == 0:
            self._home(message)
        elif self.updates > step:
            self._pass_on(step, message)
        else:
            self.waiting_tokens[step] = message

    def _knows_norm(self) -> bool:
        """Every W of the step is done: pass the running sum of squares on once it is here. True with the whole norm.

        One sum goes round from rank 0 to the last, and its root from there to all: each step waits for the ring once.
        """
        if not self.added and (self.first or self.squares is not None):
            self.added = True
            total = self.stage.add_squares(self.squares or 0.0)
            if self.last:
                self._take_norm(math.sqrt(total))
            else:
                self._tell_right(self.updates, (SQUARES, self.updates, total))
        return self.norm is not None

    def _take_norm(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise RunFailure(f"the norm of the gradients became {norm} in step {self.updates}; try a smaller --lr")
        self.norm = norm
        if self.control is not None and self.right != self.size - 1:  # the last rank had it first
            self._tell_right(self.updates, (NORM, self.updates, norm))

    def _pass_on(self, step: int, token: tuple[float, ...]) -> None:
        """Add this rank's share to a token and send it to the right; on one rank it is home at once."""
        _, _, loss, correct, waited, gone, failed, signal, *_ = token
        if self.last:
            loss, correct = self.losses.pop(step)
        wait_here, gone_here = self.recorder.wait_share()
        failed += not self.saved.pop(step)
        token = (TOKEN, step, loss, correct, waited + wait_here, gone + gone_here, failed, signal or self.stop_signal)
        if self.rank > 0:
            self.tokens += 1
        if self.control is None:
            self._home(token)
        else:
            self._tell_right(step, token)

    def _home(self, token: tuple[float, ...]) -> None:
        _, step, loss, correct, waited, gone, failed, signal, *_ = token
        self.tokens += 1
        self.stop_signal = self.stop_signal or int(signal)
        self.hooks.trained(int(step), loss, correct, waited / max(gone, 1.0), not failed)

    def _order_stop(self, index: int) -> None:
        """Leave out the phases from `index` on, here and on the ranks to the right."""
        self.end = index
        if self.control is not None and not self.last:
            self._tell_right(self.updates, (STOP, index, self.stop_signal))

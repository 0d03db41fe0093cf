"""The actions of a rank: F, I, W, U and B on one of its chunks, what they send and what they record.

F   forward of one micro-batch             U   update of the stage
I   gradient at the input                  B   I and W in one go
W   gradients of the weights
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ringtmp.action_kinds import F, I, U, W
from ringtmp.emulate.nodes import Pace
from ringtmp.nn.layer import Array, StepContext
from ringtmp.nn.stage import Work
from ringtmp.ring.chunk import Chunk
from ringtmp.ring.inbox import Inbox
from ringtmp.ring.links import SendRequests
from ringtmp.ring.load_balance import LoadBalance
from ringtmp.run.timetable import Phase
from ringtmp.schedule.local_rule import NONE
from ringtmp.schedule.policies import Policy
from ringtmp.trace.recorder import Recorder, clock


class Hooks(Protocol):
    """What the engine asks of its surroundings."""

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Fill in micro-batch `number` of `phase` (first rank only).

        Parameters
        ----------
        phase : Phase
        number : int
            Of the micro-batch within the phase.
        x : array [rows, features]
        labels : array [rows, labels]
        """

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` updates."""

    def save(self, step: int) -> None:
        """After `step` updates: have this rank's part of a checkpoint written if one is due."""

    def hung(self, rank: int) -> None:
        """A neighbour gives no sign of life: end it, and this rank."""


@dataclass(frozen=True)
class ActionSettings:
    """How actions are run.

    Attributes
    ----------
    loss_scale : float
        The gradient of the loss sum is multiplied by it: 1 / (samples of a batch x scored outputs of each).
    w_group : int
        Most micro-batches that one W takes together.
    seed : int
        Of dropout.
    """

    loss_scale: float
    w_group: int = 1
    seed: int = 0


class Actions:
    """Runs actions on this rank's chunks.

    Parameters
    ----------
    inbox : Inbox
    policy : Policy
        Unless it is `patient`, asked between two pieces of W whether something more urgent can run.
    hooks : Hooks
    recorder : Recorder
    settings : ActionSettings
    paces : dict of int to Pace
        By index of the chunk, on an emulated node; else empty.
    balance : LoadBalance or None
    blocked : callable
        Called while a synchronous send waits for its receive, with the time at which that began.
    """

    def __init__(
        self,
        inbox: Inbox,
        policy: Policy,
        hooks: Hooks,
        recorder: Recorder,
        settings: ActionSettings,
        paces: dict[int, Pace],
        balance: LoadBalance | None,
        blocked: Callable[[int], None],
    ) -> None:
        self.inbox, self.policy, self.hooks, self.recorder, self.settings = inbox, policy, hooks, recorder, settings
        self.chunks, self.tokens, self.replicas, self.sums = inbox.chunks, inbox.tokens, inbox.replicas, inbox.sums
        self.paces, self.balance, self.blocked = paces, balance, blocked
        self.loss_sum = self.correct = 0.0
        self.step_began = clock()
        self.by_kind = [self.forward, self.backward_input, self.weights, self.update, self.backward]

    # ---- F ------------------------------------------------------------------------------------------------------

    def forward(self, chunk: Chunk) -> None:
        """F of the next micro-batch, in training or in an evaluation."""
        f, phase = chunk.f, chunk.f.phase
        number, place = f.number, chunk.place
        slot = chunk.slot(place)
        work = chunk.stage.work(slot, f.rows)
        begin = self._input(chunk, slot, work)

        # Compute; on the last stage the loss, and its gradient.
        chunk.stage.forward(work, self._context(phase, number), chunk.versions.take(place, phase))
        if chunk.last:
            loss, correct = chunk.stage.loss(work, self.settings.loss_scale if phase.training else 0.0)
            self.loss_sum += loss
            self.correct += correct
        if self.paces:
            self._pace(chunk, begin, F, f.rows, chunk.forwards if phase.training else -1 - place)
        end = clock()

        # Send the output before all bookkeeping: the neighbour waits for it.
        if phase.training and chunk.gradients is not None:
            chunk.gradients.post(slot)
        if chunk.activations_out is not None:
            self._send(chunk.activations_out, chunk, slot, work.y, end, phase.step, number)

        # Record it, and report the sums with the last micro-batch of a phase.
        version = chunk.versions.of(place, phase)
        self.record("F" if phase.training else "E", begin, end, chunk, number, step=phase.step, version=version)
        if chunk.forward_ended() and chunk.last:
            loss, correct, self.loss_sum, self.correct = self.loss_sum, self.correct, 0.0, 0.0
            self.tokens.summed(phase, loss, correct)

    def _input(self, chunk: Chunk, slot: int, work: Work) -> int:
        """Read the micro-batch and send its labels (first stage), or take them (last stage); the time F begins at."""
        begin = clock()
        if chunk.first:
            phase, number = chunk.f.phase, chunk.f.number
            self.hooks.read(phase, number, work.x, work.labels)
            read = clock()
            self.record("data", begin, read, chunk, number, step=phase.step)
            begin = read
            if chunk.labels_out is not None:
                self._send(chunk.labels_out, chunk, slot, work.labels, begin, phase.step, number)
                begin = clock()
        elif chunk.labels is not None:
            chunk.labels.take(work.labels)
        return begin

    # ---- I and B ------------------------------------------------------------------------------------------------

    def backward_input(self, chunk: Chunk) -> None:
        """I of the oldest micro-batch without one."""
        self._send_gradient(chunk, *self._gradient(chunk))
        if chunk.stage.recompute:  # what W needs is gone with the next I
            self._whole_weights(chunk)

    def backward(self, chunk: Chunk) -> None:
        """B: the gradient leaves after W, as in frameworks that compute both in one call."""
        made = self._gradient(chunk)
        self._whole_weights(chunk)
        self._send_gradient(chunk, *made)

    def _gradient(self, chunk: Chunk) -> tuple[Work, int, int, int]:
        """I; the micro-batch's buffers, slot, step and number."""
        i = chunk.i
        step, number = i.phase.step, i.number
        version = chunk.versions.of(i.place, i.phase)
        begin = clock()
        work, slot = chunk.backward_input(self._context(i.phase, number))
        if self.paces:
            self._pace(chunk, begin, I, len(work.dy), chunk.inputs - 1)
        self.record("I", begin, clock(), chunk, number, step=step, version=version)
        return work, slot, step, number

    def _send_gradient(self, chunk: Chunk, work: Work, slot: int, step: int, number: int) -> None:
        if chunk.gradients_out is not None:
            self._send(chunk.gradients_out, chunk, slot, work.dx, clock(), step, number)

    # ---- W ------------------------------------------------------------------------------------------------------

    def weights(self, chunk: Chunk) -> None:
        """W of a group, piece by piece, until it is done; the policy may interrupt it unless it is `patient`."""
        owner = next((other for other in self.chunks if other.group), chunk)  # what was begun is ended first
        if owner.group is None:
            owner.begin_weights(self.settings.w_group)
        self._pieces(owner, not self.policy.patient)

    def _whole_weights(self, chunk: Chunk) -> None:
        chunk.begin_weights(1)
        self._pieces(chunk, False)

    def _pieces(self, chunk: Chunk, interruptible: bool) -> None:
        """Some pieces of W in one go, and an event for each micro-batch of the group: the time in equal shares."""
        assert chunk.group
        works, step, number, count, _ = chunk.group
        begin = clock()
        first, at = chunk.weights, begin
        while not chunk.weights_piece():
            at = self._pace_piece(chunk, at, works, first)
            if interruptible:
                self.inbox.poll()
                what = self.policy.choose(self.chunks)
                if what != NONE and what % 8 != W:
                    break
        else:
            self._pace_piece(chunk, at, works, first)
        end = clock()
        for n in range(count):
            since, until = begin + (end - begin) * n // count, begin + (end - begin) * (n + 1) // count
            self.record("W", since, until, chunk, number + n, step=step)

    # ---- U ------------------------------------------------------------------------------------------------------

    def update(self, chunk: Chunk) -> None:
        """U of the stage, and what follows from it: copies, checkpoints, tokens."""
        step, begin = chunk.updates, clock()
        gate = self.inbox.norm
        norm = gate.norm if gate is not None else None  # of all gradients, with `clip_norm`
        chunk.update(self.hooks.rate(step), norm or 0.0)
        if self.paces:
            pace = self.paces[chunk.index]
            pace.until(begin, pace.update * pace.factor(U, step - chunk.start))
            pace.stepped(step + 1)
        end = clock()
        self.record("U", begin, end, chunk, step=step, version=step + 1)
        if self.replicas is not None:
            self.replicas.updated(chunk.index, step + 1)
        if self.sums is not None:
            self.sums.updated(chunk.index)
        if self.tokens.updates == chunk.updates:  # the last of this rank's stages
            self.policy.stepped(end - self.step_began)
            self.step_began = end
            if self.balance is not None:
                self.balance.stepped()
            self.hooks.save(chunk.updates)
            self.recorder.between_steps(step)
            self.tokens.updated(step)

    # ---- what actions share -------------------------------------------------------------------------------------

    def _context(self, phase: Phase, number: int) -> StepContext:
        return StepContext(phase.training, self.settings.seed, phase.step, phase.first_sample(number))

    def _pace(self, chunk: Chunk, begin: int, kind: int, rows: int, number: int) -> None:
        """On an emulated node: let an action last as long as it would there."""
        pace = self.paces[chunk.index]
        pace.until(begin, pace.row * rows * pace.factor(kind, number))

    def _pace_piece(self, chunk: Chunk, begin: int, works: list[Work], first: int) -> int:
        """The same for a piece of W; when it ended."""
        if not self.paces:
            return begin
        pace = self.paces[chunk.index]
        pieces = chunk.stage.pieces
        whole = sum(len(work.dy) * pace.factor(W, first + n) for n, work in enumerate(works))
        layers = pieces[chunk.piece - 1] if pieces else range(len(pace.layers))
        pace.until(begin, whole * pace.row * sum(pace.layers[n] for n in layers) / pace.weights)
        return clock()

    def record(
        self,
        kind: str,
        start: int,
        end: int,
        chunk: Chunk,
        number: int = -1,
        *,
        step: int,
        peer: int = -1,
        version: int = -1,
    ) -> None:
        """Note an event of a chunk in the trace (`Recorder.record`)."""
        self.recorder.record(kind, start, end, step, number, peer, 0, chunk.number, version)

    def _send(
        self, sends: SendRequests, chunk: Chunk, slot: int, buffer: Array, begin: int, step: int, number: int
    ) -> None:
        """Start a send of `chunk`, whose slot stays taken until it is complete.

        A synchronous send is waited for here if nothing else could run meanwhile: on a rank with one chunk, and where a
        plan gives the order, which has been proved to end although sends block. The local rule and evaluations let
        another chunk go on, and could otherwise wait for ever.
        """
        wait = len(self.chunks) == 1 or (self.policy.patient and not chunk.evaluating())
        chunk.pending[slot].append(sends.send((slot, len(buffer)), buffer, self.blocked if wait else None))
        self.recorder.record("send", begin, clock(), step, number, sends.dest, buffer.nbytes, chunk.number)

"""A worker: the whole network on its part of each batch, layer by layer, so that the exchange hides behind it."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ringtmp.action_kinds import F, I, W
from ringtmp.comm import mpi
from ringtmp.comm.messages import Mailbox
from ringtmp.comm.waiting import Backoff, WaitLoop
from ringtmp.data.sampler import Sampler
from ringtmp.emulate.nodes import Pace
from ringtmp.nn.layer import StepContext, pieces
from ringtmp.nn.stage import Stage, Work
from ringtmp.ps.batch_split import BatchSplit
from ringtmp.ps.exchange import Exchange, ServerExchange
from ringtmp.ps.membership import Standing, WorkerDroppedError
from ringtmp.ps.messages import Alive, Skip, StepDone, Stop, TestDone
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from ringtmp.config.schema import RunConfig

POLL_INTERVAL = 100_000  # nanoseconds between two polls while computing; a poll takes a tenth of it
ALIVE_INTERVAL = 1_000_000_000  # nanoseconds, at most, after which a silent worker sends `Alive`


class StepHook(Protocol):
    """What a worker's checkpoints ask for where there are no servers (`WorkerCheckpoints` implements it)."""

    def passed(self, step: int) -> bool:
        """This worker has made `step` steps; whether the layers are to be saved now."""

    def save(self, step: int) -> None:
        """Save the layers, which hold the weights after `step` steps."""


class Worker:
    """Trains from step `start` to the last one, or to where a stop is ordered.

    Parameters
    ----------
    rank : int
        Of this worker.
    stage : Stage
        All layers; one slot.
    config : RunConfig
    exchange : Exchange
    batch_split : BatchSplit
    mailbox : Mailbox
    recorder : Recorder
    sampler : Sampler
    paces : sequence of Pace
        One for each layer on an emulated node, else empty.
    poll_others : callable
        Polls what this rank does beside working; returns whether anything has happened.
    start, total : int
        Steps made before this launch, and steps of the run.
    eval_every : int
        Steps between two evaluations.
    crowded : bool
        Whether ranks outnumber the cores of this host.
    servers : sequence of int
        Ranks that must hear now and then that this worker is alive.
    local_step : callable or None
        With local steps: updates a layer by this worker's own gradient; takes the layer's index and the step.
    can_rejoin : bool
        Whether this worker can be taken back after the others have dropped it; `exchange` is then a `ServerExchange`.
    checkpoints : StepHook or None
        Asked after each step, where there are no servers.
    probe : FaultProbe or None
    """

    def __init__(
        self,
        rank: int,
        stage: Stage,
        config: "RunConfig",
        exchange: Exchange,
        batch_split: BatchSplit,
        mailbox: Mailbox,
        recorder: Recorder,
        sampler: Sampler,
        paces: Sequence[Pace],
        poll_others: Callable[[], bool],
        *,
        start: int,
        total: int,
        eval_every: int,
        crowded: bool,
        servers: Sequence[int],
        local_step: Callable[[int, int], None] | None = None,
        can_rejoin: bool = False,
        checkpoints: StepHook | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self.rank, self.stage, self.config, self.exchange, self.batch_split = rank, stage, config, exchange, batch_split
        self.mailbox, self.recorder, self.sampler, self.paces = mailbox, recorder, sampler, paces
        self.poll_others, self.local_step, self.can_rejoin = poll_others, local_step, can_rejoin
        self.start, self.total, self.eval_every, self.servers = start, total, eval_every, servers
        self.checkpoints, self.probe = checkpoints, probe
        self.layers = range(len(stage.states))
        self.standing = Standing(rank, mailbox)
        self._has_parameters = [bool(state.flat.size) for state in stage.states]
        self._fresh = [True] * len(stage.states)  # whether each layer uses its newest weights
        self._end, self._step, self._skip_to = total, start, start
        self._missing = -1  # key range that this worker waits for
        wait = partial(WaitLoop, Backoff(crowded), self.poll, booked=lambda: recorder.recorded)
        self._weights_wait = wait(
            self._book_wait, self._stalled, limit=config.stall_timeout, idle=lambda now: self.standing.check()
        )
        self._rejoin_wait = wait(lambda begin, end: recorder.record("wait", begin, end, -1))
        self._random = random.Random(rank)
        self._alive_interval = min(ALIVE_INTERVAL, int(config.worker_timeout * 1e9 / 4))
        self._polled = self._spoke = clock()
        mailbox.on(Stop, self._on_stop)
        mailbox.on(Skip, self._on_skip)

    def _on_stop(self, sender: int, message: Stop) -> None:
        self._end = min(self._end, message.step)

    def _on_skip(self, sender: int, message: Skip) -> None:
        self._skip_to = max(self._skip_to, message.step)

    # ---- the course of training ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Train, evaluate where it is due, and wait for the last weights.

        A worker that the others have dropped asks to be taken back and goes on. Raises `WorkerDroppedError` if they do
        not take it back.
        """
        while True:
            try:
                self._train_all()
                return
            except WorkerDroppedError:
                if not self.can_rejoin:
                    raise
                assert isinstance(self.exchange, ServerExchange)
                self._step = self._rejoin(self.exchange)
                self._fresh = [not some for some in self._has_parameters]

    def _train_all(self) -> None:
        while self._step < self._end:
            self._train(self._step)
            self._step += 1
            if self._step % self.eval_every == 0 and self._step < self._end:
                self._evaluate(self._step)
            if self.checkpoints and self.checkpoints.passed(self._step):
                self.take_all()
                self.checkpoints.save(self._step)
            self.recorder.between_steps(self._step - 1)
            self.poll()
            self._step = min(max(self._step, self._skip_to), self._end)
        self.take_all()
        if self._end % self.eval_every == 0 or self._end == self.total:
            self._evaluate(self._end)

    def _rejoin(self, exchange: ServerExchange) -> int:
        """Ask to be taken back, and request all weights; returns the step from which this worker has samples again.

        Before the request the answers to all earlier pushes must have arrived; servers send those that are missing.
        """
        mpi.warn("has been dropped by the others while it stood still, and asks to be taken back")
        self.standing.request(exchange.pushes_made)

        def taken_back() -> bool:
            return self.standing.accepted() and all(exchange.missing(layer) < 0 for layer in self.layers)

        self._rejoin_wait.until(taken_back, clock())
        exchange.request_weights(self.standing.rejoined - 1)
        return self.standing.rejoined

    def _train(self, step: int) -> None:
        """One step on this worker's samples; on the last one of a period the exchange begins."""
        # Begin the step.
        self.standing.check()
        first, count = self.batch_split.part(self.rank, step, self.config.batch_size)
        for pace in self.paces:
            pace.stepped(step)
        push = (step + 1) % self.config.local_steps == 0 or step + 1 == self._end
        if push:
            self.exchange.begin(step, count)

        # Take its micro-batches through the network.
        counted = count if self.local_step else self.config.batch_size
        scale = 1.0 / (counted * self.stage.model.scored)
        number, loss_sum, correct_sum = max(self.config.worker_micro_batches, -(-count // self.stage.rows)), 0.0, 0.0
        number = min(number, count)
        for piece, rows in enumerate(pieces(count, number)):
            work = self.stage.work(0, rows)
            begin = clock()
            self.sampler.train(step, first, work.x, work.labels)
            self.recorder.record("data", begin, clock(), step, piece)
            context = StepContext(True, self.config.seed, step, first)
            self._forward(work, context, piece, (step - self.start) * number + piece, "F")
            loss, correct = self.stage.loss(work, scale)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + correct
            self._backward(work, context, piece, (step - self.start) * number + piece, piece == number - 1, push)
            first += rows

        # Report.
        waited, elapsed = self.recorder.lap()
        self.mailbox.send(0, StepDone(step, loss_sum, correct_sum, count, waited, elapsed), step)
        self._spoke = clock()

    def _forward(self, work: Work, context: StepContext, piece: int, number: int, kind: str) -> None:
        for layer in self.layers:
            self._take(layer)
            self._delay()
            self._probe(kind, context.step)
            begin = clock()
            self.stage.forward(work, context, only=slice(layer, layer + 1))
            if self.paces and kind == "F":
                self._pace(layer, begin, F, len(work.x), number)
            self.recorder.record(kind, begin, clock(), context.step, piece, stage=layer)
            self._poll_if_due()

    def _backward(self, work: Work, context: StepContext, piece: int, number: int, last: bool, push: bool) -> None:
        """I and W of each layer, last layer first; after the `last` micro-batch its gradient is complete."""
        for layer in reversed(self.layers):
            self._delay()
            self._probe("I", context.step)
            begin = clock()
            self.stage.backward_input(work, context, only=slice(layer, layer + 1))
            if self.paces:
                self._pace(layer, begin, I, len(work.x), number)
            between = clock()
            self.recorder.record("I", begin, between, context.step, piece, stage=layer)
            if self._has_parameters[layer]:
                self._probe("W", context.step)
                self.exchange.reuse(layer)
                self.stage.backward_weight([work], piece == 0, (layer,))
            if self.paces:
                self._pace(layer, between, W, len(work.x), number)
            self.recorder.record("W", between, clock(), context.step, piece, stage=layer)
            if last and self._has_parameters[layer]:
                self._complete(layer, context.step, push)
            self._poll_if_due()

    def _complete(self, layer: int, step: int, push: bool) -> None:
        """A layer's gradient is complete: make a local step with it, and exchange it if that is due."""
        if self.local_step:
            self.local_step(layer, step)
        if push:
            self._fresh[layer] = False
            self.exchange.ready(layer)

    def _evaluate(self, step: int) -> None:
        """Evaluate the newest weights on this worker's part of the test samples."""
        self.take_all()
        self.standing.check()
        first, count = self.batch_split.part(self.rank, step, self.sampler.data.info.n_test)
        full, rest = divmod(count, self.stage.rows)
        loss_sum = correct_sum = 0.0
        for piece, rows in enumerate([self.stage.rows] * full + [rest] * bool(rest)):
            work = self.stage.work(0, rows)
            self.sampler.test(first, work.x, work.labels)
            self._forward(work, StepContext(step=step), piece, 0, "E")
            loss, correct = self.stage.loss(work, 0.0)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + correct
            first += rows
        self.mailbox.send(0, TestDone(step, loss_sum, correct_sum, count), step)

    # ---- waiting and polling ------------------------------------------------------------------------------------

    def _take(self, layer: int) -> None:
        """Wait for a layer's new weights, and refresh what is derived from them."""
        if self._fresh[layer]:
            return
        self._wait_for_weights(layer)
        begin = clock()
        state = self.stage.states[layer]
        state.layer.refresh_cache(state.parameters)
        self._fresh[layer] = True
        # U of a worker is this refresh alone: servers and the all-reduce record their updates themselves.
        self.recorder.record("U", begin, clock(), self._step - 1, stage=layer)

    def take_all(self) -> None:
        """Wait for the new weights of all layers."""
        for layer in self.layers:
            self._take(layer)

    def _wait_for_weights(self, layer: int) -> None:
        """Poll until a layer's weights have arrived; each wait is noted with the key range that was missing.

        Raises `RunFailure` after `--stall-timeout` seconds without any progress.
        """

        def arrived() -> bool:
            self._missing = self.exchange.missing(layer)
            return self._missing < 0

        if not arrived():
            self._weights_wait.until(arrived, clock())

    def _stalled(self, nanoseconds: int) -> str:
        return (
            f"the weights of key range {self._missing} did not come for {self.config.stall_timeout:g} s after step "
            f"{self._step - 1} (--stall-timeout): its server is lost or hangs; the last checkpoint is kept"
        )

    def _book_wait(self, begin: int, end: int) -> None:
        if end > begin:  # the `stage` of such a wait is a key range, not a layer
            self.recorder.record("wait", begin, end, self._step - 1, stage=self._missing)

    def poll(self) -> bool:
        """Poll messages, the exchange, and what else this rank does; True if anything has happened."""
        self._polled = clock()
        moved = self.mailbox.poll()
        moved |= self.exchange.poll()
        moved |= self.poll_others()
        if self._polled - self._spoke > self._alive_interval:
            self._spoke = self._polled
            self.mailbox.send_all(self.servers, Alive())
        return moved

    def _poll_if_due(self) -> None:
        if clock() - self._polled > POLL_INTERVAL:
            self.poll()

    def _poll_aside(self) -> None:
        """Poll as an emulated node's network card would: it takes no time of the node's own."""
        self.recorder.beside = True
        try:
            self.poll()
        finally:
            self.recorder.beside = False

    def _probe(self, phase: str, step: int) -> None:
        if self.probe:
            self.probe.at(phase, step)

    def _pace(self, layer: int, begin: int, kind: int, rows: int, number: int) -> None:
        """On an emulated node, wait until an action has taken as long as it does there."""
        pace = self.paces[layer]
        pace.until(begin, pace.row * rows * pace.factor(kind, number), self._poll_aside)

    def _delay(self) -> None:
        if self.config.delay:
            time.sleep(self._random.random() * self.config.delay)

"""A worker: the whole network on a share of each batch, layer by layer, so that the exchange hides behind it."""

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ps import messages as post
from ps.batch_split import Shares
from ps.exchange import Exchange
from ps.messages import Message, Post
from ringtmp.comm.waiting import Backoff
from ringtmp.data.sampler import Sampler
from ringtmp.emulate.nodes import Pace
from ringtmp.errors import RunFailure
from ringtmp.nn.layer import StepContext, pieces
from ringtmp.nn.stage import Stage, Work
from ringtmp.schedule.local_rule import F, I, W
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from ringtmp.config.schema import RunConfig

LOOK = 100_000  # nanoseconds between two looks at the messages while computing; a look takes a tenth of it
BEAT = 1_000_000_000  # nanoseconds after which a silent worker says that it is there, at most


class Dropped(Exception):  # noqa: N818 - an order, not an error
    """The others go on without this worker."""


class Worker:
    """Trains from step `start` to the last one, or to where a stop is ordered.

    Parameters
    ----------
    rank : int
    stage : Stage
        All layers; one slot.
    config : RunConfig
    exchange : Exchange
    shares : Shares
    letters : Post
    recorder : Recorder
    feeder : Sampler
    paces : sequence of Pace
        One for each layer on an emulated node, else empty.
    serve : callable
        Polls what else this rank does.
    start, total, every : int
        Steps made before, steps of the run, and between evaluations.
    crowded : bool
        Whether ranks outnumber the cores of this node.
    beats : sequence of int
        Whom to tell that this worker is there.
    local : callable or None
        With local steps: updates a layer by its own gradient, given the layer and the step.
    passed : callable
        Called after each step with the number of steps made.
    come_back : callable
        Called when the others have gone on without this worker; gives the step from which on it belongs to them again,
        once all weights have been asked for. Raises `Dropped` if it cannot be taken back.
    probe : FaultProbe or None
    """

    def __init__(
        self,
        rank: int,
        stage: Stage,
        config: "RunConfig",
        exchange: Exchange,
        shares: Shares,
        letters: Post,
        recorder: Recorder,
        feeder: Sampler,
        paces: Sequence[Pace],
        serve: Callable[[], bool],
        *,
        start: int,
        total: int,
        every: int,
        crowded: bool,
        beats: Sequence[int],
        local: Callable[[int, int], None] | None = None,
        passed: Callable[[int], None] = lambda step: None,
        come_back: Callable[[], int] | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self.rank, self.stage, self.config, self.exchange, self.shares = rank, stage, config, exchange, shares
        self.post, self.recorder, self.feeder, self.paces, self.serve = letters, recorder, feeder, paces, serve
        self.start, self.total, self.every, self.local, self.passed = start, total, every, local, passed
        self.come_back, self.probe = come_back, probe
        self.layers = range(len(stage.states))
        self.held = [bool(state.flat.size) for state in stage.states]
        self.patience = Backoff(crowded)
        self.random = random.Random(rank)
        self.end, self.step, self.skip = total, start, start
        self.fresh = [True] * len(stage.states)  # the layer has taken up its newest weights
        self.dropped = False
        self.beats = beats
        self.beat = min(BEAT, int(config.worker_timeout * 1e9 / 4))
        self.looked = self.said = clock()
        letters.on(post.STOP, self._stop)
        letters.on(post.SKIP, self._skip)

    def _stop(self, sender: int, message: Message) -> None:
        self.end = min(self.end, int(message[1]))

    def _skip(self, sender: int, message: Message) -> None:
        self.skip = max(self.skip, int(message[1]))

    # ---- the course of training ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Train, evaluate where it is due, and wait for the last weights; again from where others take it back."""
        while True:
            try:
                self._go()
                return
            except Dropped:
                if not self.come_back:
                    raise
                self.step = self.come_back()
                self.fresh = [not held for held in self.held]

    def _go(self) -> None:
        period = self.config.local_steps
        while self.step < self.end:
            self._train(self.step, period)
            self.step += 1
            if self.step % self.every == 0 and self.step < self.end:
                self._evaluate(self.step)
            self.passed(self.step)
            self.recorder.between_steps(self.step - 1)
            self.poll()
            self.step = min(max(self.step, self.skip), self.end)
        self.take_all()
        if self.end % self.every == 0 or self.end == self.total:
            self._evaluate(self.end)

    def _train(self, step: int, period: int) -> None:
        """One step on this worker's share; on the last one of `period` the exchange begins."""
        self._stay()
        first, count = self.shares.of(self.rank, step, self.config.batch_size)
        for pace in self.paces:
            pace.stepped(step)
        push = (step + 1) % period == 0 or step + 1 == self.end
        if push:
            self.exchange.begin(step, count)
        counted = count if self.local else self.config.batch_size
        scale = 1.0 / (counted * self.stage.model.scored)
        number, loss_sum, correct_sum = max(self.config.worker_micro_batches, -(-count // self.stage.rows)), 0.0, 0.0
        number = min(number, count)
        for piece, rows in enumerate(pieces(count, number)):
            work = self.stage.work(0, rows)
            begin = clock()
            self.feeder.train(step, first, work.x, work.labels)
            self.recorder.record("data", begin, clock(), step, piece)
            moment = StepContext(True, self.config.seed, step, first)
            self._forward(work, moment, piece, (step - self.start) * number + piece, "F")
            loss, correct = self.stage.loss(work, scale)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + correct
            self._backward(work, moment, piece, (step - self.start) * number + piece, piece == number - 1, push)
            first += rows
        waited, gone = self.recorder.wait_share()
        self.post.send(0, post.DONE, step, loss_sum, correct_sum, count, waited, gone)
        self.said = clock()

    def _forward(self, work: Work, moment: StepContext, piece: int, number: int, kind: str) -> None:
        for layer in self.layers:
            self._take(layer)
            self._delay()
            self._tell(kind, moment.step)
            begin = clock()
            self.stage.forward(work, moment, only=slice(layer, layer + 1))
            if self.paces and kind == "F":
                self._pace(layer, begin, F, len(work.x), number)
            self.recorder.record(kind, begin, clock(), moment.step, piece, stage=layer)
            self._look()

    def _backward(self, work: Work, moment: StepContext, piece: int, number: int, last: bool, push: bool) -> None:
        """I and W of each layer, last to first; after the `last` piece its gradient is complete."""
        for layer in reversed(self.layers):
            self._delay()
            self._tell("I", moment.step)
            begin = clock()
            self.stage.backward_input(work, moment, only=slice(layer, layer + 1))
            if self.paces:
                self._pace(layer, begin, I, len(work.x), number)
            between = clock()
            self.recorder.record("I", begin, between, moment.step, piece, stage=layer)
            if self.held[layer]:
                self._tell("W", moment.step)
                self.exchange.reuse(layer)
                self.stage.backward_weight([work], piece == 0, (layer,))
            if self.paces:
                self._pace(layer, between, W, len(work.x), number)
            self.recorder.record("W", between, clock(), moment.step, piece, stage=layer)
            if last and self.held[layer]:
                self._complete(layer, moment.step, push)
            self._look()

    def _complete(self, layer: int, step: int, push: bool) -> None:
        """A layer's gradient is complete: make a step of this worker's own with it, and exchange it if that is due."""
        if self.local:
            self.local(layer, step)
        if push:
            self.fresh[layer] = False
            self.exchange.ready(layer)

    def _evaluate(self, step: int) -> None:
        """This worker's part of the test samples, with the weights that it has."""
        self.take_all()
        self._stay()
        first, count = self.shares.of(self.rank, step, self.feeder.info.n_test)
        full, rest = divmod(count, self.stage.rows)
        loss_sum = correct_sum = 0.0
        for piece, rows in enumerate([self.stage.rows] * full + [rest] * bool(rest)):
            work = self.stage.work(0, rows)
            self.feeder.test(first, work.x, work.labels)
            self._forward(work, StepContext(step=step), piece, 0, "E")
            loss, correct = self.stage.loss(work, 0.0)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + correct
            first += rows
        self.post.send(0, post.TEST, step, loss_sum, correct_sum, count)

    # ---- waiting and looking ------------------------------------------------------------------------------------

    def _take(self, layer: int) -> None:
        """Wait for a layer's new weights, and make what follows from them."""
        if self.fresh[layer]:
            return
        self._await(lambda: self.exchange.missing(layer))
        begin = clock()
        state = self.stage.states[layer]
        state.layer.refresh_cache(state.parameters)
        self.fresh[layer] = True
        self.recorder.record("U", begin, clock(), self.step - 1, stage=layer)

    def take_all(self) -> None:
        """Wait for all new weights."""
        for layer in self.layers:
            self._take(layer)

    def _await(self, missing: Callable[[], int]) -> None:
        """Poll until nothing is missing, and book the wait by what was."""
        number = missing()
        if number < 0:
            return
        self.patience.reset()
        since = began = clock()
        while number >= 0:
            begin, recorded = clock(), self.recorder.recorded
            moved = self.poll()
            if moved or self.recorder.recorded != recorded:  # a beat, say
                self.recorder.record("wait", since, begin, self.step - 1, stage=number)
                since = clock()
            if moved:
                began = since
                self.patience.reset()
                number = missing()
                continue
            self._stay()
            if begin - began > self.config.stall_timeout * 1e9:
                raise RunFailure(
                    f"the weights of key range {number} did not come for {self.config.stall_timeout:g} s after step "
                    f"{self.step - 1} (--stall-timeout): its server is lost or hangs; the last checkpoint is kept"
                )
            self.patience.pause()

    def poll(self) -> bool:
        """Let messages move, here and at what else this rank does; whether anything has happened."""
        self.looked = clock()
        moved = self.post.poll()
        moved |= self.exchange.poll()
        moved |= self.serve()
        if self.looked - self.said > self.beat:
            self.said = self.looked
            self.post.tell(self.beats, post.ALIVE)
        return moved

    def _stay(self) -> None:
        if self.dropped:
            raise Dropped

    def _tell(self, phase: str, step: int) -> None:
        if self.probe:
            self.probe.at(phase, step)

    def _look(self) -> None:
        if clock() - self.looked > LOOK:
            self.poll()

    def _beside(self) -> None:
        """What an emulated node's network card does while the node computes: it takes no time of the node's own."""
        self.recorder.beside = True
        try:
            self.poll()
        finally:
            self.recorder.beside = False

    def _pace(self, layer: int, begin: int, kind: int, rows: int, number: int) -> None:
        pace = self.paces[layer]
        pace.until(begin, pace.row * rows * pace.factor(kind, number), self._beside)

    def _delay(self) -> None:
        if self.config.delay:
            time.sleep(self.random.random() * self.config.delay)

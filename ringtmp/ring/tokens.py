"""Messages about a run as a whole, over the ring's own links: losses and waits, test results, the norm, orders.

What rank 0 needs to know of the others comes to it as a *token*: rank 0 sends one to the right after each of its
updates, each rank passes it on once its own update of that step is done, adding its own numbers, and the last rank
adds the loss and sends it home. Orders to stop, to write a checkpoint, or to rebalance go the same way; the sum of
squares for `clip_norm` goes from stage to stage, and its root once round to all.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.errors import RunFailure
from ringtmp.ring.chunk import Chunk
from ringtmp.ring.data_parallel import RingLeaders
from ringtmp.ring.gates import NormKnown
from ringtmp.ring.links import RingLinks
from ringtmp.ring.load_balance import LoadBalance, RebalanceOrder
from ringtmp.ring.messages import (
    Norm,
    Rebalance,
    RingStep,
    RingTest,
    SquaredNorm,
    Stop,
    TestResult,
    Token,
    WriteCheckpoint,
)
from ringtmp.run.listener import RunListener
from ringtmp.run.timetable import Phase, Timetable
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Tokens:
    """This rank's part in these messages.

    Parameters
    ----------
    links : RingLinks
    chunks : sequence of Chunk
        Of this rank.
    table : Timetable
    recorder : Recorder
    listener : RunListener or None
        On rank 0.
    checkpoints : CheckpointManager
        Told of orders to write one, and on rank 0 of parts that all ranks have finished.
    stop_request : callable
        Gives the number of the signal that asks for a stop, or 0.
    norm : NormKnown or None
        Gate that the norm of all gradients opens; None without `clip_norm`.
    balance : LoadBalance or None
        Says how busy this rank is, and on rank 0 when to rebalance.
    across : Intracomm or None
        The ranks of the same number in all rings, where there are several.
    """

    def __init__(
        self,
        links: RingLinks,
        chunks: Sequence[Chunk],
        table: Timetable,
        recorder: Recorder,
        listener: RunListener | None,
        checkpoints: CheckpointManager,
        stop_request: Callable[[], int],
        norm: NormKnown | None = None,
        balance: LoadBalance | None = None,
        across: "Intracomm | None" = None,
    ) -> None:
        self.rank, self.size, self.right, self.mail = links.rank, links.size, links.right, links.to_right
        self.chunks, self.table, self.recorder, self.listener = chunks, table, recorder, listener
        self.checkpoints, self.stop_request, self.norm, self.balance = checkpoints, stop_request, norm, balance
        self.first, self.last = self.rank == 0, self.rank == self.size - 1
        self.rings = across.size if across else 1
        self.leads = not across or across.rank == 0  # whether the first rank of this ring gives the orders
        self.leaders: RingLeaders | None = None
        if across and self.first:
            self.leaders = RingLeaders(across, recorder, self._complete, self._on_stop)
        self.stop_signal = 0
        self.rebalance: RebalanceOrder | None = None  # what this engine ends for, if not for good
        self.wanted: RebalanceOrder | None = None  # the same, to be ordered (rank 0)
        start = chunks[0].start
        self.tokens = start  # passed on (rank 0: come home)
        self.waiting: dict[int, Token] = {}
        self.losses: dict[int, tuple[float, float]] = {}
        self.tests_home = table.index_of(start) - start  # evaluations whose result rank 0 has
        self.squares: dict[int, float] = {}  # by stage: sum over the gradients of all stages before it
        self.added: set[int] = set()  # stages of this rank whose squares have been passed on
        self.interrupted = False  # a message has just been handled: that was neither wait nor transfer
        for kind, handler in (
            (Token, self._on_token),
            (TestResult, self._on_test_result),
            (Stop, self._on_stop),
            (WriteCheckpoint, self._on_write_checkpoint),
            (Rebalance, self._on_rebalance),
            (SquaredNorm, self._on_squared_norm),
            (Norm, self._on_norm),
        ):
            self._register(kind, handler)

    def _register(self, kind: type, handler: Callable[[Any], None]) -> None:
        def handle(sender: int, message: Any) -> None:
            self.interrupted = True
            handler(message)

        self.mail.on(kind, handle)

    # ---- called by the engine -----------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Updates that all chunks of this rank have made."""
        return min(chunk.updates for chunk in self.chunks)

    @property
    def end(self) -> int:
        """Index of the first phase that is not run."""
        return self.chunks[0].end

    def finished(self) -> bool:
        """Whether all tokens have been passed on (rank 0: have come home), and all messages have left."""
        if self.tokens < self.updates:
            return False
        if self.first and self.tests_home < self.end - self.updates:
            return False
        return self.mail.idle() and (self.leaders is None or self.leaders.finished())

    def poll(self) -> bool:
        """Handle what has arrived; whether anything has come from the left neighbour."""
        arrived = self.mail.poll()
        if self.leaders is not None:
            self.leaders.poll()
        return arrived

    def close(self) -> None:
        """Free the requests between rings, once nothing more can arrive."""
        if self.leaders is not None:
            self.leaders.close()

    def updated(self, step: int) -> None:
        """This rank has made its update of `step` on every chunk."""
        if self.norm is not None:
            self.norm.norm = None
        self.stop_signal = self.stop_signal or self.stop_request()
        if self.first:
            self._give_orders()
            self._pass_on(
                Token(
                    step=step,
                    loss=0.0,
                    correct=0.0,
                    waited=0.0,
                    elapsed=0.0,
                    written=-1,
                    signal=0,
                    write_cost=0.0,
                    busy=0.0,
                    busiest=0.0,
                )
            )
        elif step in self.waiting:
            self._pass_on(self.waiting.pop(step))

    def summed(self, phase: Phase, loss: float, correct: float) -> None:
        """The last stage has made all forwards of a phase: keep the sums for the token, or send a test's home."""
        if not phase.training:
            self._send_right(TestResult(phase.step, loss, correct), phase.step)
        elif math.isfinite(loss):
            self.losses[phase.step] = loss, correct
        else:
            raise RunFailure(f"the loss became {loss} in step {phase.step}; try a smaller --lr")

    def _send_right(self, message: Any, step: int) -> None:
        self.mail.send(self.right, message, step)
        if self.size == 1:
            self.mail.poll()  # at once: nothing else is to be found in between

    # ---- tokens and test results --------------------------------------------------------------------------------

    def _on_token(self, token: Token) -> None:
        if self.first:
            self._home(token)
        elif self.updates > token.step:
            self._pass_on(token)
        else:
            self.waiting[token.step] = token

    def _pass_on(self, token: Token) -> None:
        """Add this rank's numbers to a token and send it to the right."""
        loss, correct = self.losses.pop(token.step) if self.last else (token.loss, token.correct)
        waited, elapsed = self.recorder.lap()
        written = self.checkpoints.newest
        busy = self.balance.busy if self.balance else 0.0
        token = Token(
            step=token.step,
            loss=loss,
            correct=correct,
            waited=token.waited + waited,
            elapsed=token.elapsed + elapsed,
            written=written if self.first else min(token.written, written),
            signal=token.signal or self.stop_signal,
            write_cost=max(token.write_cost, self.checkpoints.cost),
            busy=token.busy + busy,
            busiest=max(token.busiest, busy),
        )
        if not self.first:
            self.tokens += 1
        self._send_right(token, token.step)

    def _home(self, token: Token) -> None:
        """A step is done on every rank of this ring (rank 0)."""
        self.tokens += 1
        self.stop_signal = self.stop_signal or token.signal
        self.checkpoints.settle_up_to(token.written, token.write_cost)
        self._report(RingStep(token.step, token.loss, token.correct, self.stop_signal, token.waited, token.elapsed))
        # Ordered after rank 0's next update (`_give_orders`), not here: a token can come home while the output of a
        # forward is being sent, and until that is counted the present phase looks like one that has not begun.
        if self.balance:
            mean = token.busy / self.size
            self.wanted = self.balance.weigh(token.step + 1, mean, token.busiest) or self.wanted

    def _on_test_result(self, result: TestResult) -> None:
        self.tests_home += 1
        self._report(RingTest(*result, self.stop_signal))

    def _report(self, result: RingStep | RingTest) -> None:
        """A step or a test of this ring is complete (rank 0)."""
        if self.leaders is not None:
            self.leaders.report(result)
        else:
            self._complete(result)

    def _complete(self, result: RingStep | RingTest) -> None:
        """The same of all rings together (rank 0 of the first ring)."""
        assert self.listener
        self.stop_signal = self.stop_signal or result.signal
        if isinstance(result, RingStep):
            self.listener.step_done(result.step, result.loss, result.correct, result.waited, result.elapsed)
        else:
            self.listener.test_done(result.step, result.loss, result.correct)

    # ---- orders -------------------------------------------------------------------------------------------------

    def _give_orders(self) -> None:
        """Order what is due: before a phase whose first forward rank 0 has not begun, so no rank can have begun it."""
        assert self.listener
        index = self._next_whole_phase()
        if self.rings > 1:  # another ring may have begun that one, but none the one behind it
            index = self._next_whole_phase(index + 1)
        if self.stop_signal and index < self.end and self.leads:
            self.order_stop(index)
        elif index < self.end and self.listener.wants_checkpoint(after := self.table.phase(index).step + 1):
            self._on_write_checkpoint(WriteCheckpoint(after))
        if self.wanted and not self.stop_signal and index < self.end:
            order = self.wanted
            self._on_rebalance(Rebalance(index, order.busiest, order.mean, order.seconds, order.undo))

    def _next_whole_phase(self, index: int = -1) -> int:
        """The first phase that rank 0 has not begun, or the first from `index` on.

        An evaluation that is due comes first: a resume would skip it.
        """
        f = self.chunks[0].f
        index = f.index + (f.number > 0) if index < 0 else index
        while index < self.end and not self.table.phase(index).training:
            index += 1
        return index

    def _end_before(self, index: int) -> None:
        for chunk in self.chunks:
            chunk.end = index

    def _order_on(self, order: Stop | WriteCheckpoint | Rebalance) -> None:
        """Pass an order on to the right, up to the last rank."""
        if not self.last:
            self._send_right(order, self.updates)

    def order_stop(self, index: int) -> None:
        """Leave out the phases from `index` on, here, on the ranks to the right, and in the rings behind this one."""
        self.rebalance = None
        order = Stop(index, self.stop_signal)
        if self.leaders is not None and self.leads:
            self.leaders.order(order)
        self._end_before(index)
        self._order_on(order)

    def _on_stop(self, order: Stop) -> None:
        self.stop_signal = order.signal
        self.order_stop(order.phase)

    def _on_rebalance(self, order: Rebalance) -> None:
        """End before the phase of this index, here and on the ranks to the right, and go on with another split."""
        self.rebalance = RebalanceOrder(order.busiest, order.mean, order.seconds, order.undo)
        self._end_before(order.phase)
        self._order_on(order)

    def _on_write_checkpoint(self, order: WriteCheckpoint) -> None:
        """Have a checkpoint written after `order.step` updates, here and on the ranks to the right."""
        self.checkpoints.ordered(order.step, self.updates)
        self._order_on(order)

    # ---- the norm of all gradients ------------------------------------------------------------------------------

    def sum_squares(self, norm: NormKnown) -> None:
        """Pass the running sum of squares on for each chunk whose gradients are complete, once it has arrived.

        The sum goes from stage to stage, and its root from the last one to all: each step waits for the ring once.
        """
        for chunk in self.chunks:
            stage = chunk.number
            if norm.norm is not None or stage in self.added or not chunk.weights_done():
                continue
            if chunk.first or stage in self.squares:
                self.added.add(stage)
                total = chunk.stage.add_squares(self.squares.pop(stage, 0.0))
                if chunk.last:
                    self._on_norm(Norm(chunk.updates, math.sqrt(total)))
                else:
                    self._send_right(SquaredNorm(chunk.updates, total, stage + 1), chunk.updates)

    def _on_squared_norm(self, message: SquaredNorm) -> None:
        self.squares[message.stage] = message.total

    def _on_norm(self, message: Norm) -> None:
        assert self.norm is not None
        if not math.isfinite(message.norm):
            raise RunFailure(
                f"the norm of the gradients became {message.norm} in step {message.step}; try a smaller --lr"
            )
        self.norm.norm = message.norm
        self.added.clear()
        if self.right != self.size - 1:  # the last rank had it first
            self._send_right(message, message.step)

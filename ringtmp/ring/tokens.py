"""Talk about a run as a whole, over the ring's own links: losses and waits, test results, the norm, sets, orders.

What rank 0 needs to know of the others comes to it as a *token*: rank 0 sends one to the right after each of its
updates, each rank passes it on once its own update of that step is done, adding its share, and the last rank adds the
loss and sends it home. Orders to stop, to write a checkpoint, or to deal the layers anew go the same way; the sum of
squares for `clip_norm` goes from stage to stage and its root once round to all.
"""

import math
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, Protocol

from ringtmp.comm.point_to_point import CONTROL_FIELDS, ControlChannel
from ringtmp.errors import RunFailure
from ringtmp.ring.load_balance import Order
from ringtmp.run.timetable import Phase, Timetable
from ringtmp.trace.recorder import Recorder, clock

TOKEN, TEST, STOP, SQUARES, NORM, BEAT, HELD, SET, CUT = range(9)  # first number of a control message


class Home(Protocol):
    """What is told where tokens come home (rank 0), and what each rank is asked for one and told of orders."""

    def trained(self, step: int, loss: float, correct: float, idle: float, written: int, cost: float) -> None:
        """A step is done everywhere, and all parts of sets up to that of `written`, which held up nobody for longer."""

    def tested(self, step: int, loss: float, correct: float) -> None:
        """An evaluation is complete."""

    def written(self) -> tuple[int, float]:
        """Step of the newest set whose part this rank has finished, or -1; seconds for which it held up the rank."""

    def wants_set(self, step: int) -> bool:
        """A step is done here (rank 0): whether all ranks are to write a set after `step` updates."""

    def ordered(self, step: int, made: int) -> None:
        """A set after `step` updates is ordered, and so many are `made` here."""

    def stopped(self, index: int, signal: int) -> None:
        """The phases from `index` on are left out (rank 0)."""

    def busy(self) -> float:
        """How long this rank computes in a step, in nanoseconds."""

    def weighed(self, step: int, mean: float, most: float) -> Order | None:
        """`step` steps are done everywhere (rank 0); how busy the ranks are. Whether to stop for a new cut."""


class Tokens:
    """This rank's part in the talk.

    Parameters
    ----------
    rank, size : int
    link : ControlChannel or None
        To the right neighbour and from the left one; None on one rank.
    chunks : list of Chunk
        Of this rank.
    table : Timetable
    home : Home
    recorder : Recorder
    start : int
        Updates made before.
    stop_request : callable
        Number of the signal that asks for a stop, or 0.
    rings : int
        Side by side.
    leads : bool
        Whether this is the first of them, whose first rank gives the orders.
    beat : callable
        Heeds a sign of life from the left neighbour.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        link: ControlChannel | None,
        chunks: list[Any],
        table: Timetable,
        home: Home,
        recorder: Recorder,
        start: int,
        stop_request: Callable[[], int],
        rings: int = 1,
        leads: bool = True,
        beat: Callable[[tuple[float, ...]], None] = lambda message: None,
    ) -> None:
        self.beat = beat
        self.rank, self.size, self.link, self.chunks, self.table = rank, size, link, chunks, table
        self.home, self.recorder, self.stop_request = home, recorder, stop_request
        self.first, self.last = rank == 0, rank == size - 1
        self.rings, self.leads = rings, leads
        self.stop_signal = 0
        self.cut: Order | None = None  # what this engine ends for, if not for good
        self.wanted: Order | None = None  # the same, to be ordered (rank 0)
        self.tokens = start  # passed on (rank 0: come home)
        self.waiting: dict[int, tuple[float, ...]] = {}
        self.losses: dict[int, tuple[float, float]] = {}
        self.tests_home = table.index_of(start) - start  # evaluations that rank 0 has heard of
        self.squares: dict[int, float] = {}  # by stage: sum over the gradients of all stages before it
        self.added: set[int] = set()  # stages of this rank whose squares have been passed on
        self.norm: float | None = None  # of all gradients of this step
        self.interrupted = False  # a message has just been dealt with: that was neither wait nor transfer

    @property
    def updates(self) -> int:
        """Updates that all chunks of this rank have made."""
        return min(chunk.updates for chunk in self.chunks)

    @property
    def end(self) -> int:
        """Index of the first phase that is not run."""
        return self.chunks[0].end

    def finished(self) -> bool:
        """All tokens passed on (rank 0: come home), all that was sent has left."""
        if self.tokens < self.updates:
            return False
        if self.first and self.tests_home < self.end - self.updates:
            return False
        return self.link is None or self.link.idle()

    def poll(self) -> bool:
        """Heed what has arrived; whether anything has."""
        if self.link is None:
            return False
        messages = self.link.poll()
        for message in messages:
            if message[0] == BEAT:
                self.beat(message)
            else:
                self._heed(message)
        return bool(messages)

    def stepped(self, step: int) -> None:
        """This rank has made its update of `step` on every chunk."""
        self.norm = None
        self.stop_signal = self.stop_signal or self.stop_request()
        if self.first:
            index = self._next_whole_phase()
            if self.rings > 1:  # another ring may have begun that one, but none the one behind it
                index = self._next_whole_phase(index + 1)
            if self.stop_signal and index < self.end and self.leads:
                self.order_stop(index)
            elif index < self.end and self.home.wants_set(after := self.table.phase(index).step + 1):
                self._order_set(after)  # nobody can have made that update: its first forward has not been begun
            if self.wanted and not self.stop_signal and index < self.end:
                self._order_cut(index, self.wanted)
            self._pass_on(step, (TOKEN, step) + (0.0,) * (CONTROL_FIELDS - 2))
        elif step in self.waiting:
            self._pass_on(step, self.waiting.pop(step))

    def _next_whole_phase(self, index: int = -1) -> int:
        """The first phase that rank 0 has not begun, or the first from `index` on.

        An evaluation that is due comes first: a resume would skip it.
        """
        f = self.chunks[0].f
        index = f.index + (f.number > 0) if index < 0 else index
        while index < self.end and not self.table.phase(index).training:
            index += 1
        return index

    def summed(self, phase: Phase, loss: float, correct: float) -> None:
        """The last stage has finished all forwards of a phase: keep the sums for the token, or send a test's home."""
        if phase.training:
            if not math.isfinite(loss):
                raise RunFailure(f"the loss became {loss} in step {phase.step}; try a smaller --lr")
            self.losses[phase.step] = loss, correct
        elif self.link is None:
            self._heed((TEST, phase.step, loss, correct))
        else:
            self._tell_right(phase.step, (TEST, phase.step, loss, correct))

    def sum_squares(self) -> None:
        """Pass the running sum of squares on for each chunk whose W's of the step are done, once it is here.

        The sum goes from stage to stage, and its root from the last one to all: each step waits for the ring once.
        """
        for chunk in self.chunks:
            stage = chunk.number
            if self.norm is not None or stage in self.added or not chunk.weights_done():
                continue
            if chunk.first or stage in self.squares:
                self.added.add(stage)
                total = chunk.stage.add_squares(self.squares.pop(stage, 0.0))
                if chunk.last:
                    self._take_norm(math.sqrt(total), chunk.updates)
                elif self.link is None:
                    self.squares[stage + 1] = total
                else:
                    self._tell_right(chunk.updates, (SQUARES, chunk.updates, total, stage + 1))

    def _take_norm(self, norm: float, step: int) -> None:
        if not math.isfinite(norm):
            raise RunFailure(f"the norm of the gradients became {norm} in step {step}; try a smaller --lr")
        self.norm = norm
        self.added.clear()
        if self.link is not None and (self.rank + 1) % self.size != self.size - 1:  # the last rank had it first
            self._tell_right(step, (NORM, step, norm))

    def _tell_right(self, step: int, message: tuple[float, ...]) -> None:
        assert self.link
        begin = clock()
        self.link.send(message)
        peer, stage = (self.rank + 1) % self.size, self.chunks[0].number
        self.recorder.record("send", begin, clock(), step, -1, peer, self.link.BYTES, stage)

    def _heed(self, message: tuple[float, ...]) -> None:
        self.interrupted = True
        kind, step = int(message[0]), int(message[1])  # of STOP and CUT: the index of the first phase left out
        if kind == TEST:
            self.tests_home += 1
            self.home.tested(step, message[2], message[3])
        elif kind == SQUARES:
            self.squares[int(message[3])] = message[2]
        elif kind == NORM:
            self._take_norm(message[2], step)
        elif kind == STOP:
            self.stop_signal = int(message[2])
            self.order_stop(step)
        elif kind == SET:
            self._order_set(step)
        elif kind == CUT:
            most, mean, seconds, undo = message[2:6]
            self._order_cut(step, Order(most, mean, seconds, bool(undo)))
        elif self.first:
            self._home(message)
        elif self.updates > step:
            self._pass_on(step, message)
        else:
            self.waiting[step] = message

    def _pass_on(self, step: int, token: tuple[float, ...]) -> None:
        """Add this rank's share to a token and send it to the right; on one rank it is home at once."""
        _, _, loss, correct, waited, gone, written, signal, cost, busies, most = token
        if self.last:
            loss, correct = self.losses.pop(step)
        wait_here, gone_here = self.recorder.wait_share()
        written_here, cost_here = self.home.written()
        written = written_here if self.first else min(written, written_here)
        busy = self.home.busy()
        token = (
            TOKEN,
            step,
            loss,
            correct,
            waited + wait_here,
            gone + gone_here,
            written,
            signal or self.stop_signal,
            max(cost, cost_here),
            busies + busy,
            max(most, busy),
        )
        if not self.first:
            self.tokens += 1
        if self.link is None:
            self._home(token)
        else:
            self._tell_right(step, token)

    def _home(self, token: tuple[float, ...]) -> None:
        _, step, loss, correct, waited, gone, written, signal, cost, busies, most = token
        self.tokens += 1
        self.stop_signal = self.stop_signal or int(signal)
        self.home.trained(int(step), loss, correct, waited / max(gone, 1.0), int(written), cost)
        # Obeyed after an update: a token may come home while a forward is being sent, and that is not noted yet.
        self.wanted = self.home.weighed(int(step) + 1, busies / self.size, most) or self.wanted

    def order_stop(self, index: int) -> None:
        """Leave out the phases from `index` on, here, on the ranks to the right, and in the rings behind this one."""
        self.cut = None
        if self.first:
            self.home.stopped(index, self.stop_signal)
        for chunk in self.chunks:
            chunk.end = index
        if self.link is not None and not self.last:
            self._tell_right(self.updates, (STOP, index, self.stop_signal))

    def _order_cut(self, index: int, order: Order) -> None:
        """End before the phase of this index, here and on the ranks to the right, and go on with another cut."""
        self.cut = order
        for chunk in self.chunks:
            chunk.end = index
        if self.link is not None and not self.last:
            self._tell_right(self.updates, (CUT, index, *astuple(order)))

    def _order_set(self, step: int) -> None:
        """Have a set written after `step` updates, here and on the ranks to the right."""
        self.home.ordered(step, self.updates)
        if self.link is not None and not self.last:
            self._tell_right(self.updates, (SET, step))

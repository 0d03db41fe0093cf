"""Policies: who decides what a rank runs next. The local rule, the follower of a plan, and the asynchronous stream.

A policy sees the chunks of its own rank (`ringtmp.ring.chunk`) and nothing else. It answers with 8 x chunk + kind
(`ringtmp.schedule.local_rule`), or -1 where nothing can run.
"""

from collections.abc import Sequence
from typing import Protocol

from ringtmp.schedule.local_rule import NONE, B, F, I, U, W, adapt, fill, first_limits, fixed_limits, held_back, urgent
from ringtmp.schedule.plan import Plan, peak_in_flight

POSTED = 2  # receives of activations that are posted ahead of the micro-batches in flight


def default_most(ranks: int, w_group: int = 1) -> int:
    """Most micro-batches that a chunk may hold where nothing else is said: `--in-flight`'s default."""
    return max(3 * ranks, w_group)


class Chunk(Protocol):
    """What a policy may look at."""

    forwards: int  # micro-batches of training with F begun
    inputs: int  # with I done
    weights: int  # with W done

    @property
    def place(self) -> int: ...
    def can_forward(self) -> bool: ...
    def can_backward_input(self) -> bool: ...
    def can_backward_weight(self) -> bool: ...
    def must_update(self) -> bool: ...
    def evaluating(self) -> bool: ...
    def exhausted(self) -> bool: ...


class Policy(Protocol):
    """Chooses the next action of a rank."""

    patient: bool  # whether W is run to its end, whatever arrives meanwhile

    def choose(self, chunks: Sequence[Chunk]) -> int: ...
    def window(self, chunk: int) -> int: ...
    def room(self, chunk: int) -> int: ...
    def waited(self, nanoseconds: int) -> None: ...
    def stepped(self, nanoseconds: int) -> None: ...


class LocalRule:
    """Ready mode: `ringtmp.schedule.local_rule`, with limits that grow by what the rank's own waits teach (`adapt`).

    Parameters
    ----------
    ranks, rank, chunks, micro_batches : int
    w_group : int
        Most micro-batches that one product of W takes: so many must be held for it.
    most : int, optional
        Most micro-batches that each chunk may hold; default 4 x ranks.
    lag : int
        1 if weights are one update behind: then the next step's micro-batches may be held as well.
    ahead : float
        Fixed limits instead (`ringtmp.schedule.local_rule.fixed_limits`), if above 0.
    """

    patient = False

    def __init__(
        self,
        ranks: int,
        rank: int,
        micro_batches: int,
        *,
        chunks: int = 1,
        w_group: int = 1,
        most: int | None = None,
        lag: int = 0,
        ahead: float = 0.0,
    ) -> None:
        self.ranks = ranks
        self.most = 4 * ranks if most is None else most
        self.most = max(1, min(self.most, (1 + lag) * micro_batches))  # more are never under way
        self.cap, self.limit = first_limits(ranks, chunks, rank, (1 + lag) * micro_batches, self.most, w_group)
        self.by = max(1, ranks // 4)
        if ahead:
            self.by = 0
            self.cap, self.limit = fixed_limits(ranks, chunks, rank, (1 + lag) * micro_batches, self.most, ahead)
        self.idle = self.back = self.forced = 0
        self.pressed = 0
        self._can = [[False] * chunks for _ in range(4)]
        self._held, self._ahead, self._pack = [0] * chunks, [0] * chunks, [0] * chunks

    def window(self, chunk: int) -> int:
        """Micro-batches held, and two receives posted ahead of them."""
        return self.cap[chunk] + POSTED

    def room(self, chunk: int) -> int:
        """The window that the limits may grow to."""
        return self.most + POSTED

    def choose(self, chunks: Sequence[Chunk]) -> int:
        """The next action, or -1 if nothing can run."""
        can_f, can_i, can_w, can_u = self._can
        for c, chunk in enumerate(chunks):
            can_u[c], can_i[c] = chunk.must_update(), chunk.can_backward_input()
        what = urgent(can_u, can_i)
        if what != NONE:
            return what
        held, ahead, pack = self._held, self._ahead, self._pack
        for c, chunk in enumerate(chunks):
            can_f[c], can_w[c] = chunk.can_forward(), chunk.can_backward_weight()
            pack[c] = chunk.place // self.ranks
            if chunk.evaluating():  # it holds nothing that waits for a gradient
                held[c] = ahead[c] = -(1 << 30)
            else:
                held[c], ahead[c] = chunk.forwards - chunk.weights, chunk.forwards - chunk.inputs
        what = fill(can_f, can_w, held, ahead, self.cap, self.limit, pack)
        if what == NONE or what % 8 == W:
            why = held_back(can_f, held, ahead, self.cap, self.limit)
            self.forced += why == 1
            self.pressed = max(self.pressed, why) if what == NONE else 0
        return what

    def waited(self, nanoseconds: int) -> None:
        """Note a wait, and whether a limit was behind it."""
        self.idle += nanoseconds
        self.back += nanoseconds * (self.pressed == 2)
        self.pressed = 0

    def stepped(self, nanoseconds: int) -> None:
        """Let the limits grow if the step's waits call for it."""
        if self.by:
            adapt(self.cap, self.limit, self.most, self.by, nanoseconds, self.idle, self.back, self.forced)
        self.idle = self.back = self.forced = 0


class FollowPlan:
    """Strict mode: the actions of a plan, in its order, step after step.

    With `recompute`, W follows I at once, since what it needs is gone with the next I.
    """

    patient = True

    def __init__(self, plan: Plan, rank: int, recompute: bool = False) -> None:
        ranks = len(plan.ranks)
        self.ranks = ranks
        self.todo = []
        for action in plan.ranks[rank]:
            kind = "B" if recompute and action.kind == "I" else action.kind
            if not (recompute and action.kind == "W"):
                self.todo.append(8 * (action.stage // ranks) + "FIWUB".index(kind))
        # In flight, and two receives posted ahead.
        self._room = [peak_in_flight(plan, rank, c * ranks + rank) + POSTED for c in range(plan.chunks)]
        self.place = 0

    def window(self, chunk: int) -> int:
        """Micro-batches in flight by the plan, and two receives posted ahead of them."""
        return self._room[chunk]

    room = window

    def choose(self, chunks: Sequence[Chunk]) -> int:
        """The plan's next action if it can run now, else -1; between steps an evaluation, if one is due."""
        if self.place == 0:
            due = [c for c, chunk in enumerate(chunks) if chunk.evaluating()]
            if due:
                return evaluate(chunks, due)
        what = self.todo[self.place]
        if not _can(chunks[what // 8], what % 8):
            return NONE
        self.place = (self.place + 1) % len(self.todo)
        return what

    def waited(self, nanoseconds: int) -> None:
        """A plan learns nothing."""

    stepped = waited


class Stream:
    """PipeDream's order (Narayanan et al. 2019): 1F1B without a flush, a stream of micro-batches from test to test.

    Rank r keeps p - r micro-batches between F and I and alternates. The order is fixed, so which weights a forward
    sees depends on no timing, and a run repeats bit for bit. At an evaluation (and at the end) the stream runs dry.
    """

    patient = True

    def __init__(self, ranks: int, rank: int) -> None:
        self.keep = ranks - rank
        self._room = self.keep + POSTED

    def window(self, chunk: int) -> int:
        """Micro-batches in flight, and two receives posted ahead of them."""
        return self._room

    room = window

    def choose(self, chunks: Sequence[Chunk]) -> int:
        """The next action of the stream if it can run now, else -1."""
        (chunk,) = chunks
        if chunk.weights < chunk.inputs:
            return W
        if chunk.must_update():
            return U
        if chunk.forwards - chunk.inputs < self.keep and not chunk.evaluating() and not chunk.exhausted():
            return F if chunk.can_forward() else NONE
        if chunk.forwards > chunk.inputs:
            return I if chunk.can_backward_input() else NONE
        return F if chunk.can_forward() else NONE

    def waited(self, nanoseconds: int) -> None:
        """A stream learns nothing."""

    stepped = waited


def evaluate(chunks: Sequence[Chunk], due: Sequence[int]) -> int:
    """F of the chunk among `due` that can run and has the fewest behind it, or -1."""
    able = [c for c in due if chunks[c].can_forward()]
    return 8 * able[-1] + F if able else NONE


def _can(chunk: Chunk, kind: int) -> bool:
    if kind == F:
        return chunk.can_forward()
    if kind in (I, B):
        return chunk.can_backward_input()
    return chunk.can_backward_weight() if kind == W else chunk.must_update()

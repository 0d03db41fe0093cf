"""Policies decide what a rank runs next: the local rule, or the follower of a plan.

A policy sees the chunks of its own rank (`ringtmp.ring.chunk`) and nothing else. It answers with 8 x chunk + kind
(`ringtmp.action_kinds`), or -1 where nothing can run. A schedule may bring a policy of its own
(`ringtmp.schedule.schedules.pipedream`).
"""

from collections.abc import Sequence
from typing import Protocol

from ringtmp.action_kinds import KINDS, B, F, I, W
from ringtmp.schedule.local_rule import (
    NONE,
    adapt,
    default_growth,
    default_most,
    fill,
    first_limits,
    fixed_limits,
    held_back,
    urgent,
)
from ringtmp.schedule.plan import Plan, peak_in_flight

POSTED = 2  # receives of activations that are posted ahead of the micro-batches in flight


class ChunkView(Protocol):
    """What a policy sees of a chunk (`ringtmp.ring.chunk.Chunk`).

    Attributes
    ----------
    forwards, inputs, weights : int
        Micro-batches of training, since the launch, with F run and its output sent, with I ended, with W ended.
    """

    forwards: int
    inputs: int
    weights: int

    @property
    def place(self) -> int:
        """Number of the next F among all micro-batches, evaluations included."""

    def can_forward(self) -> bool:
        """Whether the next F has its activation, its weights and a free slot."""

    def can_backward_input(self) -> bool:
        """Whether the gradient of the next I has arrived."""

    def can_backward_weight(self) -> bool:
        """Whether an I has ended whose W has not."""

    def must_update(self) -> bool:
        """Whether all W of a step have ended and its U can run."""

    def evaluating(self) -> bool:
        """Whether the next F belongs to an evaluation."""

    def exhausted(self) -> bool:
        """Whether no F remains."""


class Policy(Protocol):
    """Chooses the next action of a rank.

    Attributes
    ----------
    patient : bool
        Whether the order is fixed. True: W runs to its end, whatever arrives meanwhile, and in training a rank with
        several chunks waits until a synchronous send has been received (`--sends synchronous`), because no other chunk
        may go on before. False: W runs layer by layer, `choose` is also called in between, and a rank with several
        chunks does not wait for synchronous sends.
    """

    patient: bool

    def choose(self, chunks: Sequence[ChunkView]) -> int:
        """The next action, 8 x chunk + kind, or -1 if nothing can run.

        An action that a `patient` policy returns is run next. If `patient` is False the action may be dropped and
        `choose` called again: the call must not change the order.
        """

    def window(self, chunk: int) -> int:
        """Most micro-batches of chunk `chunk` that may have a slot now: those in flight, and receives posted ahead."""

    def room(self, chunk: int) -> int:
        """The most that `window` can become: chunk `chunk` is allocated this number of slots."""

    def waited(self, nanoseconds: int) -> None:
        """Note that the rank has waited `nanoseconds` since the last `choose`."""

    def stepped(self, nanoseconds: int) -> None:
        """Note the end of a step that lasted `nanoseconds`."""


class LocalRule:
    """Ready mode: the local rule, with limits that grow by what the rank's own waits show.

    Parameters
    ----------
    ranks, rank, micro_batches : int
        Ranks of the ring, this one, and micro-batches of a step.
    chunks : int
        Stages of each rank.
    w_group : int
        Most micro-batches that one W takes; at least 1.
    most : int, optional
        Most micro-batches that each chunk may hold; by default `ringtmp.schedule.local_rule.default_most`.
    lag : int
        1 if forwards take the weights of one update before: then the next step's micro-batches are in flight as well.
    ahead : float
        If above 0: fixed limits instead (`ringtmp.schedule.local_rule.fixed_limits`).
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
        most = default_most(ranks, w_group) if most is None else most
        self.most = max(1, min(most, (1 + lag) * micro_batches))  # more are never under way
        self.cap, self.limit = first_limits(ranks, chunks, rank, (1 + lag) * micro_batches, self.most, w_group)
        self.growth = default_growth(ranks)
        if ahead:
            self.growth = 0
            self.cap, self.limit = fixed_limits(ranks, chunks, rank, (1 + lag) * micro_batches, self.most, ahead)
        self.idle = self.limited_idle = self.forced = 0  # of the step under way
        self.limited = False  # whether `limit` has forbidden an F in the wait under way
        self._can = [[False] * chunks for _ in range(4)]
        self._held, self._ahead, self._pack = [0] * chunks, [0] * chunks, [0] * chunks

    def window(self, chunk: int) -> int:
        """Micro-batches held, and two receives posted ahead of them."""
        return self.cap[chunk] + POSTED

    def room(self, chunk: int) -> int:
        """The window that the limits may grow to."""
        return self.most + POSTED

    def choose(self, chunks: Sequence[ChunkView]) -> int:
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
            self.limited = what == NONE and (self.limited or why == 2)
        return what

    def waited(self, nanoseconds: int) -> None:
        """Note a wait, and whether a limit was behind it."""
        self.idle += nanoseconds
        self.limited_idle += nanoseconds * self.limited
        self.limited = False

    def stepped(self, nanoseconds: int) -> None:
        """Let the limits grow if the step's waits call for it."""
        if self.growth:
            idle, limited_idle, forced = self.idle, self.limited_idle, self.forced
            adapt(self.cap, self.limit, self.most, self.growth, nanoseconds, idle, limited_idle, forced)
        self.idle = self.limited_idle = self.forced = 0


class FollowPlan:
    """Strict mode: the actions of a plan, in its order, step after step.

    Parameters
    ----------
    plan : Plan
    rank : int
        Whose actions are followed.
    recompute : bool
        Whether activations are computed again: then W follows I at once, since the next I overwrites what W needs.
    """

    patient = True

    def __init__(self, plan: Plan, rank: int, recompute: bool = False) -> None:
        ranks = len(plan.ranks)
        self.ranks = ranks
        self.todo = []
        for action in plan.ranks[rank]:
            kind = "B" if recompute and action.kind == "I" else action.kind
            if not (recompute and action.kind == "W"):
                self.todo.append(8 * (action.stage // ranks) + KINDS.index(kind))
        # In flight, and two receives posted ahead.
        self._room = [peak_in_flight(plan, rank, c * ranks + rank) + POSTED for c in range(plan.chunks)]
        self.place = 0

    def window(self, chunk: int) -> int:
        """Micro-batches in flight by the plan, and two receives posted ahead of them."""
        return self._room[chunk]

    room = window

    def choose(self, chunks: Sequence[ChunkView]) -> int:
        """The plan's next action if it can run now, else -1; between steps an evaluation, if one is due."""
        if self.place == 0:
            due = [c for c, chunk in enumerate(chunks) if chunk.evaluating()]
            if due:
                return _evaluate(chunks, due)
        what = self.todo[self.place]
        if not _can(chunks[what // 8], what % 8):
            return NONE
        self.place = (self.place + 1) % len(self.todo)
        return what

    def waited(self, nanoseconds: int) -> None:
        """A plan does not depend on waits."""

    stepped = waited


def _evaluate(chunks: Sequence[ChunkView], due: Sequence[int]) -> int:
    """The F of the last chunk among those with the indices `due` that can run: 8 x chunk + kind, or -1."""
    able = [c for c in due if chunks[c].can_forward()]
    return 8 * able[-1] + F if able else NONE


def _can(chunk: ChunkView, kind: int) -> bool:
    if kind == F:
        return chunk.can_forward()
    if kind in (I, B):
        return chunk.can_backward_input()
    return chunk.can_backward_weight() if kind == W else chunk.must_update()

"""The ring under a clock: a compiled event loop that runs plans and the local rule without a machine.

Times are seconds. Stages are numbered along the chain (stage `s` lives on rank `s % ranks`), micro-batches are counted
on from step to step, and an action is coded as 8 x stage + kind (`ringtmp.schedule.local_rule`). At each moment all
ranks whose action ends or that a message wakes go through four phases: `_end` (the results of the ended actions, all
ranks first), `_receive` (the messages that have arrived, and what can run), `_choose` (plan or rule), `_begin`.

The heap holds one event for the end of each action and, for a rank that stands idle, one for each message that may
wake it; a message whose receiver is busy is only a time of arrival in a ring buffer. 5 to 7 million actions a second on
one core. The plain twin, which does the same with records and lists, is `tests/naive_clock.py`.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined, jit
from kernels.registry import declare
from ringtmp.action_kinds import B, F, I, U, W
from ringtmp.emulate.jitter import stretch
from ringtmp.schedule.local_rule import NONE, adapt, fill, held_back, urgent
from ringtmp.simulate.event_heap import enlarged, new_heap, schedule, take

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NEVER = np.inf
RIGHT, LEFT = range(2)  # ways of a message: an activation to the next stage, a gradient to the one before
ENDS, WAKES = range(2)  # events of a rank: its action ends; a message arrives while it stands idle
_urgent, _fill, _held_back, _adapt = jit(urgent), jit(fill), jit(held_back), jit(adapt)


class Ring(NamedTuple):
    """What is simulated; does not change.

    Attributes
    ----------
    ranks, chunks : int
        Stages are `ranks` x `chunks`.
    steps : int
        Optimizer steps, chained.
    sizes : float64[m]
        Size of each micro-batch of a step, 1.0 for a whole one.
    seconds : float64[stages, 4]
        Of F, I, W and U of each stage, for a whole micro-batch.
    shares, share_ends : float64[pieces], int64[stages]
        The pieces of each stage's W (its layers) as shares of it, stage after stage; where each stage's pieces end.
    overhead : float
        Seconds that a rank spends beside each action.
    latency : float
        Seconds that a message is under way.
    transfer : float64[stages, 2]
        Seconds that a link is taken by the activation of a stage (`RIGHT`), and by its gradient (`LEFT`).
    jitter, seed : float, int
        Durations vary by a factor uniform in 1 +- `jitter` (`ringtmp.emulate.jitter`).
    lag : int
        0: F needs the update of the step before; 1: the update of the step before that one (2BW).
    """

    ranks: int
    chunks: int
    steps: int
    sizes: Floats
    seconds: Floats
    shares: Floats
    share_ends: Ints
    overhead: float
    latency: float
    transfer: Floats
    jitter: float
    seed: int
    lag: int


class Orders(NamedTuple):
    """Who decides what runs: a plan, or the local rule.

    Attributes
    ----------
    plan, plan_ends : int64[actions], int64[ranks]
        Coded actions of one step, rank after rank, and where each rank's end; no actions: the local rule decides.
    cap, limit : int64[ranks, chunks]
        The rule's bounds of micro-batches held, and ahead (`ringtmp.schedule.local_rule.fill`); they grow in place.
    most : int
        Bound of both.
    growth : int
        By how much they grow at a time; 0: they stay.
    w_group : int
        Most micro-batches that one W of the rule takes together.
    """

    plan: Ints
    plan_ends: Ints
    cap: Ints
    limit: Ints
    most: int
    growth: int
    w_group: int


class State(NamedTuple):
    """Everything that changes while the clock runs.

    Attributes
    ----------
    counts : int64[stages, 4]
        Actions of each stage: F begun; I, W and U ended.
    arrives : float64[stages, 2, window]
        When message n to a stage arrives, at n modulo the window: activations (`RIGHT`), gradients (`LEFT`).
    sent, seen : int64[stages, 2]
        Messages to each stage that have been sent; that its rank has seen arrive.
    link_free : float64[ranks, 2]
        When a rank's links to the right and to the left are free again.
    doing : int64[ranks]
        Coded action under way, or `NONE`.
    place : int64[ranks]
        Position in the plan.
    group, group_stage : int64[ranks]
        Micro-batches that the W under way takes together (0: no W is under way), and its stage.
    piece, last_piece : int64[ranks], bool[ranks]
        Next piece of that W, as a place in `Ring.shares`; whether the one that runs is its last.
    busy : float64[ranks]
        Seconds of work.
    held, peak_held : int64[ranks]
        Micro-batches with F begun and W not ended; the most so far.
    idle_since : float64[ranks]
        When a rank became idle; -1: it is not idle.
    limited : bool[ranks]
        Whether `limit` forbade an F in the idle time under way.
    idle, limited_idle, forced : float64[ranks], float64[ranks], int64[ranks]
        Of the step under way: seconds idle; seconds idle while `limit` forbade an F; how often `cap` forbade one.
    step_began : float64[ranks]
        When the rank's step began.
    step_ends : float64[steps]
        When the last rank ended each step's update.
    active, is_active : int64[ranks], bool[ranks]
        Ranks that have an event at the present moment, and whether a rank is among them.
    can : bool[4, chunks]
        Whether the next F, I, W, U of each chunk of the rank looked at can run.
    chunk_held, chunk_ahead, chunk_pack : int64[chunks]
        The rule's arguments for these chunks.
    actions : int64[1]
        Actions begun, each piece of a W by itself.
    """

    counts: Ints
    arrives: Floats
    sent: Ints
    seen: Ints
    link_free: Floats
    doing: Ints
    place: Ints
    group: Ints
    group_stage: Ints
    piece: Ints
    last_piece: Bools
    busy: Floats
    held: Ints
    peak_held: Ints
    idle_since: Floats
    limited: Bools
    idle: Floats
    limited_idle: Floats
    forced: Ints
    step_began: Floats
    step_ends: Floats
    active: Ints
    is_active: Bools
    can: Bools
    chunk_held: Ints
    chunk_ahead: Ints
    chunk_pack: Ints
    actions: Ints


@jit
def run(ring, orders, log):
    """Run all steps.

    Parameters
    ----------
    ring : Ring
    orders : Orders
        Its `cap` and `limit` are changed.
    log : float64[n, 6]
        Filled with stage, kind, number, start, end and count of micro-batches of each action (of W: of each piece),
        as far as there are rows.

    Returns
    -------
    seconds : float
        Until all is done; -1.0: the ranks wait for each other.
    busy : float64[ranks]
    peak_held : int64[ranks]
    step_ends : float64[steps]
    actions : int
    """
    state, heap, active, now = _start(ring), new_heap(16 * ring.ranks + 16), ring.ranks, 0.0
    while active > 0:
        now, active = _advance(ring, orders, state, heap, now, active, log)
        if active > 0:  # it stopped because the heap may not have room for another moment
            heap = enlarged(heap)
    finished = state.counts[:, U].min() == ring.steps
    return now if finished else -1.0, state.busy, state.peak_held, state.step_ends, state.actions[0]


@partial(jit, counts_references=False)
def _advance(ring, orders, state, heap, now, active, log):
    """Run from moment to moment until nothing happens any more, or the heap is nearly full.

    Parameters
    ----------
    ring, orders, log
        See `run`.
    state : State
    heap : Heap
    now : float
        Where the clock stands.
    active : int
        Number of ranks in `state.active`.

    Returns
    -------
    now : float
    active : int
        0: nothing happens any more.
    """
    while heap.size[0] + 2 * ring.ranks <= len(heap.times):  # each rank adds two at most until the next look here
        for n in range(active):
            rank = state.active[n]
            state.is_active[rank] = False
            if state.doing[rank] == NONE:
                wake = _receive(ring, orders, state, rank, now)
                code = _choose(ring, orders, state, rank)
                if code == NONE:
                    if wake < NEVER:
                        schedule(heap, wake, 2 * rank + WAKES)
                    if state.idle_since[rank] < 0:
                        state.idle_since[rank] = now
                else:
                    until = _begin(ring, orders, state, rank, code, now, log)
                    schedule(heap, until, 2 * rank + ENDS)
        active = 0
        if heap.size[0] == 0:
            break
        now = heap.times[0]
        while heap.size[0] > 0 and heap.times[0] <= _moment(now):
            event = take(heap)
            rank = event // 2
            if not state.is_active[rank]:
                state.is_active[rank] = True
                state.active[active] = rank
                active += 1
            if event % 2 == ENDS:
                _end(ring, orders, state, heap, rank, now)
    return now, active


@jit
def _start(ring):
    """The state at time 0: all activations of the first stage are there, and every rank looks for something to run."""
    ranks, chunks, m = ring.ranks, ring.chunks, len(ring.sizes)
    stages, total, window = ranks * chunks, ring.steps * m, 4
    while window < min(total, 4 * m) + 4:
        window *= 2
    sent, seen = np.zeros((stages, 2), np.int64), np.zeros((stages, 2), np.int64)
    sent[0, RIGHT] = seen[0, RIGHT] = total
    return State(
        counts=np.zeros((stages, 4), np.int64),
        arrives=np.zeros((stages, 2, window)),
        sent=sent,
        seen=seen,
        link_free=np.zeros((ranks, 2)),
        doing=np.full(ranks, NONE, np.int64),
        place=np.zeros(ranks, np.int64),
        group=np.zeros(ranks, np.int64),
        group_stage=np.zeros(ranks, np.int64),
        piece=np.zeros(ranks, np.int64),
        last_piece=np.zeros(ranks, np.bool_),
        busy=np.zeros(ranks),
        held=np.zeros(ranks, np.int64),
        peak_held=np.zeros(ranks, np.int64),
        idle_since=np.full(ranks, -1.0),
        limited=np.zeros(ranks, np.bool_),
        idle=np.zeros(ranks),
        limited_idle=np.zeros(ranks),
        forced=np.zeros(ranks, np.int64),
        step_began=np.zeros(ranks),
        step_ends=np.zeros(ring.steps),
        active=np.arange(ranks),
        is_active=np.ones(ranks, np.bool_),
        can=np.zeros((4, chunks), np.bool_),
        chunk_held=np.zeros(chunks, np.int64),
        chunk_ahead=np.zeros(chunks, np.int64),
        chunk_pack=np.zeros(chunks, np.int64),
        actions=np.zeros(1, np.int64),
    )


@inlined
def _moment(now):
    """Latest time that counts as `now`: sums of the same durations in another order differ by their rounding."""
    return now * (1.0 + 1e-12) + 1e-15


@inlined
def _receive(ring, orders, state, rank, now):
    """See which messages have arrived at an idle rank, and note what can run; returns when the next message arrives."""
    wake, m, window, counts = NEVER, len(ring.sizes), state.arrives.shape[2], state.counts
    for c in range(ring.chunks):
        s = c * ring.ranks + rank
        for way in range(2):
            seen = state.seen[s, way]
            while seen < state.sent[s, way] and state.arrives[s, way, seen % window] <= _moment(now):
                seen += 1
            if seen < state.sent[s, way]:
                wake = min(wake, state.arrives[s, way, seen % window])
            state.seen[s, way] = seen
        updates = counts[s, U]
        state.can[F, c] = counts[s, F] < min(state.seen[s, RIGHT], (updates + 1 + ring.lag) * m, ring.steps * m)
        state.can[I, c] = counts[s, I] < state.seen[s, LEFT]
        state.can[W, c] = counts[s, W] < counts[s, I] and counts[s, W] < (updates + 1) * m
        state.can[U, c] = counts[s, W] == (updates + 1) * m
        if len(orders.plan) == 0:
            state.chunk_held[c] = counts[s, F] - counts[s, W]
            state.chunk_ahead[c] = counts[s, F] - counts[s, I]
            state.chunk_pack[c] = counts[s, F] // ring.ranks
    return wake


@inlined
def _choose(ring, orders, state, rank):
    """The coded action that a rank begins now, or `NONE`."""
    code = NONE
    if len(orders.plan):
        first = orders.plan_ends[rank - 1] if rank else 0
        code = orders.plan[first + state.place[rank]]
        if state.can[I if code % 8 == B else code % 8, code // 8 // ring.ranks]:
            state.place[rank] = (state.place[rank] + 1) % (orders.plan_ends[rank] - first)
        else:
            code = NONE
    else:
        cap, limit = orders.cap[rank], orders.limit[rank]
        what = _urgent(state.can[U], state.can[I])
        if what == NONE:
            what = _fill(state.can[F], state.can[W], state.chunk_held, state.chunk_ahead, cap, limit, state.chunk_pack)
        if what != NONE:
            code = 8 * (what // 8 * ring.ranks + rank) + what % 8
        # A W that has been begun goes on before another one begins.
        if state.group[rank] and (what == NONE or what % 8 == W):
            code = 8 * state.group_stage[rank] + W
        # Note what kept an F from running, from which the bounds grow.
        if orders.growth and (code == NONE or code % 8 == W):
            why = _held_back(state.can[F], state.chunk_held, state.chunk_ahead, cap, limit)
            state.forced[rank] += why == 1
            if code == NONE:
                state.limited[rank] = (state.idle_since[rank] >= 0 and state.limited[rank]) or why == 2
    return code


@inlined
def _begin(ring, orders, state, rank, code, now, log):
    """Begin an action; returns when the rank is free again."""
    m, s, kind = len(ring.sizes), code // 8, code % 8
    number = state.counts[s, I if kind == B else kind]
    # The rank's idle time ends.
    if state.idle_since[rank] >= 0:
        state.idle[rank] += now - state.idle_since[rank]
        state.limited_idle[rank] += (now - state.idle_since[rank]) * state.limited[rank]
        state.idle_since[rank] = -1.0
    # How long the action lasts, and for how many micro-batches.
    lasts, many = 0.0, 1
    if kind == B:
        lasts = ring.sizes[number % m] * (
            ring.seconds[s, I] * stretch(ring.jitter, ring.seed, s, I, number)
            + ring.seconds[s, W] * stretch(ring.jitter, ring.seed, s, W, number)
        )
    elif kind == W:
        lasts = _begin_weights(ring, orders, state, rank, s, number)
        many = state.group[rank]
    else:
        size = 1.0 if kind == U else ring.sizes[number % m]
        lasts = size * ring.seconds[s, kind] * stretch(ring.jitter, ring.seed, s, kind, number)
        if kind == F:
            state.counts[s, F] += 1
            state.held[rank] += 1
            state.peak_held[rank] = max(state.peak_held[rank], state.held[rank])
    # Account for it.
    state.busy[rank] += lasts
    state.doing[rank] = code
    row = state.actions[0]
    if row < len(log):
        log[row, 0], log[row, 1], log[row, 2] = s, kind, number
        log[row, 3], log[row, 4], log[row, 5] = now, now + lasts, many
    state.actions[0] += 1
    return now + lasts + ring.overhead


@inlined
def _begin_weights(ring, orders, state, rank, s, number):
    """Begin the W of a plan, or the next piece of a W of the rule; returns its seconds."""
    m, following = len(ring.sizes), len(orders.plan) > 0
    if state.group[rank] == 0:
        ready = min(orders.w_group, state.counts[s, I] - number, m - number % m)
        state.group[rank] = 1 if following else ready
        state.group_stage[rank], state.piece[rank] = s, ring.share_ends[s - 1] if s else 0
    lasts = 0.0
    for n in range(number, number + state.group[rank]):
        lasts += ring.sizes[n % m] * ring.seconds[s, W] * stretch(ring.jitter, ring.seed, s, W, n)
    if not following:
        lasts *= ring.shares[state.piece[rank]]
        state.piece[rank] += 1
    state.last_piece[rank] = following or state.piece[rank] == ring.share_ends[s]
    return lasts


@inlined
def _end(ring, orders, state, heap, rank, now):
    """End a rank's action: count it, send its message, and wake the receiver."""
    s, kind = state.doing[rank] // 8, state.doing[rank] % 8
    state.doing[rank] = NONE
    if kind == F:
        if s < ring.ranks * ring.chunks - 1:
            _send(ring, state, heap, rank, s, s + 1, RIGHT, now)
        else:  # the last stage makes its own gradient
            _send(ring, state, heap, rank, s, s, LEFT, now)
    elif kind == I or kind == B:  # noqa: SIM109 - compiled
        state.counts[s, I] += 1
        if s > 0:
            _send(ring, state, heap, rank, s, s - 1, LEFT, now)
    if kind == B:
        state.counts[s, W] += 1
        state.held[rank] -= 1
    elif kind == W and state.last_piece[rank]:
        state.counts[s, W] += state.group[rank]
        state.held[rank] -= state.group[rank]
        state.group[rank] = 0
    elif kind == U:
        step = state.counts[s, U]
        state.step_ends[step] = max(state.step_ends[step], now)
        state.counts[s, U] += 1
        if orders.growth and s < ring.ranks:
            _learn(orders, state, rank, now)


@inlined
def _send(ring, state, heap, rank, s, target, way, now):
    """Send the result of stage `s` to stage `target`: it takes its link as soon as that is free."""
    arrives, receiver = now, target % ring.ranks
    if receiver != rank:
        state.link_free[rank, way] = max(now, state.link_free[rank, way]) + ring.transfer[s, way]
        arrives = state.link_free[rank, way] + ring.latency
    state.arrives[target, way, state.sent[target, way] % state.arrives.shape[2]] = arrives
    state.sent[target, way] += 1
    if state.doing[receiver] == NONE and receiver != rank:
        schedule(heap, arrives, 2 * receiver + WAKES)


@inlined
def _learn(orders, state, rank, now):
    """Let a rank's bounds grow by what its step's waits say (`ringtmp.schedule.local_rule.adapt`)."""
    cap, limit, lasted = orders.cap[rank], orders.limit[rank], now - state.step_began[rank]
    idle, limited_idle, forced = state.idle[rank], state.limited_idle[rank], state.forced[rank]
    _adapt(cap, limit, orders.most, orders.growth, lasted, idle, limited_idle, forced)
    state.step_began[rank], state.idle[rank], state.limited_idle[rank], state.forced[rank] = now, 0.0, 0.0, 0


_BOUNDS = np.ones((2, 1), np.int64)
declare(  # one step of two micro-batches on two ranks
    "pipeline_clock",
    run,
    Ring(2, 1, 1, np.ones(2), np.ones((2, 4)), np.ones(2), np.arange(1, 3), 0.0, 0.0, np.zeros((2, 2)), 0.0, 0, 0),
    Orders(np.zeros(0, np.int64), np.zeros(2, np.int64), _BOUNDS, _BOUNDS.copy(), 1, 0, 1),
    np.zeros((0, 6)),
)

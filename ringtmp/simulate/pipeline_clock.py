"""The ring under a clock: a compiled event loop that runs plans and the local rule without a machine.

At each moment all ranks whose action ends or that a message wakes go through four phases: `_end` (the results of the
ended actions, all ranks first), `_receive` (the messages that have arrived, and what can run), `_choose` (plan or
rule), `_begin`. What they read and change is described in `ringtmp.simulate.pipeline_state`.

The heap holds one event for the end of each action and, for an idle rank, one for each message that may wake it; a
message to a busy rank is only a time of arrival in a ring buffer. 5 to 9 million actions a second on one core. The
plain twin, which does the same with records and lists, is `tests/support/naive_clock.py`.
"""

from functools import partial

import numpy as np

from ringtmp.action_kinds import B, F, I, U, W
from ringtmp.emulate.jitter import stretch
from ringtmp.kernels._jit import inlined, jit
from ringtmp.kernels.compilation import declare
from ringtmp.schedule.local_rule import NONE, adapt, fill, held_back, urgent
from ringtmp.simulate.event_heap import enlarged, new_heap, pop_event, push_event
from ringtmp.simulate.pipeline_state import ENDS, LEFT, RIGHT, WAKES, Floats, Ints, Orders, Ring, send, start

NEVER = np.inf
_urgent, _fill, _held_back, _adapt = jit(urgent), jit(fill), jit(held_back), jit(adapt)


def run(ring: Ring, orders: Orders, log: Floats) -> tuple[float, Floats, Ints, Floats, int]:
    """Run all steps.

    Parameters
    ----------
    ring : Ring
    orders : Orders
        Its `cap` and `limit` are changed in place.
    log : float64[n, 6]
        Filled with stage, kind, number, start, end and count of micro-batches of each action (of W: of each piece),
        as far as there are rows.

    Returns
    -------
    seconds : float
        When the last action ends; -1.0: the ranks wait for each other.
    busy, peak_held, step_ends, actions : float64[ranks], int64[ranks], float64[steps], int
        See `State`.
    """
    state, heap, active, now = start(ring), new_heap(16 * ring.ranks + 16), ring.ranks, 0.0
    while active > 0:
        now, active = _advance(ring, orders, state, heap, now, active, log)
        if active > 0:  # it returned because the heap may lack room for one more moment
            heap = enlarged(heap)
    finished = state.counts[:, U].min() == ring.steps
    return now if finished else -1.0, state.busy, state.peak_held, state.step_ends, int(state.actions[0])


@partial(jit, counts_references=False)
def _advance(ring, orders, state, heap, now, active, log):
    """Run from moment to moment until no event is left, or the heap is nearly full.

    Parameters
    ----------
    ring, orders, log
        See `run`.
    state : State
    heap : Heap
    now : float
        Time of the present moment, in seconds.
    active : int
        Number of ranks in `state.active`.

    Returns
    -------
    now : float
    active : int
        0: no event is left.
    """
    while heap.size[0] + 2 * ring.ranks <= len(heap.times):  # each rank adds at most two
        for n in range(active):
            rank = state.active[n]
            state.is_active[rank] = False
            if state.doing[rank] == NONE:
                wake = _receive(ring, orders, state, rank, now)
                code = _choose(ring, orders, state, rank)
                if code == NONE:
                    if wake < NEVER:
                        push_event(heap, wake, 2 * rank + WAKES)
                    if state.idle_since[rank] < 0:
                        state.idle_since[rank] = now
                else:
                    until = _begin(ring, orders, state, rank, code, now, log)
                    push_event(heap, until, 2 * rank + ENDS)
        active = 0
        if heap.size[0] == 0:
            break
        now = heap.times[0]
        while heap.size[0] > 0 and heap.times[0] <= _moment(now):
            event = pop_event(heap)
            rank = event // 2
            if not state.is_active[rank]:
                state.is_active[rank] = True
                state.active[active] = rank
                active += 1
            if event % 2 == ENDS:
                _end(ring, orders, state, heap, rank, now)
    return now, active


@inlined
def _moment(now):
    """Latest time that counts as `now`: sums of the same durations in another order differ by their rounding."""
    return now * (1.0 + 1e-12) + 1e-15


@inlined
def _receive(ring, orders, state, rank, now):
    """Note which messages have arrived at an idle rank and what can run; returns when the next message arrives."""
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
        # Continue a W that has begun before another one.
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
    # End the rank's idle time.
    if state.idle_since[rank] >= 0:
        state.idle[rank] += now - state.idle_since[rank]
        state.limited_idle[rank] += (now - state.idle_since[rank]) * state.limited[rank]
        state.idle_since[rank] = -1.0
    # Find how long the action lasts, and for how many micro-batches.
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
    # Account for the action.
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
            send(ring, state, heap, rank, s, s + 1, RIGHT, now)
        else:  # the last stage makes its own gradient
            send(ring, state, heap, rank, s, s, LEFT, now)
    elif kind == I or kind == B:  # noqa: SIM109 - compiled
        state.counts[s, I] += 1
        if s > 0:
            send(ring, state, heap, rank, s, s - 1, LEFT, now)
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
def _learn(orders, state, rank, now):
    """Adapt a rank's bounds to the idle time of its step (`ringtmp.schedule.local_rule.adapt`)."""
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

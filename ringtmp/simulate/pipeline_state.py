"""What the ring's clock works on: the simulated ring, the orders, the state, and the messages between stages.

Times are seconds. Stages are numbered along the chain (stage `s` lives on rank `s % ranks`), micro-batches are counted
on from step to step, and an action is coded as 8 x stage + kind (`ringtmp.action_kinds`).

Compiled code that is kept between runs depends on the order of the fields below. Numba does not see it; but the loop in
`ringtmp.simulate.pipeline_clock` calls `send`, and is therefore compiled again after any change of this file.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringtmp.kernels._jit import inlined
from ringtmp.schedule.local_rule import NONE
from ringtmp.simulate.event_heap import push_event

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RIGHT, LEFT = range(2)  # ways of a message: an activation to the next stage, a gradient to the one before
ENDS, WAKES = range(2)  # events of a rank, coded as 2 x rank + event: its action ends; a message reaches the idle rank


class Ring(NamedTuple):
    """The simulated ring of ranks; does not change.

    Attributes
    ----------
    ranks, chunks : int
        Stages are `ranks` x `chunks`.
    steps : int
        Optimizer steps, chained.
    sizes : float64[m]
        Size of each micro-batch of a step; 1.0: a whole one.
    seconds : float64[stages, 4]
        Of F, I, W and U of each stage, for a whole micro-batch.
    shares, share_ends : float64[pieces], int64[stages]
        The pieces of each stage's W (its layers) as shares of it, stage after stage; where each stage's pieces end.
    overhead : float
        Seconds that a rank spends after each action before it can begin the next one.
    latency : float
        Seconds that a message is under way after it has left its link.
    transfer : float64[stages, 2]
        Seconds for which the activation of a stage (`RIGHT`) and its gradient (`LEFT`) occupy a link.
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
    """What decides which action runs next: a plan, or the local rule; only `cap` and `limit` change.

    Attributes
    ----------
    plan, plan_ends : int64[actions], int64[ranks]
        Coded actions of one step, rank after rank, and where each rank's end; no actions: the local rule decides.
    cap, limit : int64[ranks, chunks]
        The rule's bounds of micro-batches held, and ahead (`ringtmp.schedule.local_rule.fill`); they grow in place.
    most : int
        Upper bound of `cap` and `limit`.
    growth : int
        By how much they grow at a time; 0: they do not grow.
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


def start(ring: Ring) -> State:
    """The state at time 0: all activations of the first stage have arrived, and every rank chooses its first action."""
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
def send(ring, state, heap, rank, s, target, way, now):
    """Send the result of a stage to another stage; the message occupies its link as soon as that is free.

    Parameters
    ----------
    ring : Ring
    state : State
    heap : Heap
        Gets an event for a receiver that is idle.
    rank, s : int
        The rank that sends, and its stage.
    target : int
        The stage that receives; it may be on the same rank.
    way : int
        `RIGHT` or `LEFT`.
    now : float
        Seconds.
    """
    arrives, receiver = now, target % ring.ranks
    if receiver != rank:
        state.link_free[rank, way] = max(now, state.link_free[rank, way]) + ring.transfer[s, way]
        arrives = state.link_free[rank, way] + ring.latency
    state.arrives[target, way, state.sent[target, way] % state.arrives.shape[2]] = arrives
    state.sent[target, way] += 1
    if state.doing[receiver] == NONE and receiver != rank:
        push_event(heap, arrives, 2 * receiver + WAKES)

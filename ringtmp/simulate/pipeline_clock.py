"""The ring under a clock: a compiled event loop that runs plans and the local rule without a machine.

Times are seconds, stages are numbered along the chain (stage `s` lives on rank `s % ranks`), and micro-batches are
counted on from step to step. There is one event for each action and, if a rank stands idle, one for the message that
wakes it: messages that find their receiver busy are only a time of arrival in a ring buffer. 5 to 7 million actions a
second on one core.
"""

import numpy as np

from kernels._jit import jit
from kernels.registry import declare
from ringtmp.emulate.jitter import stretch
from ringtmp.schedule.local_rule import NONE, B, F, I, U, W, adapt, fill, held_back, urgent

NEVER = np.inf
_urgent, _fill, _held_back, _adapt = jit(urgent), jit(fill), jit(held_back), jit(adapt)


@jit
def push(times, who, count, time, rank):
    """Put an event on a binary heap; returns how many there are."""
    i = count
    while i > 0:
        parent = (i - 1) // 2
        if times[parent] <= time:
            break
        times[i], who[i] = times[parent], who[parent]
        i = parent
    times[i], who[i] = time, rank
    return count + 1


@jit
def pop(times, who, count):
    """Take the earliest event off; returns how many are left."""
    count -= 1
    time, rank = times[count], who[count]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= count:
            break
        if child + 1 < count and times[child + 1] < times[child]:
            child += 1
        if times[child] >= time:
            break
        times[i], who[i] = times[child], who[child]
        i = child
    times[i], who[i] = time, rank
    return count


@jit
def run(
    ranks,
    chunks,
    sizes,
    steps,
    seconds,
    shares,
    share_ends,
    overhead,
    latency,
    transfer,
    jitter,
    seed,
    plan,
    plan_ends,
    cap,
    limit,
    most,
    by,
    lag,
    w_group,
    log,
):
    """Run `steps` chained steps and return what came of it.

    Parameters
    ----------
    ranks, chunks, steps : int
    sizes : float64[m]
        Size of each micro-batch of a step, 1.0 for a whole one.
    seconds : float64[stages, 4]
        Of F, I, W and U of each stage, for a whole micro-batch.
    shares, share_ends : float64[], int64[stages]
        The pieces of each stage's W (its layers) as shares of it, stage after stage, and where each stage's end.
    overhead : float
        Seconds a rank spends beside each action.
    latency : float
        Seconds a message is under way.
    transfer : float64[stages, 2]
        Seconds a link is taken by the activation that a stage sends on, and by the gradient that it sends back.
    jitter, seed : float, int
        Durations vary by a factor uniform in 1 +- jitter.
    plan, plan_ends : int64[], int64[ranks]
        Actions of one step, 8 x stage + kind, rank after rank; empty for the local rule.
    cap, limit : int64[ranks, chunks]
        Bounds of the rule; grow in place.
    most, by : int
        What they grow to, and by how much at a time (0: they stay).
    lag : int
        0: F needs the update of the step before; 1: that of the step before that one (2BW).
    w_group : int
        Most micro-batches that one W of the rule takes together.
    log : float64[n, 6]
        Filled with stage, kind, number, start, end and count of each action (of W: each piece) while there is room.

    Returns
    -------
    tuple
        Seconds until all is done (-1.0: stuck); busy seconds of each rank; most micro-batches held by each rank; end
        of each step; actions run; rows of `log`.
    """
    stages, m = ranks * chunks, len(sizes)
    total, room = steps * m, 4
    while room < min(total, 4 * m) + 4:
        room *= 2
    done = np.zeros((stages, 4), np.int64)  # F begun; I, W, U done
    due = np.zeros((stages, 2, room))  # when the n-th activation, gradient of a stage arrives
    sent, seen = np.zeros((stages, 2), np.int64), np.zeros((stages, 2), np.int64)
    sent[0, 0] = seen[0, 0] = total
    free = np.zeros((ranks, 2))  # when a rank's link to the right, to the left is free
    doing = np.full(ranks, NONE, np.int64)  # 8 x stage + kind
    group, group_stage = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)  # micro-batches of the W under way
    piece, place = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    busy, now_held, peak = np.zeros(ranks), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    since, pressed = np.full(ranks, -1.0), np.zeros(ranks, np.bool_)  # idle since; an F at hand
    idle, back, forced, began = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks, np.int64), np.zeros(ranks)
    ends = np.zeros(steps)
    times, who, events = np.zeros(16 * ranks + 16), np.zeros(16 * ranks + 16, np.int64), 0
    batch, batched, waiting = np.arange(ranks), np.ones(ranks, np.bool_), ranks
    can = np.zeros((4, chunks), np.bool_)
    held, ahead, pack = np.zeros(chunks, np.int64), np.zeros(chunks, np.int64), np.zeros(chunks, np.int64)
    now, count, rows = 0.0, 0, 0
    while True:
        if events + 2 * ranks > len(times):  # until the next look here each rank adds two at most
            times, who = np.concatenate((times, np.zeros_like(times))), np.concatenate((who, np.zeros_like(who)))
        same = now * (1.0 + 1e-12) + 1e-15  # nearer than this is one moment
        for b in range(waiting):
            r = batch[b]
            batched[r] = False
            if doing[r] != NONE:
                continue
            first = plan_ends[r - 1] if r else 0
            following = plan_ends[r] > first
            wake = NEVER
            for c in range(chunks):
                s = c * ranks + r
                for way in range(2):
                    while seen[s, way] < sent[s, way] and due[s, way, seen[s, way] % room] <= same:
                        seen[s, way] += 1
                    if seen[s, way] < sent[s, way]:
                        wake = min(wake, due[s, way, seen[s, way] % room])
                can[F, c] = done[s, F] < min(seen[s, 0], (done[s, U] + 1 + lag) * m, total)
                can[I, c] = done[s, I] < seen[s, 1]
                can[W, c] = done[s, W] < done[s, I] and done[s, W] < (done[s, U] + 1) * m
                can[U, c] = done[s, W] == (done[s, U] + 1) * m
                if not following:
                    held[c], ahead[c] = done[s, F] - done[s, W], done[s, F] - done[s, I]
                    pack[c] = done[s, F] // ranks
            code = NONE
            if following:
                code = plan[first + place[r]]
                if can[I if code % 8 == B else code % 8, code // 8 // ranks]:
                    place[r] = (place[r] + 1) % (plan_ends[r] - first)
                else:
                    code = NONE
            else:
                what = _urgent(can[U], can[I])
                if what == NONE:
                    what = _fill(can[F], can[W], held, ahead, cap[r], limit[r], pack)
                if what != NONE:
                    code = 8 * (what // 8 * ranks + r) + what % 8
                if group[r] and (what == NONE or what % 8 == W):
                    code = 8 * group_stage[r] + W
                if by and (code == NONE or code % 8 == W):
                    why = _held_back(can[F], held, ahead, cap[r], limit[r])
                    forced[r] += why == 1
                    if code == NONE:
                        pressed[r] = (since[r] >= 0 and pressed[r]) or why == 2
            if code == NONE:
                if wake < NEVER:
                    events = push(times, who, events, wake, r + ranks)
                if since[r] < 0:
                    since[r] = now
                continue
            if since[r] >= 0:
                idle[r] += now - since[r]
                back[r] += (now - since[r]) * pressed[r]
                since[r] = -1.0
            s, kind = code // 8, code % 8
            number = done[s, I if kind == B else kind]
            lasts, many = 0.0, 1
            if kind == B:
                lasts = sizes[number % m] * (
                    seconds[s, I] * stretch(jitter, seed, s, I, number)
                    + seconds[s, W] * stretch(jitter, seed, s, W, number)
                )
            elif kind == W:
                if not group[r]:
                    group[r] = 1 if following else min(w_group, done[s, I] - number, m - number % m)
                    group_stage[r], piece[r] = s, share_ends[s - 1] if s else 0
                many = group[r]
                for n in range(many):
                    lasts += sizes[(number + n) % m] * seconds[s, W] * stretch(jitter, seed, s, W, number + n)
                if not following:
                    lasts *= shares[piece[r]]
                    piece[r] += 1
                if following or piece[r] == share_ends[s]:
                    group[r] = -group[r]  # its last piece
            else:
                size = 1.0 if kind == U else sizes[number % m]
                lasts = size * seconds[s, kind] * stretch(jitter, seed, s, kind, number)
                if kind == F:
                    done[s, F] += 1
                    now_held[r] += 1
                    peak[r] = max(peak[r], now_held[r])
            busy[r] += lasts
            doing[r] = code
            count += 1
            if rows < len(log):
                log[rows, 0], log[rows, 1], log[rows, 2] = s, kind, number
                log[rows, 3], log[rows, 4], log[rows, 5] = now, now + lasts, many
                rows += 1
            events = push(times, who, events, now + lasts + overhead, r)
        if events == 0:
            break
        now = times[0]
        same = now * (1.0 + 1e-12) + 1e-15
        waiting = 0
        while events > 0 and times[0] <= same:
            r = who[0]
            events = pop(times, who, events)
            woken = r >= ranks
            r %= ranks
            if not batched[r]:
                batched[r] = True
                batch[waiting] = r
                waiting += 1
            if woken:
                continue
            s, kind = doing[r] // 8, doing[r] % 8
            doing[r] = NONE
            way, target = NONE, s
            if kind == F:
                way, target = (0, s + 1) if s < stages - 1 else (1, s)
            elif kind == I or kind == B:  # noqa: SIM109 - compiled
                done[s, I] += 1
                if s > 0:
                    way, target = 1, s - 1
            if way != NONE:
                arrives, other = now, target % ranks
                if other != r:
                    free[r, way] = max(now, free[r, way]) + transfer[s, way]
                    arrives = free[r, way] + latency
                due[target, way, sent[target, way] % room] = arrives
                sent[target, way] += 1
                if doing[other] == NONE and other != r:
                    events = push(times, who, events, arrives, other + ranks)
            if kind == B:
                done[s, W] += 1
                now_held[r] -= 1
            elif kind == W and group[r] < 0:
                done[s, W] -= group[r]
                now_held[r] += group[r]
                group[r] = 0
            elif kind == U:
                ends[done[s, U]] = max(ends[done[s, U]], now)
                done[s, U] += 1
                if by and s < ranks:
                    _adapt(cap[r], limit[r], most, by, now - began[r], idle[r], back[r], forced[r])
                    began[r], idle[r], back[r], forced[r] = now, 0.0, 0.0, 0
    finished = done[:, U].min() == steps
    return now if finished else -1.0, busy, peak, ends, count, rows


_BOUNDS = np.ones((2, 1), np.int64)
declare(  # two micro-batches on two ranks
    "clock",
    run,
    2,
    1,
    np.ones(2),
    1,
    np.ones((2, 4)),
    np.ones(2),
    np.arange(1, 3),
    0.0,
    0.0,
    np.zeros((2, 2)),
    0.0,
    0,
    np.zeros(0, np.int64),
    np.zeros(2, np.int64),
    _BOUNDS,
    _BOUNDS.copy(),
    1,
    0,
    0,
    1,
    np.zeros((0, 6)),
)

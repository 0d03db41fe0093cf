"""The local rule: what a rank of the ring runs next, from what has arrived and from its own counters alone.

Plain functions on short sequences with one entry for each chunk (stage) of the rank. The engine calls them as they are,
the simulator (`ringtmp.simulate.pipeline_clock`) compiles them: a simulation asks the code that trains.
"""

from ringtmp.action_kinds import F, I, U, W

NONE = -1  # nothing can run

TOLERATED_IDLE = 0.02  # share of a step that a rank may be idle before its limits grow


def urgent(can_u, can_i):
    """Choose U if one can run, else I: 8 x chunk + kind (`ringtmp.action_kinds`), or `NONE`.

    Parameters
    ----------
    can_u, can_i : sequences of bool
        Whether each chunk has all that its next U, and its next I, needs.
    """
    for c in range(len(can_u)):
        if can_u[c]:
            return 8 * c + U
    for c in range(len(can_i) - 1, -1, -1):
        if can_i[c]:
            return 8 * c + I
    return NONE


def fill(can_f, can_w, held, ahead, cap, limit, pack):
    """Where neither U nor I can run, choose F within the limits, else W: 8 x chunk + kind, or `NONE`.

    No other rank waits for W, so W fills the time in which nothing else can run. Measured and worse: F before I, W
    before F, and keeping W for the gap at the end of a step. The limits keep a rank from running so far ahead that
    activations whose gradients are far away fill its memory and delay the gradients of all ranks.

    Parameters
    ----------
    can_f, can_w : sequences of bool
        Whether each chunk has all that its next F, and its next W, needs.
    held, ahead : sequences of int
        Micro-batches with F begun and W not ended; with F begun and I not ended.
    cap, limit : sequences of int
        Bounds of `held` and of `ahead`; at least 1.
    pack : sequence of int
        Number of the pack of micro-batches to which each chunk's next F belongs. The lowest goes first, so that a
        chunk does not run long before its successors.
    """
    best = NONE
    for c in range(len(can_f)):
        if can_f[c] and held[c] < cap[c] and ahead[c] < limit[c] and (best == NONE or pack[c] < pack[best]):
            best = c
    if best != NONE:
        return 8 * best + F
    for c in range(len(can_w) - 1, -1, -1):  # the first chunk's W last: its backlog is the longest-lived filler
        if can_w[c]:
            return 8 * c + W
    return NONE


def held_back(can_f, held, ahead, cap, limit):
    """Find what keeps an F that could run from running: 0 nothing, 1 `cap`, 2 `limit`.

    See `fill` for the parameters.
    """
    found = 0
    for c in range(len(can_f)):
        if can_f[c] and (held[c] >= cap[c] or ahead[c] >= limit[c]):
            found = max(found, 2 if ahead[c] >= limit[c] else 1)
    return found


def adapt(cap, limit, most, growth, lasted, idle, limited_idle, forced):
    """Let a rank's limits grow by what its last step has shown; in place.

    A rank that was idle while `limit` forbade an F may run further ahead: the way to the last rank and back is longer
    than the limit allows for (latency, slow or jittery neighbours). `cap` is then raised to `limit` where it is below,
    since a micro-batch that is ahead is held too. A rank that was idle after `cap` had forced it to run W early may
    hold more: it lacks W to fill its gaps. Both grow only if more than `TOLERATED_IDLE` of the step was lost, since
    limits above what the way needs cost time as well: an F that runs early delays an I, and the delay travels on.

    Parameters
    ----------
    cap, limit : sequences of int
        Bounds of the micro-batches held, and ahead, of each chunk (`fill`).
    most : int
        Bound of both; at least 1.
    growth : int
        How much they grow at a time; at least 1.
    lasted, idle, limited_idle : float
        How long the step lasted, time idle in it, and time idle while `limit` forbade an F; all in one unit.
    forced : int
        How often `cap` forbade an F in the step.
    """
    for c in range(len(cap)):
        if limited_idle > TOLERATED_IDLE * lasted:
            limit[c] = min(limit[c] + growth, most)
            cap[c] = max(cap[c], limit[c])
        if forced and idle > TOLERATED_IDLE * lasted:
            cap[c] = min(cap[c] + growth, most)


def default_most(ranks, w_group=1):
    """Most micro-batches that a chunk may hold where `in_flight` is not set, in training and in simulation.

    Parameters
    ----------
    ranks : int
        Of the ring; at least 1.
    w_group : int
        Most micro-batches that one W takes; at least 1.
    """
    return max(3 * ranks, w_group)


def default_growth(ranks):
    """By how much the limits grow at a time (`adapt`), on a ring of `ranks` ranks."""
    return max(1, ranks // 4)


def first_limits(ranks, chunks, rank, micro_batches, most, w_group=1):
    """Limits that a rank starts with: (cap, limit), lists of int with an entry for each chunk.

    An activation goes to the last stage and its gradient comes back, at one F a hop. With one chunk `limit` is
    therefore 2 x (stages to the right) + 1, and one more where `micro_batches` >= 2 x `ranks`. With several chunks,
    which share the rank's time, it is 3 x (stages to the right) / `chunks`, rounded up, + 2. `cap` is 2 x `ranks`, or
    `w_group` if that is larger. `micro_batches` and `most` bound both. `jobs/experiments/limits.py` shows what other
    limits give.

    Parameters
    ----------
    ranks, chunks, rank : int
        Ranks of the ring, stages of each, and this rank.
    micro_batches : int
        Most micro-batches under way at once; at least 1.
    most : int
        Bound of both; at least 1.
    w_group : int
        Most micro-batches that one W takes; at least 1.
    """
    stages, enough = ranks * chunks, micro_batches >= 2 * ranks
    cap, limit = [], []
    for c in range(chunks):
        right = stages - 1 - (c * ranks + rank)
        reach = 2 * right + 1 + enough if chunks == 1 else -(-3 * right // chunks) + 2
        cap.append(max(1, min(max(2 * ranks, w_group), micro_batches, most)))
        limit.append(max(1, min(reach, micro_batches, most)))
    return cap, limit


def fixed_limits(ranks, chunks, rank, micro_batches, most, ahead):
    """Limits that stay: (cap, limit), lists of int with an entry for each chunk.

    Parameters
    ----------
    ranks, chunks, rank, micro_batches, most : int
        See `first_limits`; `cap` is `most`.
    ahead : float
        `limit` is `ahead` x (stages to the right) / `chunks`, rounded down, + 1; above 0.
    """
    cap, limit = [], []
    for c in range(chunks):
        right = ranks * chunks - 1 - (c * ranks + rank)
        cap.append(max(1, min(micro_batches, most)))
        limit.append(max(1, min(int(ahead * right / chunks) + 1, micro_batches, most)))
    return cap, limit

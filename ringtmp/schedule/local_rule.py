"""The local rule: what a rank of the ring runs next, from what has arrived and from its own counters alone.

Plain functions on short sequences, one entry for each chunk of the rank. The engine calls them as they stand here, the
clock (`ringtmp.simulate.pipeline_clock`) calls them compiled: a simulation asks the very code that trains.
"""

F, I, W, U, B = range(5)  # noqa: E741 - the field's names; B is I and W as one action
KINDS = "FIWUB"
NONE = -1

IDLE = 0.02  # share of a step that may be lost before a limit grows


def urgent(can_u, can_i):
    """U if one is due, else I if its gradient is here: 8 x chunk + kind, or -1 if neither.

    Parameters
    ----------
    can_u, can_i : sequences of bool
        Whether the next U, I of each chunk has all that it needs.
    """
    for c in range(len(can_u)):
        if can_u[c]:
            return 8 * c + U
    for c in range(len(can_i) - 1, -1, -1):
        if can_i[c]:
            return 8 * c + I
    return NONE


def fill(can_f, can_w, held, ahead, cap, limit, pack):
    """With nothing urgent: F within limits, else W. 8 x chunk + kind, or -1 if nothing can run.

    W waits for nobody, so it fills the time in which nothing else can run; F before I, or W before F, lose, and so does
    keeping W back for the gap at the end of a step. The limits keep a rank from running so far ahead that activations
    whose gradients are far away fill its memory and delay everybody's gradients.

    Parameters
    ----------
    can_f, can_w : sequences of bool
    held, ahead : sequences of int
        Micro-batches with F begun and W not done; with F begun and I not done.
    cap, limit : sequences of int
        Bounds of `held` and of `ahead`.
    pack : sequence of int
        Which pack of micro-batches the next F belongs to: they go round in packs, so that a chunk is not fed long
        before its successors.
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
    """What keeps a ready F from running: 0 nothing, 1 `cap` (W had to come first), 2 `limit`."""
    found = 0
    for c in range(len(can_f)):
        if can_f[c] and (held[c] >= cap[c] or ahead[c] >= limit[c]):
            found = max(found, 2 if ahead[c] >= limit[c] else 1)
    return found


def adapt(cap, limit, most, by, gone, idle, back, forced):
    """Let the limits grow by what a rank's own last step taught it; in place.

    A rank that stood idle with an F at hand which `limit` forbade may run further ahead: the way to the last rank and
    back is longer than the limit allows for (latency, slow or jittery neighbours). One that stood idle after `cap` had
    forced it to run W early may hold more: it lacks W to fill its gaps. Both only beyond `IDLE` of the step, since
    limits above what the way needs cost time as well: an F taken early delays an I, and the delay runs on.

    Parameters
    ----------
    cap, limit : sequences of int
    most : int
        Bound of both.
    by : int
        What they grow by.
    gone, idle, back : float
        Length of the step, time idle in it, and time idle while `limit` forbade an F.
    forced : int
        How often `cap` forbade an F.
    """
    for c in range(len(cap)):
        if back > IDLE * gone:
            limit[c] = min(limit[c] + by, most)
            cap[c] = max(cap[c], limit[c])
        if forced and idle > IDLE * gone:
            cap[c] = min(cap[c] + by, most)


def first_limits(ranks, chunks, rank, micro_batches, most, w_group=1):
    """Limits that a rank starts with: (cap, limit) of each chunk, `most` and `micro_batches` at most.

    Twice the stages to the right: an activation goes there and its gradient comes back, at one F a hop. The sweep in
    `jobs/experiments/limits.py` shows what other limits give. A W that takes `w_group` micro-batches needs them held.
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
    """Limits that stay: hold `most`, and run `ahead` forwards, and one, ahead for each stage to the right."""
    cap, limit = [], []
    for c in range(chunks):
        right = ranks * chunks - 1 - (c * ranks + rank)
        cap.append(max(1, min(micro_batches, most)))
        limit.append(max(1, min(int(ahead * right / chunks) + 1, micro_batches, most)))
    return cap, limit

"""1F1B and its interleaved form: a rank alternates one forward and one backward once the pipeline is full."""

from ringtmp.schedule.plan import Plan, make_plan
from ringtmp.schedule.registry import Schedule, add


def one_f_one_b(p: int, m: int, v: int = 1) -> Plan:
    """Fill the pipeline with as few forwards as possible, then run one backward for one forward.

    PipeDream-flush (Narayanan et al. 2021, "Memory-Efficient Pipeline-Parallel DNN Training"). Rank r holds p - r
    activations.

    Parameters
    ----------
    p, m, v : int
        Ranks and micro-batches of a step, at least 1; `v` is 1.
    """

    def order(rank: int) -> list[str]:
        return [f"{c}{kind}{j}" for c, kind, j in _alternate(p, m, 1, min(m, p - 1 - rank))]

    return make_plan("1f1b", p, m, 1, order)


def interleaved(p: int, m: int, v: int = 2) -> Plan:
    """1F1B with `v` stages a rank: activations go round the ring `v` times (Narayanan et al. 2021, section 2.2).

    The paper is "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM". Micro-batches go in
    packs of p through one stage after the other, so that the fill takes 1 / v of the time. Where p does not divide m
    the last pack is completed, and the actions of micro-batches that do not exist are left out afterwards: an order in
    which no rank waits for ever stays one when actions are left out.

    Parameters
    ----------
    p, m, v : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.
    """
    if v == 1:
        return Plan("interleaved", m, p, one_f_one_b(p, m).ranks)
    full = -(-m // p) * p

    def order(rank: int) -> list[str]:
        words = _alternate(p, full, v, min(v * full, (v - 1) * p + 2 * (p - 1 - rank)))
        return [f"{c}{kind}{j}" for c, kind, j in words if j < m]

    return make_plan("interleaved", p, m, v, order)


def _alternate(p: int, m: int, v: int, warm: int) -> list[tuple[int, str, int]]:
    """`warm` forwards, then one forward and one backward in turn, then the backwards that remain.

    Each is (stage of the rank, kind, micro-batch).
    """
    packs = [range(start, min(start + p, m)) for start in range(0, m, p)]
    forward = [(c, "F", j) for pack in packs for c in range(v) for j in pack]
    backward = [(c, "B", j) for pack in packs for c in reversed(range(v)) for j in pack]
    words = forward[:warm]
    for pair in zip(forward[warm:], backward, strict=False):
        words += pair
    return words + backward[len(forward) - warm :]


add(Schedule("1f1b", one_f_one_b))
add(Schedule("interleaved", interleaved, takes_chunks=True, default_chunks=2))

"""Zero-bubble plans (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): W is put off into the gaps."""

from ringtmp.schedule.lock_step import duration, record
from ringtmp.schedule.plan import Plan, make_plan
from ringtmp.schedule.registry import Schedule, add


def zb_h1(p: int, m: int, v: int = 1) -> Plan:
    """Zero bubble with the memory of 1F1B: rank r puts W off by r micro-batches.

    Section 2.1 of the paper: a bubble of (p - 1)(F + I - W).

    Parameters
    ----------
    p, m, v : int
        Ranks and micro-batches of a step, at least 1; `v` is 1.
    """
    return make_plan("zb-h1", p, m, 1, lambda rank: _put_off(m, p - rank, rank))


def zb_h2(p: int, m: int, v: int = 1) -> Plan:
    """Zero bubble with twice that memory, 2 p - 1 activations: no bubble once steps chain and m >= 2 p - 1.

    With more micro-batches than ranks but fewer than that it is still the best plan known for chained steps
    (`jobs/experiments/optimum.py`), although a single step takes longer; with at most p it is ZB-H1.

    Parameters
    ----------
    p, m, v : int
        Ranks and micro-batches of a step, at least 1; `v` is 1.
    """
    if m <= p:
        return Plan("zb-h2", m, p, zb_h1(p, m).ranks)
    return make_plan("zb-h2", p, m, 1, lambda rank: _put_off(m, 2 * (p - 1 - rank) + 1, 2 * rank))


def _put_off(m: int, warm: int, lag: int) -> list[str]:
    """`warm` forwards; then I, the W of `lag` micro-batches before, and F; at last the W that remain."""
    words = [f"0F{j}" for j in range(min(m, warm))]
    for j in range(m):
        words.append(f"0I{j}")
        words += [f"0W{j - lag}"] * (j >= lag) + [f"0F{j + warm}"] * (j + warm < m)
    return words + [f"0W{j}" for j in range(max(0, m - lag), m)]


def interleaved_zb(p: int, m: int, v: int = 2) -> Plan:
    """Zero bubble with `v` stages a rank: the local rule written down where all actions take equally long.

    Twelve limits within 2 p activations a stage are tried; the plan whose chained steps are shortest is taken.

    Parameters
    ----------
    p, m, v : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.
    """
    best: Plan | None = None
    shortest = float("inf")
    for slope in (1.0, 1.5, 2.0, 3.0):
        for base in (1, 2, 3):
            limit = [[int(slope * (p * (v - c) - 1 - rank) / v) + base for c in range(v)] for rank in range(p)]
            plan = record("interleaved-zb", p, m, v, cap=2 * p, limit=limit)
            ticks = duration(plan, steps=4)
            if best is None or ticks < shortest * 0.999:
                best, shortest = plan, ticks
    assert best
    return best


add(Schedule("zb-h1", zb_h1))
add(Schedule("zb-h2", zb_h2))
add(Schedule("interleaved-zb", interleaved_zb, takes_chunks=True, default_chunks=2))

"""Plans without overlap of forward and backward: naive model parallelism and GPipe."""

from ringtmp.schedule.plan import Plan, make_plan
from ringtmp.schedule.registry import Schedule, add


def naive(p: int, m: int, v: int = 1) -> Plan:
    """Send one micro-batch at a time all the way forward and back: one rank works, the others wait.

    Parameters
    ----------
    p, m, v : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.
    """
    return make_plan("naive", p, m, v, lambda rank: [f"{c}{kind}{j}" for j in range(m) for kind, c in _both_ways(v)])


def gpipe(p: int, m: int, v: int = 1) -> Plan:
    """Run all forwards, then all backwards (Huang et al. 2019). A stage holds m activations.

    Parameters
    ----------
    p, m, v : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.
    """
    return make_plan("gpipe", p, m, v, lambda rank: [f"{c}{kind}{j}" for kind, c in _both_ways(v) for j in range(m)])


def _both_ways(v: int) -> list[tuple[str, int]]:
    return [("F", c) for c in range(v)] + [("B", c) for c in reversed(range(v))]


add(Schedule("naive", naive, takes_chunks=True))
add(Schedule("gpipe", gpipe, takes_chunks=True))

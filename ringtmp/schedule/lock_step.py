"""The local rule in lock step: all actions but U take one tick, messages and U take none.

A plan is made by writing down what the rule does in one step (`record`); `duration` says how long chained steps of a
plan take. Both need no clock, since all ranks begin and end their actions at the same moments.
"""

from collections.abc import Sequence

from ringtmp.action_kinds import KINDS, U
from ringtmp.schedule.local_rule import NONE, fill, urgent
from ringtmp.schedule.plan import Action, Plan


class _Counters:
    """Counters of the actions that have ended, by kind and stage."""

    def __init__(self, p: int, m: int, v: int) -> None:
        self.p, self.m, self.v, self.stages = p, m, v, p * v
        self.done = [[0] * self.stages for _ in range(4)]

    def choose(self, rank: int, cap: Sequence[int], limit: Sequence[int]) -> int:
        """What the rule lets a rank run next: 8 x chunk + kind, or -1."""
        (f, i, w, u), mine = self.done, range(rank, self.stages, self.p)
        can_u = [w[s] == self.m and not u[s] for s in mine]
        can_i = [i[s] < (f[s] if s == self.stages - 1 else i[s + 1]) for s in mine]
        what = urgent(can_u, can_i)
        if what != NONE:
            return what
        can_f = [f[s] < (f[s - 1] if s else self.m) for s in mine]
        can_w = [w[s] < i[s] for s in mine]
        held, ahead = [f[s] - w[s] for s in mine], [f[s] - i[s] for s in mine]
        return fill(can_f, can_w, held, ahead, cap, limit, [f[s] // self.p for s in mine])


def record(name: str, p: int, m: int, v: int, cap: int, limit: Sequence[Sequence[int]]) -> Plan:
    """Write down what the local rule does in one step under fixed limits.

    Parameters
    ----------
    name : str
        Of the plan.
    p, m, v : int
        Ranks, micro-batches of a step, stages of each rank; at least 1.
    cap : int
        Most micro-batches that each stage holds between F and W; at least 1.
    limit : sequence of sequences of int
        For each rank and each of its stages: most micro-batches between F and I; at least 1.
    """
    counters, caps = _Counters(p, m, v), [cap] * v
    words: list[list[Action]] = [[] for _ in range(p)]
    idle = False
    while not idle:
        # Choose for all ranks by what had ended before this tick; a U takes no time, so its rank chooses again.
        begun = []
        for rank in range(p):
            what = counters.choose(rank, caps, limit[rank])
            while what != NONE and what % 8 == U:
                stage = what // 8 * p + rank
                counters.done[U][stage] = 1
                words[rank].append(Action(stage, "U"))
                what = counters.choose(rank, caps, limit[rank])
            if what != NONE:
                begun.append((rank, what // 8 * p + rank, what % 8))
        # End them all.
        for rank, stage, kind in begun:
            words[rank].append(Action(stage, KINDS[kind], counters.done[kind][stage]))
            counters.done[kind][stage] += 1
        idle = not begun
    return Plan(name, m, p * v, tuple(map(tuple, words)))


def duration(plan: Plan, steps: int) -> int:
    """Compute how many ticks `steps` chained steps of a plan take.

    Parameters
    ----------
    plan : Plan
        Of the kinds F, I, W and U; one that `ringtmp.schedule.check.check` accepts.
    steps : int
        At least 1. A stage's forwards wait for its own update of the step before, for no other.
    """
    p, last, m = len(plan.ranks), plan.stages - 1, plan.micro_batches
    # Tick at which each F and each I ended, by stage and number; -1: not known yet.
    forward, backward = ([[-1] * (steps * m) for _ in range(plan.stages)] for _ in range(2))
    place, now, moved = [0] * p, [0] * p, True
    while moved:
        moved = False
        for rank, actions in enumerate(plan.ranks):
            # Follow the rank until it waits for a message whose time is not known yet.
            while place[rank] < steps * len(actions):
                step, index = divmod(place[rank], len(actions))
                stage, kind, micro_batch = actions[index]
                number, ready = step * m + micro_batch, 0
                if kind == "F" and stage:
                    ready = forward[stage - 1][number]
                elif kind == "I":
                    ready = forward[stage][number] if stage == last else backward[stage + 1][number]
                if ready < 0:
                    break
                if kind != "U":
                    now[rank] = max(now[rank], ready) + 1
                if kind in "FI":
                    (forward if kind == "F" else backward)[stage][number] = now[rank]
                place[rank] += 1
                moved = True
    return max(now)

"""The local rule, the plan follower and the asynchronous stream, asked about made-up situations."""

from types import SimpleNamespace

import pytest

from ringtmp.action_kinds import B, F, I, U, W
from ringtmp.schedule.local_rule import NONE, adapt, fill, first_limits, held_back, urgent
from ringtmp.schedule.policies import FollowPlan, LocalRule
from ringtmp.schedule.registry import SCHEDULES, build, plan_names
from ringtmp.schedule.schedules.pipedream import Stream


def chunk(f=0, i=0, w=0, *, can="", evaluating=False, exhausted=False, place=None):
    return SimpleNamespace(
        forwards=f,
        inputs=i,
        weights=w,
        can_forward=lambda: "F" in can,
        can_backward_input=lambda: "I" in can,
        can_backward_weight=lambda: "W" in can,
        must_update=lambda: "U" in can,
        evaluating=lambda: evaluating,
        exhausted=lambda: exhausted,
        place=f if place is None else place,
    )


def test_order_of_preference():
    rule = LocalRule(4, 1, 16)
    for can, want in (("FIWU", U), ("FIW", I), ("FW", F), ("W", W), ("", NONE)):
        assert rule.choose([chunk(can=can)]) == want


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_limits(ranks):
    """Held at most 2 p at first; as far ahead as the way to the last rank and back is long; evaluations are free."""
    for rank in range(ranks):
        rule = LocalRule(ranks, rank, 64)
        ahead = 2 * (ranks - 1 - rank) + 2
        assert rule.choose([chunk(f=ahead - 1, can="F")]) == F
        assert rule.choose([chunk(f=ahead, can="F")]) == NONE
        held = 2 * ranks
        assert rule.choose([chunk(f=held - 1, i=held - 1, can="FW")]) == F
        assert rule.choose([chunk(f=held, i=held, can="FW")]) == W
        assert rule.choose([chunk(f=held, i=0, can="F", evaluating=True)]) == F
        assert rule.window(0) > held


def test_chunks():
    """I and W of the last chunk first; F of the chunk whose next micro-batch is in the earliest pack."""
    rule = LocalRule(2, 0, 16, chunks=3)
    kinds = [chunk(can="I"), chunk(can="I"), chunk(can="W")]
    assert rule.choose(kinds) == 8 * 1 + I
    assert rule.choose([chunk(can="W"), chunk(can="W"), chunk()]) == 8 * 1 + W
    assert rule.choose([chunk(f=2, can="F"), chunk(f=1, can="F"), chunk(f=0, can="F")]) == 8 * 1 + F
    assert rule.choose([chunk(f=2, can="F"), chunk(f=2, can="F"), chunk()]) == F
    assert rule.choose([chunk(can="F"), chunk(can="U"), chunk(can="I")]) == 8 * 1 + U


def test_the_bound_of_held_micro_batches():
    """Neither a step's micro-batches nor `most` is ever exceeded, whatever is learnt."""
    for most, m, want in ((3, 16, 3), (40, 5, 5), (40, 64, 40)):
        rule = LocalRule(4, 0, m, most=most)
        for _ in range(200):
            rule.choose([chunk(f=10**6, can="F")])
            rule.waited(1000)
            rule.stepped(1000)
        assert rule.window(0) - 2 == rule.room(0) - 2 == want


def test_adaptation():
    """Limits grow only where a wait of more than 2 % of the step has a forbidden F behind it."""

    def grown(idle, limited_idle, forced):
        cap, limit = [8], [4]
        adapt(cap, limit, 12, 2, 100.0, idle, limited_idle, forced)
        return cap[0], limit[0]

    assert grown(0, 0, 0) == (8, 4)
    assert grown(10, 1, 0) == (8, 4)
    assert grown(10, 10, 0) == (8, 6)
    assert grown(10, 0, 3) == (10, 4)
    assert grown(1, 0, 3) == (8, 4)
    cap, limit = [8], [4]
    for _ in range(50):
        adapt(cap, limit, 12, 2, 100.0, 50.0, 50.0, 1)
    assert (cap, limit) == ([12], [12])


def test_what_holds_back():
    assert held_back([True], [2], [1], [2], [4]) == 1
    assert held_back([True], [2], [4], [3], [4]) == 2
    assert held_back([True], [1], [1], [3], [4]) == 0
    assert held_back([False], [9], [9], [3], [4]) == 0


def test_limits_fit_any_ring():
    for ranks in range(1, 9):
        for chunks in (1, 2, 3):
            for m in (1, 3, 40):
                for most in (1, 2, 50):
                    for rank in range(ranks):
                        cap, limit = first_limits(ranks, chunks, rank, m, most)
                        assert len(cap) == len(limit) == chunks
                        assert all(1 <= each <= most for each in cap + limit)


def test_nothing_is_chosen_that_cannot_run():
    for can in range(16):
        flags = [[bool(can >> n & 1)] for n in range(4)]
        f, i, w, u = flags
        what = urgent(u, i)
        if what == NONE:
            what = fill(f, w, [0], [0], [1], [1], [0])
        assert what == NONE if not can else flags[what][0]


@pytest.mark.parametrize("name", plan_names())
def test_follower_keeps_to_the_plan(name):
    """Whatever could run, the plan's next action is the one; and it starts again after the last."""
    v = 2 if SCHEDULES[name].takes_chunks else 1
    plan = build(name, 3, 4, v)
    for rank in range(3):
        want = [8 * (a.stage // 3) + "FIWUB".index(a.kind) for a in plan.ranks[rank]]
        follower, got = FollowPlan(plan, rank), []
        for _ in range(2 * len(want)):
            assert follower.choose([chunk()] * v) == NONE
            got.append(follower.choose([chunk(can="FIWU")] * v))
        assert got == want * 2


def test_follower_with_recomputation():
    """W follows its I at once: the plan's own W are left out, and I becomes B."""
    plan = build("zb-h2", 3, 8)
    kinds = [what % 8 for what in FollowPlan(plan, 1, recompute=True).todo]
    assert kinds.count(B) == kinds.count(F) == 8
    assert I not in kinds
    assert W not in kinds


def test_evaluation_between_steps():
    """It comes before the plan's first action; of several chunks the furthest goes first."""
    follower = FollowPlan(build("interleaved", 2, 4, 2), 0)
    both = [chunk(can="F", evaluating=True), chunk(can="F", evaluating=True)]
    assert follower.choose(both) == 8 + F
    assert follower.choose([both[0], chunk(evaluating=True)]) == F
    assert follower.place == 0


def test_stream():
    """PipeDream: p - r forwards, then one back for one forward; dry before an evaluation and at the end."""
    stream = Stream(4, 1)
    assert stream.choose([chunk(f=2, can="FI")]) == F
    assert stream.choose([chunk(f=2, can="I")]) == NONE  # the order is fixed: it waits for its forward
    assert stream.choose([chunk(f=3, can="FI")]) == I
    assert stream.choose([chunk(f=3, i=1, can="FIW")]) == W
    assert stream.choose([chunk(f=3, i=1, w=1, can="FIU")]) == U
    assert stream.choose([chunk(f=2, can="FI", evaluating=True)]) == I
    assert stream.choose([chunk(f=2, i=2, w=2, can="F", evaluating=True)]) == F
    assert stream.choose([chunk(f=2, can="I", exhausted=True)]) == I

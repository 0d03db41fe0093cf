"""The local rule and the plan follower, asked about made-up situations."""

from types import SimpleNamespace

import pytest

from ringtmp.ring.plan import build
from ringtmp.ring.rule import FollowPlan, LocalRule


def situation(f=0, i=0, w=0, *, can="", evaluating=False):
    return SimpleNamespace(
        forwards=f, inputs=i, weights=w, can_forward=lambda: "F" in can, can_backward_input=lambda: "I" in can,
        can_backward_weight=lambda: "W" in can, must_update=lambda: "U" in can, evaluating=lambda: evaluating,
    )  # fmt: skip


def test_order_of_preference():
    rule = LocalRule(4, 1)
    assert rule.choose(situation(can="FIWU")) == "U"
    assert rule.choose(situation(can="FIW")) == "I"
    assert rule.choose(situation(can="FW")) == "F"
    assert rule.choose(situation(can="W")) == "W"
    assert rule.choose(situation()) is None


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_limits(ranks):
    """At most 2 p activations held; the last rank at most 2 forwards ahead of its gradients, each before it 2 more."""
    for rank in range(ranks):
        rule = LocalRule(ranks, rank)
        ahead = 2 * (ranks - 1 - rank) + 2
        assert rule.choose(situation(f=ahead - 1, can="F")) == "F"
        assert rule.choose(situation(f=ahead, can="F")) is None
        held = 2 * ranks
        assert rule.choose(situation(f=held - 1, i=held - 1, can="FW")) == "F"
        assert rule.choose(situation(f=held, i=held, can="FW")) == "W"
        assert rule.choose(situation(f=held, i=0, can="F", evaluating=True)) == "F"
        assert rule.slots > held


@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b"])
def test_follower_keeps_to_the_plan(name):
    """Whatever could run, the plan's next action is the one; B is I, then W; and it starts again after U."""
    plan = build(name, 3, 4)
    for rank in range(3):
        want = [k for action in plan.ranks[rank] for k in ("IW" if action.kind == "B" else action.kind)]
        follower, got = FollowPlan(plan, rank), []
        for _ in range(2 * len(want)):
            assert follower.choose(situation()) is None
            got.append(follower.choose(situation(can="FIWU")))
            follower.took(got[-1])
        assert got == want * 2

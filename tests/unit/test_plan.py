"""Plans as text and as data; the checker against a brute-force run of thousands of plans, right and wrong."""

import random
from collections import Counter

import brute
import pytest

from ringtmp.errors import UserError
from ringtmp.ring.check import PlanError, check
from ringtmp.ring.plan import SCHEDULES, Action, Plan, build, forward_only, peak_in_flight


def test_printed_forms():
    assert str(build("naive", 2, 2)) == "0F0 0B0 0F1 0B1 0U\n1F0 1B0 1F1 1B1 1U"
    assert str(build("gpipe", 2, 3)) == "0F0 0F1 0F2 0B0 0B1 0B2 0U\n1F0 1F1 1F2 1B0 1B1 1B2 1U"
    assert str(build("1f1b", 3, 4)) == (
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3 0U\n1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3 1U\n2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2U"
    )
    assert str(forward_only(2, 2)) == "0F0 0F1\n1F0 1F1"


@pytest.mark.parametrize("name", SCHEDULES)
def test_parse_gives_the_plan_back(name):
    for p, m in ((1, 1), (2, 3), (8, 12)):
        plan = build(name, p, m)
        assert Plan.parse(str(plan), name) == plan


@pytest.mark.parametrize("text", ["", "F0", "2F", "2U0", "2X0", "-1F0", "2F0 ", "2f0"])
def test_no_action(text):
    with pytest.raises(ValueError, match="not an action"):
        Action.parse(text)


def test_unknown_schedule():
    with pytest.raises(UserError, match="schedule: expected one of naive, gpipe, 1f1b"):
        build("zigzag", 2, 2)


def test_memory():
    """GPipe holds every micro-batch, 1F1B as many as there are ranks to the right, naive one."""
    assert [peak_in_flight(build("gpipe", 4, 9), r) for r in range(4)] == [9, 9, 9, 9]
    assert [peak_in_flight(build("1f1b", 4, 9), r) for r in range(4)] == [4, 3, 2, 1]
    assert [peak_in_flight(build("naive", 4, 9), r) for r in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_plan_is_accepted(name):
    for p in range(1, 9):
        for m in range(1, 25):
            plan = build(name, p, m)
            assert check(plan) == [peak_in_flight(plan, rank) for rank in range(p)]
            check(forward_only(p, m))


@pytest.mark.parametrize("name", SCHEDULES)
def test_brute_force_agrees_that_they_are_right(name):
    for p, m in ((1, 1), (1, 5), (2, 2), (3, 7), (5, 3), (8, 24)):
        brute.run(build(name, p, m))


# ---- mutations -------------------------------------------------------------------------------------------------------


def drop(lists, rank, place, rng):
    del lists[rank][place]


def double(lists, rank, place, rng):
    lists[rank].insert(rng.randrange(len(lists[rank]) + 1), lists[rank][place])


def move(lists, rank, place, rng):
    action = lists[rank].pop(place)
    lists[rank].insert(rng.randrange(len(lists[rank]) + 1), action)


def swap(lists, rank, place, rng):
    other = rng.randrange(len(lists[rank]))
    lists[rank][place], lists[rank][other] = lists[rank][other], lists[rank][place]


def other_kind(lists, rank, place, rng):
    action = lists[rank][place]
    if action.kind != "U":
        lists[rank][place] = action._replace(kind=rng.choice("FIWB"))


def other_micro_batch(lists, rank, place, rng):
    action = lists[rank][place]
    if action.kind != "U":
        lists[rank][place] = action._replace(micro_batch=rng.randrange(max(1, action.micro_batch + 2)))


def other_rank(lists, rank, place, rng):
    lists[rng.randrange(len(lists))].append(lists[rank].pop(place))


def halve(lists, rank, place, rng):
    """B as I and a later W: often still right."""
    action = lists[rank][place]
    if action.kind == "B":
        lists[rank][place] = action._replace(kind="I")
        lists[rank].insert(rng.randrange(place + 1, len(lists[rank]) + 1), action._replace(kind="W"))


MUTATIONS = [drop, double, move, swap, other_kind, other_micro_batch, other_rank, halve]


def judged(judge, plan, fault) -> bool:
    try:
        judge(plan)
        return True
    except fault:
        return False


def mutants(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        p, m = rng.randint(1, 8), rng.choice([1, 2, 3, 5, 8, 24])
        plan = build(rng.choice(list(SCHEDULES)), p, m)
        lists = [list(actions) for actions in plan.ranks]
        names = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rank = rng.randrange(p)
            if lists[rank]:
                mutation = rng.choice(MUTATIONS)
                mutation(lists, rank, rng.randrange(len(lists[rank])), rng)
                names.append(mutation.__name__)
        yield names, Plan("mutant", m, p, tuple(map(tuple, lists)))


def test_no_wrong_plan_is_accepted():
    seen = Counter()
    for names, plan in mutants(6000, seed=1):
        right, accepted = judged(brute.run, plan, brute.Wrong), judged(check, plan, PlanError)
        assert right or not accepted, f"{names}: accepted, but a run of it goes wrong:\n{plan}"
        seen[right, accepted] += 1
        if right and not accepted:
            # The one rule that a run on one step does not need: each kind in ascending order, so that messages are
            # told apart by their order alone. Brute force finds such a plan right only where no message is concerned.
            assert "out of order" in reason(plan), plan
    assert seen[False, False] > 3000
    assert seen[True, True] > 300


def reason(plan) -> str:
    with pytest.raises(PlanError) as caught:
        check(plan)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0F0 0B0 0U\n1F0 1B0", "rank 1: 1U stands 0 times"),
        ("0F0 0B0 0B0 0U\n1F0 1B0 1U", "rank 0: 0I0 stands 2 times"),
        ("0F0 0W0 0I0 0U\n1F0 1B0 1U", "rank 0: 0W0 comes before 0I0"),
        ("0F0 0B0 0U 1F0\n1B0 1U", "rank 0: 1F0 is not a stage of this rank"),
        ("0F1 0F0 0B0 0B1 0U\n1F0 1F1 1B0 1B1 1U", "rank 0: 0F1 is out of order"),
        ("0F0 0U 0B0\n1F0 1B0 1U", "rank 0: 0I0 comes after the update"),
        ("0F0 0B0 0F1 0B1 0U\n1F0 1F1 1B0 1B1 1U", "deadlock: rank 0 at 0I0, its input"),
    ],
)
def test_faults_are_named(text, words):
    assert words in reason(Plan.parse(text))

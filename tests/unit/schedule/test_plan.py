"""Plans as text and as data; the checker against a brute-force run of thousands of plans, right and wrong."""

import random
from collections import Counter
from functools import cache

import brute
import pytest

from ringtmp.errors import UserError
from ringtmp.schedule.check import PlanError, check
from ringtmp.schedule.plan import Action, Plan, forward_only, peak_in_flight
from ringtmp.schedule.registry import SCHEDULES, build, plan_names

build_once = cache(build)


def chunks_of(name, p, m):
    """What numbers of chunks to try. interleaved-zb is simulated 24 times to be built: by turns one of the three."""
    if name == "interleaved-zb":
        return [1 + (p + m) % 3] if m <= 9 or m % 4 == 0 else []
    return [1, 2, 3] if SCHEDULES[name].takes_chunks else [1]


def plans(name, ms=range(1, 18)):
    """(p, m, v, plan) for p from 1 to 8."""
    for p in range(1, 9):
        for m in ms:
            for v in chunks_of(name, p, m):
                yield p, m, v, build_once(name, p, m, v)


def test_printed_forms():
    assert str(build("naive", 2, 2)) == "0F0 0B0 0F1 0B1 0U\n1F0 1B0 1F1 1B1 1U"
    assert str(build("gpipe", 2, 3)) == "0F0 0F1 0F2 0B0 0B1 0B2 0U\n1F0 1F1 1F2 1B0 1B1 1B2 1U"
    assert str(build("gpipe", 2, 2, 2)) == (
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1 0U 2U\n1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1 1U 3U"
    )
    assert str(build("1f1b", 3, 4)) == (
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3 0U\n1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3 1U\n2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2U"
    )
    assert str(build("interleaved", 2, 2, 2)) == (
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1 0U 2U\n1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1 1U 3U"
    )
    assert str(build("zb-h1", 2, 3)) == (
        "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2 0U\n1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2 1U"
    )
    assert str(build("zb-h2", 2, 3)) == (
        "0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2 0U\n1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2 1U"
    )
    assert str(forward_only(2, 2)) == "0F0 0F1\n1F0 1F1"
    assert str(forward_only(2, 1, 2)) == "0F0 2F0\n1F0 3F0"


@pytest.mark.parametrize("text", ["", "F0", "2F", "2U0", "2X0", "-1F0", "2F0 ", "2f0"])
def test_no_action(text):
    with pytest.raises(ValueError, match="not an action"):
        Action.parse(text)


def test_unknown_schedule():
    with pytest.raises(UserError, match="schedule: expected one of naive, gpipe, 1f1b, .*, got 'zigzag'"):
        build("zigzag", 2, 2)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "zb-h2"])
def test_schedules_of_one_chunk(name):
    with pytest.raises(UserError, match=f"chunks: schedule {name} takes 1, got 2; with several: .*interleaved"):
        build(name, 2, 2, 2)


@pytest.mark.parametrize("name", plan_names())
def test_every_plan_is_accepted(name):
    """By the checker; and each is dealt round the ring, and is read back as it was printed."""
    for p, m, v, plan in plans(name):
        assert check(plan) == [peak_in_flight(plan, rank) for rank in range(p)], (p, m, v)
        assert (plan.micro_batches, plan.stages, plan.chunks) == (m, p * v, v)
        assert {(plan.owner(action.stage), action.stage % p) for action in plan.ranks[p - 1]} == {(p - 1, p - 1)}
        assert Plan.parse(str(plan), plan.name) == plan


def test_every_evaluation_is_accepted():
    for p in range(1, 9):
        for m in (1, 2, 5, 17):
            for v in (1, 2, 3):
                plan = forward_only(p, m, v)
                check(plan)
                brute.run(plan)
                assert Plan.parse(str(plan), "forward") == plan


@pytest.mark.parametrize("name", plan_names())
def test_brute_force_agrees_that_they_are_right(name):
    for *_, plan in plans(name, (1, 3, 8)):
        brute.run(plan)


# Most micro-batches that a rank holds, over its chunks: exactly, or at most.
EXACT = {
    "naive": lambda p, m, v, r: v,
    "gpipe": lambda p, m, v, r: m * v,
    "1f1b": lambda p, m, v, r: min(m, p - r),
}
BOUND = {
    # Warm-up forwards and one more (Narayanan et al. 2021, section 2.2).
    "interleaved": lambda p, m, v, r: min(m, p - r) if v == 1 else min(v * m, (v - 1) * p + 2 * (p - 1 - r) + 1),
    "zb-h1": lambda p, m, v, r: min(m, p),
    "zb-h2": lambda p, m, v, r: min(m, 2 * p - 1),
    "interleaved-zb": lambda p, m, v, r: v * min(m, 2 * p),
}


@pytest.mark.parametrize("name", plan_names())
def test_memory(name):
    for p, m, v, plan in plans(name):
        for rank in range(p):
            held = peak_in_flight(plan, rank)
            if name in EXACT:
                assert held == EXACT[name](p, m, v, rank), (p, m, v, rank)
            else:
                assert 1 <= held <= BOUND[name](p, m, v, rank), (p, m, v, rank)
            each = [peak_in_flight(plan, rank, stage) for stage in range(rank, p * v, p)]
            assert max(each) <= held <= sum(each)


def test_zero_bubble_uses_what_it_may_hold():
    assert [peak_in_flight(build("zb-h1", 4, 16), rank) for rank in range(4)] == [4, 4, 4, 4]
    assert [peak_in_flight(build("zb-h2", 4, 16), rank) for rank in range(4)] == [7, 7, 7, 7]


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


def nudge(lists, rank, place, rng):
    """One place further: often still right."""
    lists[rank].insert(place + 1, lists[rank].pop(place))


def bring_forward(lists, rank, place, rng):
    """Every F of a stage from some place on as early as it gets: right in itself, but it takes slots or blocks."""
    stage = lists[rank][place].stage
    early = [a for a in lists[rank][place:] if a.stage == stage and a.kind == "F"]
    lists[rank][place:] = early + [a for a in lists[rank][place:] if a not in early]


def put_off(lists, rank, place, rng):
    """An action, and all of its kind on its stage after it, as late as the update allows."""
    stage, kind, _ = lists[rank][place]
    late = [a for a in lists[rank][place:] if (a.stage, a.kind) == (stage, kind)]
    rest = [a for a in lists[rank][place:] if a not in late]
    ends = [n for n, a in enumerate(rest) if a.kind == "U"]
    cut = ends[0] if ends else len(rest)
    lists[rank][place:] = rest[:cut] + late + rest[cut:]


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


def other_stage(lists, rank, place, rng):
    """Mostly another chunk of the same rank."""
    action = lists[rank][place]
    lists[rank][place] = action._replace(stage=max(0, action.stage + rng.choice([-1, 1]) * rng.choice([1, len(lists)])))


def other_chunk(lists, rank, place, rng):
    """All actions of one chunk change places with those of another."""
    one, two = lists[rank][place].stage, rng.choice(lists[rank]).stage
    names = {one: two, two: one}
    lists[rank][:] = [a._replace(stage=names.get(a.stage, a.stage)) for a in lists[rank]]


def exchange(lists, rank, place, rng):
    """Two ranks' orders change places."""
    other = rng.randrange(len(lists))
    by = other - rank
    lists[rank], lists[other] = (
        [a._replace(stage=a.stage - by) for a in lists[other]],
        [a._replace(stage=a.stage + by) for a in lists[rank]],
    )


def halve(lists, rank, place, rng):
    """B as I and a later W: often still right."""
    action = lists[rank][place]
    if action.kind == "B":
        lists[rank][place] = action._replace(kind="I")
        lists[rank].insert(rng.randrange(place + 1, len(lists[rank]) + 1), action._replace(kind="W"))


def join(lists, rank, place, rng):
    """I and W as B, where one of them stood: its gradient leaves later or its slot comes back earlier."""
    stage, kind, number = lists[rank][place]
    pair = [n for n, a in enumerate(lists[rank]) if a.stage == stage and a.micro_batch == number and a.kind in "IW"]
    if len(pair) == 2:
        kept = rng.choice(pair)
        lists[rank][kept] = Action(stage, "B", number)
        del lists[rank][sum(pair) - kept]


SUBTLE = [nudge, bring_forward, put_off, halve, join]  # what is left is often right
COARSE = [drop, double, move, swap, other_kind, other_micro_batch, other_rank, other_stage, other_chunk, exchange]


def judged(judge, plan, fault) -> str:
    """What `judge` says against a plan; empty if nothing."""
    try:
        judge(plan)
        return ""
    except fault as error:
        return str(error)


def mutants(count, seed):
    rng = random.Random(seed)
    for number in range(count):
        p, m, name = rng.randint(1, 8), rng.choice([1, 2, 3, 5, 8, 16]), plan_names()[number % len(plan_names())]
        plan = build_once(name, p, m, rng.choice(chunks_of(name, p, m)))
        lists = [list(actions) for actions in plan.ranks]
        names = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rank = rng.randrange(p)
            if lists[rank]:
                mutation = rng.choice(rng.choice([SUBTLE, COARSE]))
                mutation(lists, rank, rng.randrange(len(lists[rank])), rng)
                names.append(mutation.__name__)
        mutant = Plan("mutant", m, plan.stages, tuple(map(tuple, lists)))
        if mutant.ranks != plan.ranks:
            yield name, names, mutant


def test_no_wrong_plan_is_accepted():
    seen, caught, kept, deadlocks = Counter(), Counter(), Counter(), Counter()
    for name, names, plan in mutants(6000, seed=1):
        wrong, refused = judged(brute.run, plan, brute.Wrong), judged(check, plan, PlanError)
        assert refused or not wrong, f"{name} {names}: accepted, but a run of it goes wrong: {wrong}\n{plan}"
        if refused and not wrong:
            # The one rule that a run on one step does not need: each kind in ascending order, so that messages are
            # told apart by their order alone. Brute force finds such a plan right only where no message is concerned.
            assert "out of order" in refused, f"{name} {names}: {refused}\n{plan}"
        seen[not wrong, not refused] += 1
        (caught if refused else kept).update(names if len(names) == 1 else [])
        if refused.startswith("deadlock"):
            deadlocks[name] += 1
            deadlocks["its send"] += "its send" in refused
            assert wrong.startswith("stuck"), f"{refused}, but: {wrong}\n{plan}"
    assert seen[False, False] > 2500
    assert seen[True, True] > 400
    assert set(caught) == {mutation.__name__ for mutation in SUBTLE + COARSE}
    assert set(kept) >= {mutation.__name__ for mutation in SUBTLE}
    assert set(deadlocks) == {*plan_names(), "its send"}


def reason(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        check(Plan.parse(text))
    with pytest.raises(brute.Wrong):
        brute.run(Plan.parse(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0F0 0B0 0U\n1F0 1B0", "rank 1: 1U stands 0 times"),
        ("0F0 0B0 0U\n1F0 1B0 1U\n2F0 2B0 2U\n3F0 3I0 3U", "rank 3: 3W0 stands 0 times"),
        ("0F0 0B0 0B0 0U\n1F0 1B0 1U", "rank 0: 0I0 stands 2 times"),
        ("0F0 0I0 0B0 0U\n1F0 1B0 1U", "rank 0: 0I0 stands 2 times"),
        ("0F0 0W0 0I0 0U\n1F0 1B0 1U", "rank 0: 0W0 comes before 0I0"),
        ("0B0 0F0 0U\n1F0 1B0 1U", "rank 0: 0I0 comes before 0F0"),
        ("0F0 0B0 0U 1F0\n1B0 1U", "rank 0: 1F0 is not a stage of this rank"),
        ("0F0 1F0 1B0 0B0 0U 1U\n2F0 3F0 3B0 2B0 2U 3U", "rank 0: 1F0 is not a stage of this rank"),
        ("0F1 0F0 0B0 0B1 0U\n1F0 1F1 1B0 1B1 1U", "rank 0: 0F1 is out of order, expected 0F0"),
        ("0F0 0F1 0B0 0B1 0U\n1F0 1F1 1I0 1I1 1W1 1W0 1U", "rank 1: 1W1 is out of order, expected 1W0"),
        ("0F0 0U 0B0\n1F0 1B0 1U", "rank 0: 0I0 comes after the update of its stage"),
        (
            "0F0 0F1 2F0 2B0 2U 2F1 2B1 0B0 0B1 0U\n1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1 1U 3U",
            "rank 0: 2F1 comes after the update of its stage",
        ),
        ("0F0 0B0 0F1 0B1 0U\n1F0 1F1 1B0 1B1 1U", "deadlock: rank 0 at 0B0, its input never comes through; rank 1 at"),
        ("0F0 1F0 0B0 1B0 0U 1U", "deadlock: rank 0 at 0B0, its input never comes through"),
        # Rank 1 has room for one micro-batch and one more, and needs what rank 0 would do after sending the third.
        (
            "0F0 0F1 0F2 2F0 2B0 0B0 2F1 2B1 0B1 2F2 2B2 0B2 0U 2U\n"
            "1F0 3F0 3B0 1B0 1F1 3F1 3B1 1B1 1F2 3F2 3B2 1B2 1U 3U",
            "deadlock: rank 0 at 0F2, its send never comes through; rank 1 at 3F0, its input never comes through",
        ),
    ],
)
def test_faults_are_named(text, words):
    assert words in reason(text)


def test_plans_that_do_not_fit_the_step():
    """Right to run, but not by what the plan says of itself."""
    with pytest.raises(PlanError, match="rank 0: 0F1: there are 1 micro-batches"):
        check(Plan("long", 1, 1, Plan.parse("0F0 0F1 0B0 0B1 0U").ranks))
    with pytest.raises(PlanError, match="3 stages cannot be dealt evenly over 2 ranks"):
        check(Plan.parse("0F0 2F0 2B0 0B0 0U 2U\n1F0 1B0 1U"))


def test_what_only_looks_wrong():
    """W put off to the end keeps no label waiting, and a rank may update one chunk before it goes on with another."""
    for text in (
        "0F0 0I0 0W0 0F1 0I1 0W1 0F2 0I2 0W2 0U\n1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2 1U",
        "0F0 2F0 2B0 2U 0B0 0U\n1F0 3F0 3B0 3U 1B0 1U",
        "0F0 1F0 1I0 0I0 1W0 1U 0W0 0U",
    ):
        check(Plan.parse(text))
        brute.run(Plan.parse(text))

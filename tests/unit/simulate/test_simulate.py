"""The clock against its slow twin, against closed forms, and against what the field reports."""

import random
from dataclasses import replace

import naive_clock
import numpy as np
import pytest

from ringtmp.action_kinds import KINDS
from ringtmp.emulate.jitter import stretch, uniform
from ringtmp.schedule import lock_step
from ringtmp.schedule.check import PlanError, check
from ringtmp.schedule.plan import Action, Plan, peak_in_flight
from ringtmp.schedule.policies import LocalRule
from ringtmp.schedule.registry import SCHEDULES, build, plan_names
from ringtmp.simulate.pipeline import Scene, StuckError, simulate


def simulated(p, m, name=None, v=1, steps=20, **how):
    """An even ring under the clock: a plan, or the rule."""
    return simulate(Scene.even(p, m, chunks=v), build(name, p, m, v) if name else None, steps=steps, **how)


def record(name, scene, limits):
    """A plan: what the local rule does in one step of `scene` under fixed limits."""
    scene = replace(scene, pieces=((1.0,),) * (scene.ranks * scene.chunks))
    ranks = [[] for _ in range(scene.ranks)]
    for stage, kind, number, *_ in simulate(scene, steps=1, adaptive=False, limits=limits, most=10**9, log=True).log:
        letter = KINDS[int(kind)]
        ranks[int(stage) % scene.ranks].append(Action(int(stage), letter, -1 if letter == "U" else int(number)))
    return Plan(name, scene.micro_batches, scene.ranks * scene.chunks, tuple(map(tuple, ranks)))


# ---- the twin --------------------------------------------------------------------------------------------------------


def scene_of(rng, p, v, m, jitter):
    """Any small scene. Times are whole sixteenths, so that sums are exact and a tie is a tie."""
    stages = p * v
    seconds = np.array([[rng.randint(least, 16) / 8 for least in (1, 1, 1, 0)] for _ in range(stages)])
    if rng.random() < 0.3:
        seconds[:] = 1.0
    sizes = np.ones(m)
    sizes[rng.randint(1, m) :] = rng.choice([0.5, 0.25])
    pieces = tuple(rng.choice([(1.0,), (0.5, 0.5), (0.25, 0.5, 0.25), (0.125, 0.125, 0.75)]) for _ in range(stages))
    taken = np.array([[rng.randint(0, 20) / 8 for _ in range(2)] for _ in range(stages)])
    return Scene(
        p,
        v,
        sizes,
        seconds,
        pieces,
        rng.choice([0.0, 0.0, 0.0625]),
        rng.choice([0.0, 0.0, 0.125, 1.5, 10.0]),
        taken[: stages * rng.randint(0, 1)],
        jitter,
        rng.randrange(2**40),
    )


def limits_of(rng, p, v):
    return tuple(np.array([[rng.randint(1, 6) for _ in range(v)] for _ in range(p)]) for _ in range(2))


def compare(scene, plan=None, **how):
    """Everything that the clock says is what the twin says: to the last bit, with jitter up to rounding."""
    want = naive_clock.run(scene, plan, **how)
    got = simulate(scene, plan, adaptive=False, log=True, **how)
    close = 1e-12 if scene.jitter else 0.0
    assert want.seconds is not None
    np.testing.assert_allclose(got.seconds, want.seconds, rtol=close)
    np.testing.assert_allclose(got.busy, want.busy, rtol=close)
    np.testing.assert_allclose(got.ends, want.ends, rtol=close)
    assert got.held.tolist() == want.held
    assert got.actions == len(got.log) == len(want.actions)
    rows = got.log[np.lexsort((np.arange(len(got.log)), got.log[:, 0] % scene.ranks))]  # rank after rank
    order = sorted(want.actions, key=lambda a: a.rank)
    assert [tuple(row[[0, 1, 2, 5]]) for row in rows] == [
        (a.stage, "FIWUB".index(a.kind), a.numbers[0], len(a.numbers)) for a in order
    ]
    np.testing.assert_allclose(rows[:, 3], [a.start for a in order], rtol=close)
    np.testing.assert_allclose(rows[:, 4], [a.start + a.lasts for a in order], rtol=close)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize("name", plan_names())
def test_plans_as_the_twin_has_them(name, jitter):
    rng = random.Random(f"{name} {jitter}")
    for _ in range(8):
        p, m, v = rng.randint(1, 4), rng.randint(1, 6), rng.choice([1, 2, 3]) if SCHEDULES[name].takes_chunks else 1
        compare(
            scene_of(rng, p, v, m, jitter), build(name, p, m, v), steps=rng.randint(1, 3), lag=rng.choice([0, 0, 1])
        )


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(7))
def test_the_rule_as_the_twin_has_it(seed, jitter):
    rng = random.Random(seed)
    for _ in range(8):
        p, m, v = rng.randint(1, 4), rng.randint(1, 6), rng.choice([1, 1, 2, 3])
        compare(
            scene_of(rng, p, v, m, jitter),
            steps=rng.randint(1, 3),
            limits=limits_of(rng, p, v),
            lag=rng.choice([0, 0, 1]),
            w_group=rng.randint(1, 4),
        )


def test_recorded_plans_as_the_twin_has_them():
    """Orders with I, W and F mixed in ways that no builder makes.

    With one chunk `check` accepts each. With several a tight limit on one chunk may let ranks wait for each other's
    receives all round the ring, which a clock without buffers does not see; that alone may be wrong.
    """
    rng = random.Random(5)
    refused = 0
    for _ in range(60):
        p, m, v = rng.randint(1, 4), rng.randint(1, 6), rng.choice([1, 1, 2, 3])
        plan = record("mixed", scene_of(rng, p, v, m, rng.choice([0.0, 0.3])), limits_of(rng, p, v))
        assert (plan.name, plan.micro_batches, plan.stages, len(plan.ranks)) == ("mixed", m, p * v, p)
        try:
            assert check(plan) == [peak_in_flight(plan, rank) for rank in range(p)]
        except PlanError as error:
            assert v > 1 and "its send never comes through" in str(error)
            refused += 1
        compare(scene_of(rng, p, v, m, 0.0), plan, steps=2)
    assert refused < 10


def test_what_is_recorded_repeats_itself():
    """A plan made from the rule takes as long as the rule did."""
    scene, limits = Scene.even(4, 6, chunks=2), (np.full((4, 2), 8), np.full((4, 2), 5))
    plan = record("again", scene, limits)
    fixed = simulate(scene, steps=1, limits=limits, adaptive=False)
    again = simulate(scene, plan, steps=1)
    assert (again.seconds, again.held.tolist()) == (fixed.seconds, fixed.held.tolist())


def test_lock_step_is_the_clock_where_all_actions_take_equally_long():
    rng = random.Random(8)
    for _ in range(60):
        p, m, v, cap = rng.randint(1, 6), rng.randint(1, 12), rng.choice([1, 2, 3]), rng.randint(1, 12)
        limit = [[rng.randint(1, 12) for _ in range(v)] for _ in range(p)]
        scene = Scene.even(p, m, chunks=v)
        plan = record("both", scene, (np.full((p, v), cap), np.array(limit)))
        assert lock_step.record("both", p, m, v, cap, limit) == plan
        steps = rng.randint(1, 4)
        assert lock_step.duration(plan, steps) == round(simulate(scene, plan, steps=steps).seconds * v)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_gradient_leaves_after_b_but_before_w():
    """Rank 1 runs F, then B (or I, then W) of one micro-batch; rank 0 can begin its own at 3 (or at 2)."""
    scene = Scene.even(2, 1)
    for text, begins in (("0F0 0B0 0U\n1F0 1B0 1U", 4.0), ("0F0 0I0 0W0 0U\n1F0 1I0 1W0 1U", 3.0)):
        outcome = simulate(scene, Plan.parse(text), steps=1, log=True)
        (row,) = (row for row in outcome.log if row[0] == 0 and row[1] in (1, 4))
        assert row[3] == begins
        assert outcome.seconds == begins + 2


def test_a_link_is_taken_by_one_message_at_a_time():
    """F lasts 1, a message takes its link 3 and is under way 10 more: the three arrive at 14, 17 and 20."""
    scene = replace(Scene.even(2, 3, latency=10.0), transfer=np.array([[3.0, 0.0], [0.0, 0.0]]))
    log = simulate(scene, build("gpipe", 2, 3), steps=1, log=True).log
    assert [row[3] for row in log if row[0] == 1 and row[1] == 0] == [14.0, 17.0, 20.0]


@pytest.mark.parametrize(("p", "m"), [(2, 20), (2, 3000), (3, 500), (8, 400)])
def test_many_messages_under_way(p, m):
    """GPipe over links that are longer than all the work: each of p - 1 hops there and back waits for the last."""
    outcome = simulate(Scene.even(p, m, latency=1e5), build("gpipe", p, m), steps=1)
    assert outcome.seconds == 2e5 * (p - 1) + 3 * (m + p - 1)


def test_many_messages_under_way_for_the_rule():
    """As far as limits allow: 400 activations on their way to an idle rank, which then alternates F and I."""
    outcome = simulate(Scene.even(2, 400, latency=1e5), steps=1, most=1000, limits=(np.full((2, 1), 400),) * 2)
    assert outcome.seconds == 2e5 + 2 * 400 + 3
    assert outcome.held.tolist() == [400, 400]


def test_equal_work_in_chunks_and_unequal_ranks():
    scene = Scene.even(4, 6, chunks=2, slower={1: 3.0}, update=0.5, times=(1.0, 2.0, 3.0), layers=4)
    assert scene.busy.tolist() == [36.5, 109.5, 36.5, 36.5]
    assert scene.pieces == ((0.5, 0.5),) * 8
    outcome = simulate(scene, steps=3)
    assert np.allclose(outcome.busy, 3 * scene.busy)
    assert outcome.idle == pytest.approx(1 - outcome.busy.sum() / 4 / outcome.seconds)
    assert outcome.seconds > 3 * 109.5


# ---- closed forms, and the field's table -----------------------------------------------------------------------------

RINGS = [(2, 2), (4, 8), (4, 16), (8, 16), (5, 7)]


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize(("p", "m"), RINGS)
def test_the_formula(p, m, steps):
    """GPipe and 1F1B idle (p - 1) / (m + p - 1) of the time if m >= p, naive (p - 1) / p; chained steps as well."""
    for name, idle in (("gpipe", (p - 1) / (m + p - 1)), ("1f1b", (p - 1) / (m + p - 1)), ("naive", (p - 1) / p)):
        assert simulated(p, m, name, steps=steps).idle == pytest.approx(idle, abs=1e-9), name


@pytest.mark.parametrize(
    ("name", "steps", "percent"),
    [
        ("interleaved", 1, [15.8, 8.6, 17.9]),
        ("zb-h1", 1, [11.1, 5.9, 12.7]),
        ("zb-h2", 1, [11.1, 5.9, 12.7]),
        ("zb-h2", 20, [0.6, 0.3, 0.7]),
    ],
)
def test_idle_shares_of_the_field(name, steps, percent):
    """Percent of the wall clock as others have simulated them, for p 4 m 8, p 4 m 16 and p 8 m 16."""
    v = 2 if name == "interleaved" else 1
    got = [simulated(p, m, name, v, steps).idle for p, m in ((4, 8), (4, 16), (8, 16))]
    assert [100 * idle for idle in got] == pytest.approx(percent, abs=0.051)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(
    ("p", "m", "delay", "percent"), [(4, 16, 0, 0.3), (8, 16, 0, 0.7), (8, 32, 0, 0.4), (8, 16, 0.05, 1.9)]
)
def test_the_rule_is_as_good_as_a_prototype_of_it(p, m, delay, percent, adaptive):
    """A prototype of the rule, in 90 lines of Python, idled so many percent of the time with 2 p held."""
    outcome = simulate(Scene.even(p, m, latency=delay), most=2 * p, adaptive=adaptive)
    assert 100 * outcome.idle <= percent + 0.1
    assert outcome.held.max() <= 2 * p


@pytest.mark.parametrize("jitter", [0.0, 0.5])
@pytest.mark.parametrize("most", [1, 3, 8, 40])
def test_no_more_is_held_than_may_be(most, jitter):
    """In each chunk, whatever limits learn on a ring of long links; with more room they do grow."""
    for p, m, v in ((4, 16, 1), (4, 32, 1), (3, 9, 2)):
        scene = Scene.even(p, m, chunks=v, latency=2.0, jitter=jitter, seed=3)
        outcome = simulate(scene, most=most)
        assert 1 <= outcome.held.max() <= most * v
        assert max(each.max() for each in outcome.limits) <= most
    learnt, fixed = (simulate(Scene.even(4, 32, latency=2.0), most=16, adaptive=each) for each in (True, False))
    assert learnt.limits[1].sum() > fixed.limits[1].sum()
    assert learnt.held.max() > fixed.held.max() == 8
    assert learnt.steady_idle < fixed.steady_idle - 0.05


@pytest.mark.parametrize("p", [2, 4, 8])
def test_weights_one_update_behind(p):
    """2BW fills with m = p what the way there and back leaves idle in synchronous steps."""
    lagging, synchronous = simulated(p, p, lag=1), simulated(p, p)
    assert lagging.idle < 0.02
    assert synchronous.idle > 0.14
    assert lagging.held.max() > p == synchronous.held.max()


@pytest.mark.parametrize("ahead", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("w_group", [1, 6, 40])
def test_limits_are_those_of_training(lag, w_group, ahead):
    """What `simulate` starts the rule with is what the engine's policy starts with."""
    for p, v, m, most in ((2, 1, 16, 12), (2, 1, 16, None), (4, 2, 16, 5), (8, 1, 4, 24), (1, 3, 7, 3)):
        scene = Scene.even(p, m, chunks=v)
        limits = simulate(scene, steps=1, adaptive=False, most=most, lag=lag, w_group=w_group, ahead=ahead).limits
        for rank in range(p):
            rule = LocalRule(p, rank, m, chunks=v, w_group=w_group, most=most, lag=lag, ahead=ahead)
            assert (limits[0][rank].tolist(), limits[1][rank].tolist()) == (rule.cap, rule.limit), (p, v, m, most)


def test_fixed_limits_stay():
    """With `ahead` nothing is learnt, however long the way: last rank 1, and `ahead` more for each hop to it."""
    outcome = simulate(Scene.even(4, 32, latency=2.0), most=16, ahead=2.0)
    assert outcome.limits[0].tolist() == [[16]] * 4
    assert outcome.limits[1].tolist() == [[7], [5], [3], [1]]
    assert simulate(Scene.even(4, 32, latency=2.0), most=16).limits[1].sum() > 16


def test_large_products_get_what_they_need():
    """W of up to 8 micro-batches on 2 ranks, which otherwise hold 4 at first: more than 4 go together."""
    log = simulate(Scene.even(2, 16), steps=2, w_group=8, most=8, adaptive=False, log=True).log
    assert log[(log[:, 0] == 0) & (log[:, 1] == 2), 5].max() == 6


# ---- endings and seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0F0 0B0 0F1 0B1 0U\n1F0 1F1 1B0 1B1 1U",  # rank 1 wants what rank 0 sends only after an answer
        "0B0 0F0 0U\n1F0 1B0 1U",
        "0F0 0B0 0U\n1F0 1U 1B0",
        "0F0 0F1\n1F0 1F1",  # no update: there is no second step
    ],
)
def test_a_plan_that_waits_for_itself(text):
    plan = Plan.parse(text, "knot")
    with pytest.raises(StuckError, match="knot never ends: 2 ranks, 1 chunks"):
        simulate(Scene.even(2, plan.micro_batches), plan, steps=2)


def same(one, other):
    return (one.seconds, one.busy.tolist(), one.ends.tolist()) == (
        other.seconds,
        other.busy.tolist(),
        other.ends.tolist(),
    )


@pytest.mark.parametrize("name", [None, "zb-h1"])
def test_seeds(name):
    """The same seed gives the same outcome, another seed another; without jitter there is no difference."""
    plan = build(name, 4, 8) if name else None
    for jitter in (0.0, 0.2):
        one, again, other = (simulate(Scene.even(4, 8, jitter=jitter, seed=s), plan) for s in (1, 1, 2))
        assert same(one, again)
        assert same(one, other) == (jitter == 0)
    assert 0.97 < one.busy.mean() / (24 * 20) < 1.03


def test_numbers_of_actions():
    """Uniform in [0, 1), and none depends on another: neighbours by seed, stage, kind and number are uncorrelated."""
    table = np.array([[uniform(7, s, k, n) for n in range(2000)] for s in range(3) for k in range(4)])
    assert table.min() >= 0
    assert table.max() < 1
    assert len(np.unique(table)) == table.size
    assert np.abs(table.mean(1) - 0.5).max() < 0.03
    assert np.abs(table.var(1) - 1 / 12).max() < 0.01
    assert np.abs(np.corrcoef(table) - np.eye(12)).max() < 0.09
    assert np.abs([np.corrcoef(row[1:], row[:-1])[0, 1] for row in table]).max() < 0.09
    seeds = np.array([[uniform(seed, 0, 0, n) for n in range(2000)] for seed in range(6)])
    assert np.abs(np.corrcoef(seeds) - np.eye(6)).max() < 0.09
    assert stretch(0.0, 1, 2, 3, 4) == 1.0
    assert stretch(0.4, 7, 1, 2, 5) == 1.0 + 0.4 * (2.0 * uniform(7, 1, 2, 5) - 1.0)


def test_events():
    """As a trace has them: whole nanoseconds, step and micro-batch, updates without one."""
    scene = Scene.even(2, 3, update=0.5)
    outcome = simulate(scene, build("1f1b", 2, 3), steps=2, log=True)
    events = outcome.events()
    assert list(events["rank"]) == sorted(events["rank"])
    assert events.groupby(["rank", "kind"]).size().to_dict() == {
        (rank, kind): count for rank in (0, 1) for kind, count in (("F", 6), ("B", 6), ("U", 2))
    }
    updates = events[events["kind"] == "U"]
    assert updates["micro_batch"].tolist() == [-1] * 4
    assert updates["step"].tolist() == [0, 1, 0, 1]
    assert (updates["end"] - updates["start"]).tolist() == [500_000_000] * 4
    rest = events[events["kind"] == "F"]
    assert (
        rest.groupby("rank")[["step", "micro_batch"]].apply(lambda x: x.to_numpy().tolist()).to_list()
        == [[[step, j] for step in (0, 1) for j in range(3)]] * 2
    )
    assert events["end"].max() == round(outcome.seconds * 1e9)
    assert simulate(scene, steps=1).events().empty

"""The planner: what it tells the clock, what it says of memory, and what it recommends."""

from dataclasses import replace

import numpy as np
import pytest

from ringtmp.config.schema import make_config
from ringtmp.emulate.layer_costs import Cost
from ringtmp.emulate.node_speed import costs_paced
from ringtmp.errors import UserError
from ringtmp.nn.buffers import slot_bytes
from ringtmp.nn.layer import pieces
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import LOOK, Stage
from ringtmp.schedule.partition import partition
from ringtmp.schedule.plan import peak_in_flight
from ringtmp.schedule.policies import POSTED, FollowPlan, LocalRule
from ringtmp.schedule.registry import build, plan_names
from ringtmp.simulate import planner
from ringtmp.simulate.pipeline import simulate
from ringtmp.simulate.planner import ENGINE, RULE, Choice, Problem, explore, fits, measure, recommend, run

MODELS = {
    "mlp": build_model("mlp:12-30x3-7-10", "auto", 12, "classes", 10),
    "gelu": build_model("mlp:12-30x3-10,activation=gelu", "auto", 12, "classes", 10),
    "values": build_model("mlp:12-30x2-3", "auto", 12, "values", 3),
    "cnn": build_model("cnn:8x8-4c3-p2-6c3-a2-9-10", "auto", (8, 8), "classes", 10),
    "gpt": build_model("gpt:layers=3,width=16,heads=2,context=8,dropout=0.1", "auto", (8,), "classes", 65, 8, True),
}


def problem_of(name="mlp", ranks=2, batch=16, **how):
    model = MODELS[name]
    optimizer = how.pop("optimizer", Optimizer("adamw"))
    return Problem(model, batch, np.dtype("float32"), optimizer, ranks, **({"costs": costs_paced(model)} | how))


# ---- what the clock is told ------------------------------------------------------------------------------------------

THREE = build_model("mlp:4-5-6-3", "auto", 4, "classes", 3)  # operations 20, 30 and 18: 1 and 2 layers over two ranks


def made_up(rows, w_group):
    """Seconds by row and layer; a W of a group is half as long."""
    weight = 1.0 if w_group == 1 else 0.5
    return [Cost(rows * (n + 1), rows * (n + 1) * 2.0, rows * (n + 1) * 3.0 * weight, 7.0 + n, 0, 0) for n in range(3)]


def test_scene_by_hand():
    """10 samples in 3: 4, 3 and 3; one layer on rank 0, two on rank 1, which is twice as fast."""
    problem = Problem(THREE, 10, np.dtype("float64"), Optimizer("sgd"), 2, made_up, 0.25, 16.0, (1.0, 2.0), 0.1, 77)
    assert problem.ends(1) == [1, 3]
    scene = problem.scene(3)
    assert (scene.ranks, scene.chunks, scene.micro_batches) == (2, 1, 3)
    assert (scene.overhead, scene.latency, scene.jitter, scene.seed) == (ENGINE, 0.25, 0.1, 77)
    assert scene.sizes.tolist() == [1.0, 0.75, 0.75]
    assert scene.seconds.tolist() == [[4, 8, 12, 7], [(8 + 12) / 2, (16 + 24) / 2, (24 + 36) / 2, (8 + 9) / 2]]
    assert scene.pieces == ((1.0,), (0.4, 0.6))
    # 4 rows of 8 bytes at 16 bytes a second: 2 seconds a column.
    assert scene.transfer.tolist() == [[2 * 5, 2 * 4], [2 * 3, 2 * 5]]


def test_scene_in_chunks_and_groups():
    """Three stages on one rank; a W of two micro-batches costs each of them half."""
    problem = Problem(THREE, 8, np.dtype("float32"), Optimizer("sgd"), 1, made_up)
    scene = problem.scene(4, chunks=3, w_group=2)
    assert scene.chunks == 3
    assert scene.seconds.tolist() == [[2, 4, 3, 7], [4, 8, 6, 8], [6, 12, 9, 9]]
    assert scene.transfer.tolist() == [[0, 0]] * 3
    assert problem.scene(4, ends=[3]).seconds.tolist() == [[12, 24, 36, 24]]


def test_a_split_that_is_settled():
    problem = Problem(THREE, 8, np.dtype("float32"), Optimizer("sgd"), 2, made_up, split=(2, 1))
    assert problem.ends(1) == [2, 3]
    assert problem.scene(4).seconds[:, 3].tolist() == [15, 9]
    assert replace(problem, ranks=1).ends(2) == [2, 3]
    assert replace(problem, ranks=3).ends(1) == [1, 2, 3]  # it is not for three stages


@pytest.mark.parametrize("w_group", [1, 4])
def test_short_layers_are_joined(w_group):
    """As in training: until a piece of one micro-batch's W lasts `LOOK` on this rank, however many go together."""

    def short(rows, together):
        return [Cost(1.0, 1.0, LOOK * part / together, 1.0, 0, 0) for part in (0.4, 0.5, 0.2)]

    problem = Problem(THREE, 8, np.dtype("float32"), Optimizer("sgd"), 1, short)
    assert problem.scene(4, w_group=w_group).pieces == ((pytest.approx(1.0),),)
    slow = replace(problem, speeds=(0.5,)).scene(4, w_group=w_group)
    assert slow.pieces == ((pytest.approx(0.9 / 1.1), pytest.approx(0.2 / 1.1)),)
    assert len(replace(problem, whole=True).scene(4).pieces[0]) == 3
    assert problem.scene(4, chunks=3, w_group=w_group).pieces == ((1.0,),) * 3


@pytest.mark.parametrize("seed", range(6))
def test_pieces_as_a_stage_cuts_them(seed):
    """Whatever layers' W last, those that the planner joins are those that `Stage.cut` joins."""
    stage = Stage(MODELS["gpt"], 0, 5, np.float32, Optimizer("sgd"), 2, 1)
    seconds = np.random.default_rng(seed).uniform(0.1, 1.5, 5) * LOOK
    stage.cut(seconds)
    want = [seconds[list(piece)].sum() / seconds.sum() for piece in stage.pieces]
    assert planner._shares(list(seconds), LOOK) == pytest.approx(want)
    assert planner._shares([], LOOK) == planner._shares([0.0, 0.0], LOOK) == (1.0,)
    assert len(planner._shares(list(seconds), 0.0)) == 5


# ---- memory ----------------------------------------------------------------------------------------------------------


def buffers(room):
    """Distinct arrays of a slot, by where they lie."""
    return {a.ctypes.data: a.nbytes for arrays in room.values() for a in arrays if a.nbytes}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_a_slot(name, recompute, dtype):
    """What a further slot really takes, for every range of layers: first, middle and last stages, and the whole."""
    model = MODELS[name]
    count, rows = len(model.layers), 5
    for first in range(count):
        for last in range(first + 1, count + 1):
            stage = Stage(model, first, last, dtype, Optimizer("sgd"), rows, 3, recompute=recompute)
            before, room = buffers(stage._rooms[0]), buffers(stage._rooms[2])
            further = sum(nbytes for place, nbytes in room.items() if place not in before)
            assert slot_bytes(model, first, last, rows, dtype, recompute) == further, (first, last)
            assert slot_bytes(model, first, last, rows, dtype, recompute, whole=True) == sum(before.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_a_slot_that_keeps_some_of_its_layers(name, seed):
    model, rng = MODELS[name], np.random.default_rng(seed)
    count, rows = len(model.layers), 5
    first = int(rng.integers(0, count))
    last = int(rng.integers(first + 1, count + 1))
    flags = rng.integers(0, 2, last - first).astype(bool).tolist()
    stage = Stage(model, first, last, np.float32, Optimizer("sgd"), rows, 3, recompute=flags)
    before, room = buffers(stage._rooms[0]), buffers(stage._rooms[2])
    further = sum(nbytes for place, nbytes in room.items() if place not in before)
    assert slot_bytes(model, first, last, rows, np.float32, flags) == further
    assert slot_bytes(model, first, last, rows, np.float32, flags, whole=True) == sum(before.values())


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize(
    ("name", "ranks", "chunks"), [("mlp", 2, 1), ("mlp", 2, 2), ("cnn", 3, 1), ("gpt", 1, 3), ("gpt", 5, 1)]
)
def test_bytes_of_a_rank(name, ranks, chunks, optimizer):
    """Of the fullest: parameters, gradients, slots of the optimizer, what is derived, and slots of micro-batches."""
    problem = problem_of(name, ranks, 13, optimizer=Optimizer(optimizer))
    held = [[2 + rank + c for c in range(chunks)] for rank in range(ranks)]
    ends, rows, totals, actives = [0, *problem.ends(chunks)], pieces(13, 3)[0], [], []
    for rank in range(ranks):
        total = active = 0
        for c, slots in enumerate(held[rank]):
            s = c * ranks + rank
            stage = Stage(problem.model, ends[s], ends[s + 1], np.float32, problem.optimizer, rows, slots)
            for state in stage.states:
                arrays = [state.flat, state.gradient, state.derived, *state.slots.values()]
                total += sum(array.nbytes for array in arrays)
            active += sum(sum(buffers(room).values()) for room in stage._rooms)
        totals.append(total + active)
        actives.append(active)
    assert problem.bytes(chunks, 3, held) == (max(totals), max(actives))


def test_slots_are_those_of_training():
    """What `measure` counts is the room that a policy asks for."""
    problem = problem_of("mlp", 2, 16, in_flight=5)
    for name, v in ((RULE, 1), (RULE, 2), ("1f1b", 1), ("interleaved", 2), ("zb-h2", 1)):
        plan = build(name, 2, 8, v) if name != RULE else None
        held = []
        for rank in range(2):
            policy = FollowPlan(plan, rank) if plan else LocalRule(2, rank, 8, chunks=v, most=5)
            held.append([policy.room(c) for c in range(v)])
        choice = measure(problem, name, 8, v)
        assert (choice.bytes, choice.activations) == problem.bytes(v, 8, held), name
        assert choice.held == (max(peak_in_flight(plan, r) for r in range(2)) if plan else min(choice.held, 5 * v))
        assert choice.in_flight == max(map(max, held)) - POSTED


def test_most():
    problem = problem_of(ranks=2)
    assert [problem.most(m, 1, 1) for m in (1, 4, 32)] == [1, 4, 6]
    assert problem.most(32, 1, 10) == 10
    assert [replace(problem, in_flight=3).most(m, 1, 10) for m in (2, 32)] == [2, 3]


@pytest.mark.parametrize("chunks", [1, 2])
def test_most_that_memory_allows(chunks):
    """Just as many as fit, receives that are posted ahead included; at least one, which then may not fit."""
    problem = problem_of(ranks=2, batch=64)
    for most in (1, 2, 5):
        total, active = problem.bytes(chunks, 16, [[most + POSTED] * chunks] * 2)
        for bound in ({"memory": total}, {"activations": active}, {"memory": total, "activations": active}):
            bounded = replace(problem, **bound)
            assert bounded.most(16, chunks, 1) == most
            choice = measure(bounded, RULE, 16, chunks)
            assert fits(bounded, choice)
            assert choice.in_flight == most
            assert choice.held <= most * chunks
            tighter = replace(problem, **{key: value - 1 for key, value in bound.items()})
            assert tighter.most(16, chunks, 1) == max(1, most - 1)
            assert fits(tighter, measure(tighter, RULE, 16, chunks)) == (most > 1)


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_explore():
    """Every way that is possible and worth a try, once, each one that can be trained, the fastest first."""
    problem = problem_of("mlp", 2, 16, speeds=(1.0, 1.0), latency=2e-6)
    choices = explore(problem)
    assert [c.seconds for c in choices] == sorted(c.seconds for c in choices)
    ways = [(c.schedule, c.micro_batches, c.chunks, c.w_group, c.ahead) for c in choices]
    assert len(set(ways)) == len(ways)
    assert {c.schedule for c in choices} == {RULE, *plan_names()}
    assert {c.micro_batches for c in choices} == {1, 2, 4, 8, 16}
    assert {(c.schedule, c.chunks) for c in choices} == {
        *((name, 1) for name in (RULE, "naive", "gpipe", "1f1b", "zb-h1", "zb-h2")),
        *((name, 2) for name in (RULE, "naive", "gpipe", "interleaved", "interleaved-zb")),
    }  # a third chunk would need six layers
    for choice in choices:
        config = make_config({"batch_size": 16} | choice.settings())
        assert config.effective_mode == ("ready" if choice.schedule == RULE else "strict")
        assert config.effective_chunks == choice.chunks
        assert choice.w_group == 1 or (choice.schedule == RULE and 1 < choice.w_group <= choice.micro_batches)
        assert (config.ahead or 0.0) == choice.ahead
        assert choice.ahead == 0 or choice.schedule == RULE
        assert 0 <= choice.idle < 1
        assert choice.held >= 1
    again = measure(problem, *ways[0])
    assert again == choices[0]
    outcome, plan = run(problem, *ways[0])
    assert outcome.step_seconds == choices[0].seconds
    assert (plan is None) == (ways[0][0] == RULE)


def test_layers_are_dealt_once(monkeypatch):
    """The exact split takes long on many stages; memory is asked about hundreds of times."""
    calls = []
    monkeypatch.setattr(planner, "partition", lambda costs, stages: calls.append(stages) or partition(costs, stages))
    planner._evenly.cache_clear()
    explore(problem_of("mlp", 2, 64, speeds=(1.0, 1.0), memory=1, in_flight=30), micro_batches=[8, 32])
    assert sorted(calls) == [2, 4]


def test_what_is_measured_is_what_the_clock_says():
    problem = problem_of("mlp", 2, 16, speeds=(1.0, 0.5), latency=3e-5, bandwidth=1e7, jitter=0.2, seed=5)
    choice = measure(problem, "zb-h1", 8)
    outcome = simulate(problem.scene(8), build("zb-h1", 2, 8), steps=12)
    assert (choice.seconds, choice.idle) == (outcome.step_seconds, outcome.steady_idle)
    choice = measure(problem, RULE, 8, 2, 3)
    outcome = simulate(problem.scene(8, 2, 3), steps=12, w_group=3, most=6)
    assert (choice.seconds, choice.idle) == (outcome.step_seconds, outcome.steady_idle)
    choice = measure(problem, RULE, 8, 2, 3, 1.5)
    outcome = simulate(problem.scene(8, 2, 3), steps=12, w_group=3, most=6, ahead=1.5)
    assert (choice.seconds, choice.idle) == (outcome.step_seconds, outcome.steady_idle)


def test_only_what_is_asked_for():
    problem = problem_of("mlp", 2, 16, speeds=(1.0, 1.0))
    some = {"micro_batches": [4, 6], "chunks": [1, 2], "w_groups": [1, 3], "aheads": [2.5]}
    found = explore(problem, schedules=["1f1b", RULE], **some)
    assert [c.ahead for c in found if c.schedule == RULE] == [2.5] * 8
    assert {(c.schedule, c.micro_batches, c.chunks, c.w_group) for c in found} == {
        ("1f1b", 4, 1, 1),
        ("1f1b", 6, 1, 1),
        *((RULE, m, v, g) for m in (4, 6) for v in (1, 2) for g in (1, 3)),
    }
    assert {c.chunks for c in explore(problem, schedules=["interleaved"], micro_batches=[4], chunks=[1])} == {1}


@pytest.mark.parametrize(
    ("ranks", "how", "words"),
    [
        (6, {}, "model: has 5 layers, but each of 6 stages (ranks x chunks) needs one"),
        (
            3,
            {"chunks": [2]},
            "chunks: several a rank need 3 layers each (the model has 5) and a schedule that takes them",
        ),
        (
            2,
            {"chunks": [2], "schedules": ["1f1b", "zb-h1"]},
            "and a schedule that takes them: ready, naive, gpipe, inter",
        ),
        (3, {"schedules": ["interleaved"]}, "chunks: several a rank need 3 layers each"),
        (2, {"micro_batches": [4, 17]}, "micro_batches: 17 need a sample each, batch_size is 16"),
    ],
)
def test_nothing_to_compare(ranks, how, words):
    with pytest.raises(UserError) as caught:
        explore(problem_of("mlp", ranks, 16), **how)
    assert words in str(caught.value)


def test_micro_batches_worth_a_try():
    assert planner.reasonable_micro_batches(64, 4) == [1, 4, 8, 16, 32]
    assert planner.reasonable_micro_batches(6, 4) == [1, 4]
    assert planner.reasonable_micro_batches(2, 4) == [1]
    assert planner.reasonable_micro_batches(10**6, 3) == [1, 4, 8, 16]


# ---- what is recommended ---------------------------------------------------------------------------------------------


def choice_of(name, seconds, total, active=1):
    return Choice(
        schedule=name,
        micro_batches=4,
        chunks=1,
        w_group=1,
        ahead=0.0,
        seconds=seconds,
        idle=0.0,
        bytes=total,
        activations=active,
        held=1,
        in_flight=1,
    )


def test_recommendation():
    """The fastest that fits; the leanest of those within 1 % of it."""
    free = problem_of()
    choices = [
        choice_of("a", 1.0, 900, 90),
        choice_of("b", 1.009, 800, 95),
        choice_of("c", 1.03, 100, 80),
        choice_of("d", 1.5, 50, 40),
    ]
    assert recommend(free, choices).schedule == "b"
    assert recommend(free, [choice_of("a", 1.0, 900), choice_of("b", 1.001, 900)]).schedule == "a"
    for bound, want in ((900, "b"), (899, "b"), (799, "c"), (100, "c"), (99, "d"), (50, "d")):
        assert recommend(replace(free, memory=bound), choices).schedule == want, bound
    for bound, want in ((95, "b"), (90, "a"), (89, "c"), (40, "d")):
        assert recommend(replace(free, activations=bound), choices).schedule == want, bound
    assert fits(replace(free, memory=900, activations=90), choices[0])
    assert not fits(replace(free, memory=900, activations=89), choices[0])
    assert not fits(replace(free, memory=899, activations=90), choices[0])
    with pytest.raises(UserError) as caught:
        recommend(replace(free, memory=49), choices)
    assert str(caught.value) == (
        "memory: the leanest way, d with 4 micro-batches, takes 50 B on its fullest rank, 40 B of it for activations; "
        "take more ranks or smaller micro-batches"
    )
    with pytest.raises(UserError, match="^activation_memory: the leanest way, d "):
        recommend(replace(free, activations=39), choices)


def test_a_bound_of_memory_is_kept():
    """Between the leanest and the fullest way every bound gives one that keeps to it, and more room is never slower."""
    problem = problem_of("mlp", 2, 64, speeds=(1.0, 1.0))
    choices = explore(problem, micro_batches=[2, 8, 16])
    low, high = min(c.bytes for c in choices), max(c.bytes for c in choices)
    before = float("inf")
    for bound in np.linspace(low, high, 7).astype(int):
        best = recommend(replace(problem, memory=int(bound)), choices)
        assert best.bytes <= bound
        assert best.seconds <= 1.01 * before
        before = best.seconds

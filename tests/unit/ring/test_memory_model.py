"""What a rank will take: by part, against real stages; what fits; and that the advice given does help."""

from types import SimpleNamespace

import numpy as np
import pytest

from ringtmp.config.schema import RunConfig
from ringtmp.errors import UserError
from ringtmp.nn.model import build_model
from ringtmp.nn.stage import Stage
from ringtmp.ring.memory_model import Needs, _writes
from ringtmp.run.job import Job
from ringtmp.run.memory_limits import Limit
from ringtmp.schedule.policies import POSTED

MIB = 1 << 20
MODELS = {
    "mlp": ("mlp:40-64x7-10", (40,), 10, 1, False),
    "cnn": ("cnn:8x8-8c3-p2-16c3-p2-32-10", (8, 8, 1), 10, 1, False),
    "gpt": ("gpt:layers=3,width=32,heads=2,context=16", (16,), 65, 16, True),
}


def needs_of(name="mlp", ranks=2, chunks=1, limit=1 << 40, program=0, **settings):
    spec, shape, classes, labels, text = MODELS[name]
    config = RunConfig(**{"batch_size": 64, "micro_batches": 8, "checkpoint_every": 0} | settings)
    info = SimpleNamespace(n_train=640, n_test=64)
    job = Job(config, info, build_model(spec, "auto", shape, "classes", classes, labels, text), None)
    return Needs(job, ranks, chunks, program, Limit(limit, "the test"), _writes(job))


def bytes_of(stage):
    """Distinct arrays of a stage."""
    arrays = [a for room in stage._rooms for each in room.values() for a in each]
    for state in stage.states:
        arrays += [state.flat, state.gradient, state.derived, *state.slots.values()]
    arrays += stage._scratch
    return sum({a.ctypes.data: a.nbytes for a in arrays if a.nbytes}.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_as_much_as_a_real_stage(name, optimizer, recompute):
    needs = needs_of(name, optimizer=optimizer, recompute=recompute)
    job = needs.job
    rows, count = job.timetable().rows, len(job.model.layers)
    for first, last in ((0, 2), (1, count), (0, count), (1, 2)):
        for slots in (1, 4):
            stage = Stage(job.model, first, last, job.dtype, job.optimizer(), rows, slots, recompute=recompute)
            takes = needs.stage(first, last, slots, recompute)
            assert takes.total - takes.passing == bytes_of(stage)


@pytest.mark.parametrize("recompute", [False, True, "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_reach(name, recompute):
    """As far as possible, and no further."""
    needs = needs_of(name, recompute=recompute)
    count = len(needs.job.model.layers)
    whole = needs._least(0, count, 3)
    for room in np.linspace(0, 1.1 * whole, 12).astype(int):
        ends = needs.reach(3, int(room))
        assert len(ends) == count + 1
        for first, end in enumerate(ends[:-1]):
            assert first <= end <= count
            assert all(needs._least(first, last, 3) <= room for last in range(first + 1, end + 1))
            if end < count:
                assert needs._least(first, end + 1, 3) > room


def test_what_is_made_again_is_no_more_than_it_takes():
    needs = needs_of(recompute="auto")
    count = len(needs.job.model.layers)
    least, most = (needs.stage(0, count, 9, again).total for again in (True, False))
    before = 0
    for room in np.linspace(most, least, 9).astype(int):
        flags = needs.choose_recompute(0, count, 9, int(room))
        assert needs.stage(0, count, 9, flags).total <= room
        assert sum(flags) >= before
        before = sum(flags)
    assert not any(needs.choose_recompute(0, count, 9, most))
    assert 0 < before < count  # the last layer's output is sent on in any case


def test_micro_batches_in_flight():
    free = needs_of()
    stages = [(0, 4)]
    sizes = {held: free.rank(stages, [held + POSTED], [(False,) * 4]).total for held in range(1, 9)}
    assert free.in_flight(stages, 8, 2) == 8
    for held, size in sizes.items():
        assert needs_of(limit=size).in_flight(stages, 8, 2) == held
        assert needs_of(limit=size - 1).in_flight(stages, 8, 2) == max(1, held - 1)
    assert needs_of(limit=sizes[1], recompute="auto").in_flight(stages, 8, 2) >= 1


def refusal(needs, stages=((0, 8),), slots=3):
    with pytest.raises(UserError) as caught:
        needs.check(stages, (slots,) * len(stages), ((),), 5)
    return str(caught.value)


def test_a_refusal_says_the_numbers():
    needs = needs_of(limit=50 * MIB, program=49 * MIB, batch_size=256, optimizer="adamw")
    text = refusal(needs_of(limit=60 * MIB, program=59 * MIB, batch_size=640, micro_batches=1))
    assert text.startswith("memory_limit: rank 5 would take 6")
    assert "59.0 MiB program" in text or "59 MiB program" in text
    assert "of 60 MiB (the test)" in text
    needs.check(((0, 1),), (1,), ((False,),), 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_batches": 1, "batch_size": 640}, "more --micro-batches"),
        ({"recompute": False}, "ranks"),
        ({"state_copies": 1}, "--state-copies off"),
        ({"checkpoint_every": 5}, "--checkpoint-every 0"),
        ({"optimizer": "adam"}, "--optimizer sgd"),
    ],
)
def test_advice_helps(settings, words):
    """Each piece of advice is true: with it, the network fits; without it, it does not."""
    free = needs_of(ranks=1, **settings)
    count = len(free.job.model.layers)
    better = {
        "more --micro-batches": {"micro_batches": 640},
        "--state-copies off": {"state_copies": 0},
        "--checkpoint-every 0": {"checkpoint_every": 0},
        "--optimizer sgd": {"optimizer": "sgd"},
    }
    limit = free._least(0, count, 3) - 1 if words == "ranks" else free._with(better[words])._least(0, count, 3)
    needs = needs_of(ranks=1, limit=limit, **settings)
    assert needs.reach(3)[0] < count
    text = needs.advice(3)
    assert words in text
    if words == "ranks":
        assert "2 ranks" in text
    else:
        assert needs._with(better[words]).reach(3)[0] == count


def test_no_advice_where_nothing_helps():
    text = needs_of(limit=1 * MIB, program=1 * MIB).advice(3)
    assert "alone takes" in text
    assert "000-dense" in text or "001-dense" in text

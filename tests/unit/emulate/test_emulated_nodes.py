"""Emulated nodes: how long their actions are to last, and that they do."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringtmp.emulate import nodes as module
from ringtmp.emulate.jitter import stretch
from ringtmp.emulate.nodes import Course, Pace, Paced, nominal, parse_courses, parse_pace
from ringtmp.errors import UserError
from ringtmp.nn.model import build_model
from ringtmp.ring.actions import Actions
from ringtmp.trace.recorder import clock

ATTENTION = [
    {"type": "embedding", "tokens": 65, "width": 12},
    {"type": "attention", "heads": 2},
    {"type": "head", "units": 65},
]
MODELS = {
    "mlp": build_model("mlp:12-30x3-7-10", "auto", 12, "classes", 10),
    "cnn": build_model("cnn:8x8-4c3-p2-6c3-a2-9-10", "auto", (8, 8), "classes", 10),
    "gpt": build_model("gpt:layers=3,width=16,heads=2,context=8", "auto", (8,), "classes", 65, 8, True),
    "attention": build_model(ATTENTION, "auto", (8,), "classes", 65, 8, True),
}


def pace_of(name="mlp", first=0, last=None, gflops=2.0, jitter=0.0, stage=3, seed=11):
    model = MODELS[name]
    return Pace(model, first, len(model.layers) if last is None else last, stage, Course(gflops), jitter, seed)


# ---- speeds ----------------------------------------------------------------------------------------------------------


def test_speeds():
    assert parse_pace("2", 3) == [2.0, 2.0, 2.0]
    assert parse_pace("2, 1.5,1e-3", 3) == [2.0, 1.5, 1e-3]
    assert parse_pace("7", 1) == [7.0]


def test_speeds_that_change():
    steady, broken, ramp, both = parse_courses("4,4@10:1,4@10-20:2,4@10-20:2@30:8", 4)
    assert parse_pace("4,4@10:1,4@10-20:2,4@10-20:2@30:8", 4) == [4.0] * 4
    assert [steady.slowness(step) for step in (0, 10, 1000)] == [1, 1, 1]
    assert [broken.slowness(step) for step in (0, 9, 10, 11)] == [1, 1, 4, 4]
    assert [ramp.slowness(step) for step in (0, 10, 15, 20, 99)] == [1, 1, 4 / 3, 2, 2]
    assert [both.slowness(step) for step in (15, 29, 30)] == [4 / 3, 2, 0.5]
    assert parse_courses("2@5:1", 3) == [Course(2.0, ((5, 5, 1.0),))] * 3


def test_a_slower_node_takes_longer_from_its_step_on():
    paced = Paced(0, 0.0, 0, Course(2.0, ((3, 3, 1.0),)))
    for step, times in ((2, 1), (3, 2)):
        paced.stepped(step)
        began, before = clock(), paced.total
        paced.until(began, 2e6)
        assert paced.total - before == times * 2_000_000
        assert clock() - began >= times * 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "fast",
        "2,fast",
        "2,,2",
        "0",
        "2,0,2",
        "-1",
        "nan",
        "inf",
        "1e9",
        "2;2",
        "2@",
        "2@5",
        "2@5:0",
        "2@5:x",
        "2@-1:1",
        "2@9-5:1",
        "2@5:1@4:2",
    ],
)
def test_no_speeds(text):
    with pytest.raises(UserError) as caught:
        parse_pace(text, 3)
    assert str(caught.value) == (
        "node_speed: expected GFLOP/s above 0, for all ranks or one for each as in 2,2,0.5; 2@50:1 from step 50 on, "
        f"2@50-90:1 by degrees, got {text!r}"
    )


@pytest.mark.parametrize(("text", "named"), [("2,2", 2), ("1,2,3,4", 4)])
def test_speeds_of_other_ranks(text, named):
    with pytest.raises(UserError, match=f"node_speed: {text} names {named} ranks, but 3 were started"):
        parse_pace(text, 3)


# ---- durations -------------------------------------------------------------------------------------------------------


def test_by_hand():
    """F of a dense layer: 2 x 12 x 30 operations a sample, at 2 GFLOP/s; U: ten for each parameter."""
    one, update = nominal(MODELS["mlp"], 0, 5, 2.0)
    assert one == pytest.approx(5 * 2 * 12 * 30 / 2e9, rel=1e-12)
    assert update == pytest.approx(10 * (12 * 30 + 30) / 2e9, rel=1e-12)
    pace = pace_of(last=1)
    assert (pace.row, pace.update) == pytest.approx((360.0, 1950.0))


@pytest.mark.parametrize("name", MODELS)
@given(st.data())
def test_no_split_makes_work(name, data):
    """Stages' durations add up to those of the whole; twice the speed is half the time."""
    layers, whole = len(MODELS[name].layers), pace_of(name)
    cuts = sorted(data.draw(st.sets(st.integers(1, layers - 1))))
    parts = [pace_of(name, first, last) for first, last in zip([0, *cuts], [*cuts, layers], strict=True)]
    assert sum(part.row for part in parts) == pytest.approx(whole.row, rel=1e-12)
    assert sum(part.update for part in parts) == pytest.approx(whole.update, rel=1e-12)
    assert [ns for part in parts for ns in part.layers] == whole.layers
    assert pace_of(name, gflops=4.0).row == pytest.approx(whole.row / 2)
    assert pace_of(name, gflops=4.0).update == pytest.approx(whole.update / 2)


def asked(pace, name, first, last, rows):
    """What the engine asks for, by piece, in a W of micro-batches of so many rows; a piece for each layer."""
    lasts = []
    pace.until = lambda begin, nanoseconds: lasts.append(nanoseconds)
    held = [n for n, layer in enumerate(MODELS[name].layers[first:last]) if layer.count]
    works = [SimpleNamespace(dy=np.zeros((each, 1))) for each in rows]
    actions = SimpleNamespace(paces={0: pace})
    for piece in range(1, max(1, len(held)) + 1):
        chunk = SimpleNamespace(stage=SimpleNamespace(pieces=[(n,) for n in held]), piece=piece, index=0)
        Actions._pace_piece(actions, chunk, 0, works, 4)
    return lasts


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("mlp", 0, 5), ("mlp", 2, 4), ("cnn", 0, 3), ("cnn", 1, 2), ("gpt", 1, 5), ("attention", 1, 3)],
)
def test_pieces_of_w_add_up(name, first, last, jitter):
    """To F's duration of each micro-batch, with a factor of its own, whatever layers have weights."""
    pace = pace_of(name, first, last, jitter=jitter)
    want = sum(pace.row * rows * stretch(jitter, 11, 3, 2, number) for number, rows in ((4, 6), (5, 2)))
    assert sum(asked(pace, name, first, last, (6, 2))) == pytest.approx(want, rel=1e-12)


def test_a_stage_without_weights():
    """Attention alone has operations, and no weights: its W is a wait of the same length, not of its square."""
    pace = pace_of("attention", 1, 2)
    assert pace.row > 100
    assert sum(asked(pace, "attention", 1, 2, (6,))) == pytest.approx(6 * pace.row)


@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.9])
def test_factor(jitter):
    """The simulator's factor for the same stage, kind and number; within 1 +- jitter, and 1 on average."""
    pace = pace_of(jitter=jitter, stage=5, seed=9)
    factors = np.array([[pace.factor(kind, number) for number in range(3000)] for kind in range(4)])
    want = [[stretch(jitter, 9, 5, kind, number) for number in range(3000)] for kind in range(4)]
    np.testing.assert_array_equal(factors, want)
    assert factors.min() >= 1 - jitter
    assert factors.max() <= 1 + jitter
    assert np.abs(factors.mean(1) - 1).max() <= 0.03 * jitter
    if jitter:
        assert np.ptp(factors) > 1.9 * jitter
        assert pace.factor(0, -1) != pace.factor(0, 0)  # an evaluation's number is below zero
        other = pace_of(jitter=jitter, stage=4, seed=9)
        assert other.factor(0, 0) != pace.factor(0, 0)


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_an_action_lasts_as_long_as_asked():
    pace = pace_of()
    for nanoseconds in (0, 1000, 50_000, 200_000, 3_000_000):
        begin = clock()
        pace.until(begin, nanoseconds)
        gone = clock() - begin
        assert gone >= nanoseconds
        assert gone < nanoseconds + 200_000_000  # a core that is taken by others, at worst
    assert pace.total == 3_251_000


def test_late_actions_are_counted(monkeypatch):
    """By how much they were late; the others sleep, and not one nanosecond less than is left."""
    now, slept = [0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += round(seconds * 1e9) + 5_000

    monkeypatch.setattr(module, "clock", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", sleep)
    pace = pace_of()
    now[0] = 1_000_000
    pace.until(0, 400_000.9)
    assert (pace.late, pace.total, slept) == (600_000, 400_000, [])
    pace.until(0, 1_000_000)  # just in time
    assert (pace.late, slept) == (600_000, [])
    pace.until(0, 3_000_000)
    assert now[0] >= 3_000_000
    assert slept[0] == pytest.approx(1_940e-6)
    assert set(slept[1:]) == {0}
    assert (pace.late, pace.total) == (600_000, 4_400_000)
    assert now[0] < 3_010_000

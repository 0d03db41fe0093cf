"""The steady state of a run: on frames made by hand, and as the clock itself tells it."""

import pandas as pd
import pytest

from ringtmp.analysis.steady import steady
from ringtmp.errors import UserError
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate

SECOND = 10**9


def frame(rows):
    """A frame of (rank, kind, start, end, step) in seconds."""
    events = pd.DataFrame(rows, columns=["rank", "kind", "start", "end", "step"])
    return events.assign(start=(events["start"] * SECOND).astype("int64"), end=(events["end"] * SECOND).astype("int64"))


def regular(steps, late=0.0):
    """Two ranks with steps of 10 s; rank 0 works 6 (F, I, W, U) and waits 3; rank 1, `late`, works 8 and waits 2."""
    rows = []
    for step in range(steps):
        t = 10 * step
        rows += [(0, "F", t, t + 2, step), (0, "wait", t + 2, t + 5, step), (0, "I", t + 5, t + 7, step)]
        rows += [(0, "send", t + 7, t + 8, step), (0, "W", t + 8, t + 9.5, step), (0, "U", t + 9.5, t + 10, step)]
        t += late
        rows += [
            (1, "wait", t, t + 2, step),
            (1, "F", t + 2, t + 5, step),
            (1, "B", t + 5, t + 9, step),
            (1, "U", t + 9, t + 10, step),
        ]
    return frame(rows)


def test_by_hand():
    for events in (regular(8), regular(8, late=3.0), regular(8).sample(frac=1, random_state=0)):
        found = steady(events)
        assert (found.first, found.seconds) == (2, 10.0)
        assert found.idle == pytest.approx((0.3 + 0.2) / 2)
        assert found.busy == pytest.approx((0.6 + 0.8) / 2)


@pytest.mark.parametrize(
    ("steps", "skip", "first"), [(8, None, 2), (8, 3, 3), (8, 6, 6), (4, 0, 1), (3, 1, 1), (40, None, 10)]
)
def test_the_beginning_is_left_out(steps, skip, first):
    """A first step of another length, and one with long waits, does not count; `first` is the first that does."""
    events = regular(steps)
    slow = frame([(0, "wait", -90, 0, 0), (1, "wait", -90, 0, 0)])
    found = steady(pd.concat([slow, events]), skip)
    assert (found.first, found.seconds) == (first, 10.0)
    assert found.idle == pytest.approx(0.25)


def test_what_lies_across_the_beginning_is_cut():
    """Of a wait that began before the span only the part within counts; what comes after the last update does not."""
    rows = [(0, "U", 0, 1, 0), (0, "wait", 0.5, 3, 1), (0, "F", 3, 4, 1), (0, "U", 4, 5, 1), (0, "wait", 5, 99, 2)]
    found = steady(frame(rows), 0)
    assert (found.first, found.seconds) == (1, 4.0)
    assert found.idle == pytest.approx(2 / 4)
    assert found.busy == pytest.approx(2 / 4)


def test_the_slowest_rank_makes_the_step():
    """And with several chunks a rank's step ends with the last of its updates."""
    rows = []
    for step in range(4):
        rows += [(0, "U", 10 * step, 10 * step + 1, step), (0, "U", 10 * step + 4, 10 * step + 5, step)]
        rows += [(1, "U", 12 * step + 6, 12 * step + 7, step)]
    found = steady(frame(rows), 1)
    assert found.seconds == 12.0
    assert found.busy == pytest.approx((6 / 30 + 3 / 36) / 2)
    assert found.idle == pytest.approx(1 - found.busy)  # no wait was recorded: what is not busy


@pytest.mark.parametrize(("steps", "skip", "least"), [(1, None, 2), (2, 1, 3), (8, 7, 9), (8, 20, 22)])
def test_too_few_steps(steps, skip, least):
    with pytest.raises(
        UserError, match=f"steady state: the trace holds {steps} whole steps, expected at least {least}"
    ):
        steady(regular(steps), skip)


def test_evaluations():
    """Refused among the steps, not before them nor after."""
    events = regular(8)
    for start, refused in ((5, False), (45, True), (78, True), (80, False)):
        tested = pd.concat([events, frame([(1, "E", start, start + 3, 4)])])
        if refused:
            with pytest.raises(UserError, match="an evaluation lies among the steps; train with --eval-every 0"):
                steady(tested)
        else:
            assert steady(tested).idle == pytest.approx(0.25)


def served(steps, taken=True):
    """A server (rank 0) and two workers with steps of 10 s.

    The server is busy for 2 of them and waits for 7; of two layers worker 1 works 8, waits 2, worker 2 works 5, waits
    5, and each is done with the weights of a step (`taken`: also of the last) a second into the next.
    """
    rows = []
    for step in range(steps):
        t = 10 * step
        rows += [
            (0, "wait", t, t + 7, step),
            (0, "U", t + 7, t + 8, step),
            (0, "receive", t + 8, t + 9, step),
            (0, "U", t + 9, t + 10, step),
        ]
        for rank, works in ((1, 8), (2, 5)):
            rows += [(rank, "F", t + 1, t + 3, step), (rank, "I", t + 3, t + 3.5, step)]
            rows += [(rank, "W", t + 3.5, t + works, step), (rank, "wait", t + works, t + 10, step)]
            if taken or step < steps - 1:
                rows += [(rank, "U", t + 10, t + 10.5, step), (rank, "U", t + 10.5, t + 11, step)]
    return frame(rows)


@pytest.mark.parametrize(("taken", "skip"), [(True, None), (False, None), (False, 0), (True, 3)])
def test_servers_and_workers(taken, skip):
    """All ranks, or workers alone; a last step whose weights no worker took up is no whole step."""
    events = served(8, taken)
    for some, idle, busy in (
        (events, (0.7 + 0.2 + 0.5) / 3, (0.2 + 0.8 + 0.5) / 3),
        (events[events["rank"].isin([1, 2])], (0.2 + 0.5) / 2, (0.8 + 0.5) / 2),
        (events[events["rank"] == 0], 0.7, 0.2),
    ):
        found = steady(some, skip)
        whole = 8 if taken or set(some["rank"]) == {0} else 7
        assert found.first == {None: whole // 4, 0: 1, 3: 3}[skip]
        assert (found.seconds, found.idle, found.busy) == pytest.approx((10.0, idle, busy))


def test_steps_that_are_missing():
    """Steps are counted as numbered: a rank without an update in one, as a backup worker, takes it from the others."""
    events = regular(8)
    events = events[~((events["rank"] == 1) & (events["kind"] == "U") & events["step"].isin([3, 7]))]
    found = steady(events, 1)
    assert (found.first, found.seconds) == (1, 10.0)
    assert found.idle == pytest.approx(0.25)
    with pytest.raises(UserError, match="the trace holds 6 whole steps, expected at least 8"):
        steady(events, 6)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "p", "m", "v"),
    [
        ("gpipe", 4, 8, 1),
        ("1f1b", 3, 7, 1),
        ("interleaved", 2, 6, 2),
        ("zb-h1", 4, 8, 1),
        (None, 4, 8, 1),
        (None, 3, 6, 2),
    ],
)
def test_as_the_clock_tells_it(name, p, m, v, jitter):
    """A simulation's events give the step and the idle share that its outcome states."""
    scene = Scene.even(p, m, chunks=v, latency=0.2, jitter=jitter, update=0.3, layers=2, slower={1: 1.5})
    outcome = simulate(scene, build(name, p, m, v) if name else None, steps=40, log=True)
    found = steady(outcome.events())
    assert found.seconds == pytest.approx(outcome.step_seconds, rel=1e-6)
    assert found.idle == pytest.approx(outcome.steady_idle, abs=0.01 if jitter else 0.003)
    assert found.busy == pytest.approx(1 - found.idle)
    assert 0.05 < found.idle < 0.8

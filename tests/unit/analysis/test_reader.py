"""What the events of a run tell: staleness and micro-batches in flight; and traces that cannot be read."""

import h5py
import numpy as np
import pytest
from events import events_of

import ringtmp
from ringtmp.analysis import open_run, peak_in_flight, staleness
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate


def test_staleness_by_hand():
    """The oldest weights that an F of the update's step used count; evaluations and other stages do not."""
    rows = [
        (0, "F", 0, 1, 5, 0, 0, 5),
        (0, "F", 1, 2, 5, 1, 0, 4),
        (0, "U", 2, 3, 5, -1, 0, 6),
        (0, "F", 3, 4, 6, 0, 0, 3),
        (0, "U", 4, 5, 6, -1, 0, 7),
        (0, "E", 6, 7, 6, 0, 0, 0),
        (1, "F", 0, 1, 5, 0, 1, 5),
        (1, "I", 1, 2, 5, 0, 1, 0),
        (1, "U", 2, 3, 5, -1, 1, 6),
        (1, "wait", 3, 4, 6, -1, 1, -1),
        (1, "U", 4, 5, 6, -1, 1, 7),  # whose forwards are not there
    ]
    got = staleness(events_of(rows))
    assert got.to_dict("list") == {"rank": [0, 0, 1], "stage": [0, 0, 1], "step": [5, 6, 5], "staleness": [1, 3, 0]}
    assert (got.dtypes == np.int64).all()


def test_staleness_of_a_run(run):
    """Synchronous training uses the newest weights."""
    got = run.staleness()
    assert got["step"].tolist() == list(range(10))
    assert (got["staleness"] == 0).all()


def test_staleness_of_what_does_not_say():
    events = events_of([(0, "F", 0, 1, 0, 0, 0, -1)])
    for each in (events, events.drop(columns="version")):
        with pytest.raises(ringtmp.UserError, match="no weight versions"):
            staleness(each)
    assert staleness(events.iloc[:0]).empty


def test_peak_in_flight_by_hand():
    """A micro-batch goes with the end of its last piece of W, and what begins at that moment has its place."""
    rows = [
        (0, "F", 0, 10, 0, 0, 0, 0),
        (0, "F", 10, 20, 0, 1, 0, 0),
        (0, "W", 20, 30, 0, 0, 0, -1),
        (0, "F", 30, 40, 0, 2, 0, 0),  # 0 is not done: 3
        (0, "W", 40, 50, 0, 0, 0, -1),
        (0, "F", 50, 60, 0, 3, 0, 0),  # 0 is: 3
        (0, "E", 60, 70, 1, 0, 0, 0),
        (0, "E", 70, 80, 1, 1, 0, 0),
        (0, "E", 80, 90, 1, 2, 0, 0),
        (1, "F", 0, 10, 0, 0, 1, 0),
        (1, "B", 10, 20, 0, 0, 1, 0),
        (1, "F", 20, 30, 0, 1, 1, 0),  # 1
        (2, "W", 0, 10, 0, 0, 2, 0),
        (2, "F", 10, 20, 1, 0, 2, 0),
        (2, "F", 20, 30, 1, 0, 5, 0),  # two stages: 2
        (3, "wait", 0, 10, 0, -1, 3, -1),
    ]
    got = peak_in_flight(events_of(rows).sample(frac=1, random_state=1))
    assert got.to_dict() == {0: 3, 1: 1, 2: 2, 3: 0}
    assert got.dtype == np.int64


@pytest.mark.parametrize(("name", "chunks"), [(None, 1), (None, 2), ("interleaved", 2), ("gpipe", 1), ("zb-h2", 1)])
def test_peak_in_flight_is_the_simulators(name, chunks):
    plan = build(name, 4, 9, chunks) if name else None
    outcome = simulate(Scene.even(4, 9, chunks=chunks, layers=4, jitter=0.4), plan, steps=3, log=True)
    assert peak_in_flight(outcome.events()).tolist() == outcome.held.tolist()


def test_peak_in_flight_of_a_run(run):
    assert run.peak_in_flight().index.tolist() == [0]
    assert 1 <= run.peak_in_flight()[0] <= 4


def copied(run, tmp_path):
    """Another run folder with the same trace, to be spoilt."""
    import shutil

    return shutil.copytree(run.path, tmp_path / "copy") / "traces" / "000" / "rank-0000.h5"


def test_a_trace_of_another_format_is_named(run, tmp_path):
    path = copied(run, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "ringtmp-trace-1"
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: expected format ringtmp-trace-2, got ringtmp-trace-1"):
        open_run(tmp_path / "copy").events()


def test_a_damaged_trace_is_named(run, tmp_path):
    path = copied(run, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: cannot be read"):
        open_run(tmp_path / "copy").events()


def test_a_trace_before_its_first_event(run, tmp_path):
    path = copied(run, tmp_path)
    with h5py.File(path, "r+") as file:
        del file.attrs["began"]
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: no event has been written"):
        open_run(tmp_path / "copy").events()

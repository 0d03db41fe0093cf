"""The recorder and the reader: what goes in comes out, in nanoseconds."""

import h5py
import numpy as np
import pytest

import ringtmp
from ringtmp.analysis import draw_gantt, open_run
from ringtmp.analysis.reader import _align
from ringtmp.errors import RunFailure
from ringtmp.trace import recorder as trace
from ringtmp.trace.events import EVENT, KINDS, PARTS
from ringtmp.trace.recorder import Recorder, clock


def test_what_goes_in_comes_out(tmp_path, monkeypatch):
    """More events than one block holds."""
    monkeypatch.setattr(trace, "_BLOCK", 64)
    path = tmp_path / "rank-0000.h5"
    recorder = Recorder(path, {"rank": 3, "config": {"lr": 0.5}})
    kinds = list(KINDS)
    rng = np.random.default_rng(0)
    want = []
    for n in range(500):
        start, kind = int(rng.integers(0, 2**62)), kinds[n % len(kinds)]
        event = (start, start + int(rng.integers(0, 10**9)), n, n % 7, n % 5, 2**40 + n, n % 3, n % 4)
        recorder.record(kind, event[0], event[1], *event[2:])
        want.append((event[0], event[1], event[5], event[2], event[3], event[4], event[7], event[6], n % len(kinds)))
    recorder.flush({"ended": 9})
    with h5py.File(path) as file:
        got = list(zip(*(file["events"][name][:].tolist() for name in EVENT.names), strict=True))
        assert got == want
        assert file.attrs["rank"] == 3
        assert file.attrs["config"] == '{"lr": 0.5}'
    for kind in kinds:
        assert recorder.totals[kind] == sum(w[1] - w[0] for w in want if kinds[w[8]] == kind)


def test_a_killed_job_leaves_a_readable_trace(tmp_path, monkeypatch):
    """The file is closed after each block."""
    monkeypatch.setattr(trace, "_BLOCK", 10)
    recorder = Recorder(tmp_path / "a.h5", {})
    for n in range(25):
        recorder.record("F", n, n + 1, 0)
    with h5py.File(tmp_path / "a.h5") as file:
        assert len(file["events/start"]) == 20


def test_no_file_is_overwritten(tmp_path, capsys):
    (tmp_path / "a.h5").write_text("precious")
    recorder = Recorder(tmp_path / "a.h5", {})
    recorder.record("F", 1, 3, 0)
    recorder.flush()
    assert (tmp_path / "a.h5").read_text() == "precious"
    assert "File exists" in capsys.readouterr().err
    assert recorder.totals["F"] == 2


def test_a_run_that_fails_leaves_its_trace(tmp_path):
    """With what led to the failure, a wall time that holds it, and parts that add up to that."""
    with pytest.raises(RunFailure, match="the loss became"):
        ringtmp.train(
            model="mlp:64-16x2-10", steps=300, optimizer="sgd", lr=1e9, out=str(tmp_path), name="a", progress=False
        )
    run = open_run(tmp_path / "a")
    assert run.status["state"] == "failed"
    assert len(run.events()) > 10
    table = run.breakdown()
    assert (table >= 0).all().all()
    assert np.allclose(table[["compute", "transfer", "wait", "checkpoint", "other"]].sum(axis=1), table["wall"])


@pytest.mark.parametrize("traced", [True, False])
def test_old_events_are_written_between_steps(tmp_path, monkeypatch, traced):
    """Without a file there is nothing to write, however much time has gone."""
    monkeypatch.setattr(trace, "_FLUSH_PERIOD", -1)
    recorder = Recorder(tmp_path / "a.h5" if traced else None, {})
    recorder.record("F", 1, 3, 0)
    recorder.between_steps(0)
    assert (recorder.totals["trace"] > 0) == traced
    if traced:
        with h5py.File(tmp_path / "a.h5") as file:
            assert len(file["events/start"]) == 1


def test_without_a_file_sums_are_kept(tmp_path):
    recorder = Recorder(None, {})
    recorder.record("F", 10, 15, 0)
    recorder.record("wait", 15, 22, 0)
    recorder.began, recorder.ended = 0, 30
    assert recorder.parts() == {"compute": 5, "transfer": 0, "wait": 7, "checkpoint": 0, "other": 18}
    recorder.flush()


def test_a_lap_ends_with_the_newest_event():
    """A wait under way belongs to the next lap: waited never exceeds elapsed, and laps sum to the whole."""
    recorder = Recorder(None, {})
    recorder.record("wait", recorder.began - 10, recorder.began, 0)
    recorder.begin()
    zero = recorder.began
    recorder.record("F", zero + 2, zero + 5, 0)
    recorder.record("wait", zero + 5, zero + 9, 0)
    assert recorder.lap() == (4, 9)
    assert recorder.lap() == (0, 0)
    recorder.record("wait", zero + 9, zero + 30, 0)
    recorder.record("I", zero + 31, zero + 40, 0)
    assert recorder.lap() == (21, 31)


@pytest.mark.parametrize("file", [True, False])
def test_the_newest_events_stay_in_memory(tmp_path, monkeypatch, file):
    """Those of the present block and what it has not written over of the one before: without a gap, in order."""
    monkeypatch.setattr(trace, "_BLOCK", 10)
    recorder = Recorder(tmp_path / "a.h5" if file else None, {}, keep=not file)
    assert len(recorder.newest(100).start) == 0
    for n in range(36):
        recorder.record("wait" if n % 2 else "F", 10 * n, 10 * n + 5, 0)
        if n == 3:
            recorder.flush()  # a short block, before it was full
        newest = recorder.newest(100)
        got = newest.start.tolist()
        assert got == list(range(10 * (n + 1 - len(got)), 10 * (n + 1), 10))
        assert len(got) >= min(n + 1, 4 if n < 14 else 10) or n == 3
        assert newest.end.tolist() == [start + 5 for start in got]
        assert newest.part.tolist() == [PARTS.index("wait" if start % 20 else "compute") for start in got]
    recorder.flush()
    recorder.flush()
    assert recorder.newest(3).start.tolist() == [330, 340, 350]


def test_nothing_is_kept_without_need():
    recorder = Recorder(None, {})
    recorder.record("F", 1, 2, 0)
    assert recorder.newest(10) is None


def test_clocks_are_aligned():
    """The offset between the two comparisons is a straight line, before and after them it stays."""
    clocks = {"clock_first": {"at": 100, "offset": 10}, "clock_last": {"at": 200, "offset": 30}}
    assert _align(np.array([50, 100, 150, 200, 300]), clocks).tolist() == [40, 90, 130, 170, 270]
    assert _align(np.array([5]), {}).tolist() == [5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    ringtmp.train(
        data="digits", model="mlp:64-16x2-10", steps=10, micro_batches=4, batch_size=32, out=str(out), name="a"
    )
    return open_run(out / "a")


def test_events_of_a_run(run):
    events = run.events()
    assert (events["kind"].isin(list(KINDS))).all()
    assert (events["start"] >= 0).all()
    assert len(events[events["kind"] == "F"]) == 40
    assert events["start"].dtype == np.int64
    table = run.breakdown()
    assert np.allclose(table[["compute", "transfer", "wait", "checkpoint", "other"]].sum(axis=1), table["wall"])
    assert run.communication().to_numpy().sum() == 0
    assert len(run.history()) == 11


def test_gantt(run, tmp_path):
    """A bar for each event, a row for each rank, numbers on the micro-batches; and it can be saved."""
    import matplotlib as mpl

    mpl.use("agg")
    ax = draw_gantt(run.events(), steps=(3, 4))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rank 0"]
    bars = sum(len(collection.get_paths()) for collection in ax.collections)
    events = run.events()
    shown = events[events["step"].between(3, 4) & events["kind"].isin(["F", "I", "W", "U", "data", "E"])]
    assert bars >= len(shown)
    assert {text.get_text() for text in ax.texts} <= {"0", "1", "2", "3"}
    ax.figure.savefig(tmp_path / "gantt.png")


def test_gantt_of_steps_that_are_not_there(run):
    with pytest.raises(ringtmp.UserError, match="steps 30 to 31: the trace holds steps 0 to 10"):
        draw_gantt(run.events(), steps=(30, 31))


def test_no_run_folder(tmp_path):
    with pytest.raises(ringtmp.UserError, match="no config.toml"):
        open_run(tmp_path)


def test_what_is_timed_is_cut_up_by_what_happens_meanwhile():
    """No moment counts twice, also two blocks deep."""
    recorder = Recorder(None, {})
    noted = []
    plain = recorder.totals
    recorder.begin()
    with recorder.timed("wait", 3):
        begin = clock()
        while clock() - begin < 2_000_000:
            pass
        recorder.record("send", begin, clock(), 3)
        with recorder.timed("checkpoint", 3):
            begin = clock()
            while clock() - begin < 2_000_000:
                pass
            recorder.record("receive", begin, clock(), 3)
    wall = clock() - recorder.began
    noted = [plain[kind] for kind in ("wait", "send", "checkpoint", "receive")]
    assert sum(noted) <= wall
    assert min(plain["send"], plain["receive"]) >= 2_000_000
    assert plain["wait"] + plain["checkpoint"] < 2_000_000

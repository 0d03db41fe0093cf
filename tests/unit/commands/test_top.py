"""A run in the terminal: what is shown of one that goes on, of one that has ended, and of one that is none."""

import json
import subprocess
import sys
import time
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

import ringtmp
from ringtmp.analysis import open_run
from ringtmp.analysis.live_view import View, _rates, _recent
from ringtmp.trace.live_status import RankStatus, read_status, status_path, write_status


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("top")
    ringtmp.train(data="digits", model="mlp:64-32x2-10", epochs=3, out=str(folder), name="run", progress=False)
    return folder / "run"


def text_of(view, now=None):
    console = Console(width=120, force_terminal=False, record=True, file=StringIO())
    console.print(view.page(now))
    return console.export_text()


def test_status_files(tmp_path):
    path = tmp_path / "rank-0003.h5"
    assert status_path(path).name == "status-0003.bin"
    assert read_status(status_path(path)) is None
    status_path(path).touch()
    assert read_status(status_path(path)) is None
    write_status(status_path(path), 7, 10**9, [10**8, 2 * 10**8, 3 * 10**8, 0, 4 * 10**8])
    status = read_status(status_path(path))
    assert isinstance(status, RankStatus) and status.step == 7 and status.wall == 1.0
    assert status.parts == pytest.approx((0.1, 0.2, 0.3, 0.0, 0.4)) and abs(time.time() - status.time) < 60
    status_path(path).write_bytes(b"something else")
    assert read_status(status_path(path)) is None


def test_the_last_status_is_the_breakdown(run):
    opened = open_run(run)
    status, parts = opened.live_status(), opened.breakdown()
    assert status["step"].tolist() == [opened.status["step"]]
    for name in ("compute", "wait", "wall"):
        assert status.loc[0, name] == pytest.approx(parts.loc[0, name], rel=0.01, abs=1e-3)
    assert status.loc[0, ["compute", "transfer", "wait", "checkpoint", "other"]].sum() == pytest.approx(
        status.loc[0, "wall"], rel=0.01
    )


def test_a_run_that_has_ended(run):
    text = text_of(View(str(run)))
    assert "finished" in text and "mlp:64-32x2-10 on digits" in text and "0 ↺" in text and "layers 0-2" in text
    assert "samples/s" in text and "█" in text and "no status" not in text


def test_a_run_that_goes_on(run, tmp_path):
    """What the ranks have done since the last look, and one that does not say anything any more."""
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
    path = next((run / "traces" / "000").glob("status-*.bin"))
    whole = path.read_bytes()
    try:
        write_status(path, 10, 10**9, [10**9, 0, 0, 0, 0])
        view = View(str(run))
        assert "0%" in text_of(view)
        write_status(path, 20, 2 * 10**9, [10**9, 0, 10**9, 0, 0])
        assert "100%" in text_of(view)
        assert "no status for 60 s" in text_of(view, time.time() + 60)
        path.unlink()
        assert "no status yet" in text_of(view)
    finally:
        path.write_bytes(whole)
        (run / "status.json").write_text(json.dumps(status))


def test_rates_come_from_each_step_itself():
    """Ten steps of a second, then four of half a second after a resume, where the seconds begin again at 0."""
    rows = [("train", 8.0, 0.5, n + 1.0) for n in range(10)] + [("test", 8.0, 0.5, 10.0)]
    rows += [("train", 16.0, 0.1, 0.5 + n / 2) for n in range(4)]
    history = pd.DataFrame(rows, columns=["kind", "samples_per_s", "idle", "seconds"])
    steps = history[history["kind"] == "train"]
    assert _recent(steps, 8) == pytest.approx((8 * 7 / 5, (3 * 0.5 + 2 * 0.1) / 5))  # the last five seconds
    assert _recent(steps.iloc[:1], 8) == pytest.approx((8.0, 0.5))
    assert _rates(history, 8, points=11) == pytest.approx([8.0] * 9 + [16.0, 16.0])
    assert _rates(history, 8, points=1) == pytest.approx([8 * 13 / 11])
    assert _rates(history.iloc[:1], 8) == _rates(history.iloc[:0], 8) == []


def test_a_step_without_a_time_counts_as_none():
    steps = pd.DataFrame({"kind": "train", "samples_per_s": [8.0, float("nan")], "idle": [0.5, float("nan")]})
    assert _recent(steps, 8) == pytest.approx((16.0, 0.5))


def test_the_command(run, tmp_path):
    def top(*words):
        return subprocess.run(
            [sys.executable, "-m", "ringtmp", "top", *map(str, words)], capture_output=True, text=True, timeout=60
        )

    done = top(run)
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr
    done = top(tmp_path)
    assert done.returncode == 2 and "is not a run folder" in done.stderr and done.stderr.count("\n") == 1
    assert top(run, "--every", "0").returncode == 2

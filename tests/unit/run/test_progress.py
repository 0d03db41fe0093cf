"""Progress lines, the history file and the table at the end."""

import csv

import pytest

from ringtmp.run import progress
from ringtmp.run.progress import Reporter, summary


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def reporter(tmp_path, **changes):
    settings = {
        "total": 20,
        "start": 0,
        "per_epoch": 5,
        "batch_size": 10,
        "test_samples": 50,
        "classes": True,
        "show": True,
    }
    return Reporter(history=tmp_path / "history.csv", **settings | changes)


def test_lines_and_history(tmp_path, clock, capsys):
    log = reporter(tmp_path)
    log.begin()
    for step in range(10):
        clock[0] += 0.5
        log.trained(step, loss=20.0 - step, correct=7, idle=0.25, lr=0.1)
    log.tested(10, loss=25.0, correct=45, spread=0.0)
    log.close()
    line = capsys.readouterr().out
    assert line == (
        "epoch    2.0  step 10/20  loss 1.1000  train 70.0%  test 90.0%  20 samples/s  idle 25%  left 0:05\n"
    )
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["step"] for row in rows] == [*map(str, range(1, 11)), "10"]
    assert rows[-1]["kind"] == "test"
    assert float(rows[-1]["score"]) == 0.9
    assert float(rows[-1]["loss"]) == 0.5
    assert float(rows[3]["samples_per_s"]) == 20
    assert float(rows[3]["lr"]) == 0.1


def test_a_line_now_and_then_between_far_tests(tmp_path, clock, capsys):
    """Every ten seconds at the least."""
    log = reporter(tmp_path)
    log.begin()
    for step in range(20):
        clock[0] += 3.0
        log.trained(step, 1.0, 1.0, 0.0, 0.1)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_r2(tmp_path, clock, capsys):
    """1 - loss / what guessing the mean would lose."""
    log = reporter(tmp_path, classes=False)
    log.trained(0, 5.0, float("nan"), 0.0, 0.1)
    log.tested(1, loss=10.0, correct=float("nan"), spread=40.0)
    assert log.test_score == 0.75
    assert "test R2 0.750" in capsys.readouterr().out


def test_history_goes_on_after_a_resume(tmp_path, clock):
    for start in (0, 3):
        log = reporter(tmp_path, start=start)
        for step in range(start, start + 3):
            clock[0] += 1
            log.trained(step, 1.0, 1.0, 0.0, 0.1)
        log.close()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[-1]["samples_per_s"]) < 11  # of this launch, not of all steps


def test_silence(tmp_path, clock, capsys):
    log = reporter(tmp_path, show=False)
    log.say("hello")
    log.tested(1, 1.0, 1.0, 0.0)
    assert capsys.readouterr().out == ""


def test_table(capsys):
    parts = {"compute": 50, "transfer": 10, "wait": 20, "checkpoint": 5, "other": 15}
    summary(
        [
            {"rank": 0, "shown": "0", "parameters": 1234, "parts": parts, "memory": 5 << 20},
            {"rank": 1, "shown": "1-3", "parameters": 10, "parts": parts, "memory": 9 << 20},
        ],
        "layers",
        "done",
    )
    text = capsys.readouterr().out
    assert text.startswith("done")
    for words in ("│    0 │      0 │", "│    1 │    1-3 │", "1,234", "50.0%", "20.0%", "5 MiB", "9 MiB"):
        assert words in text

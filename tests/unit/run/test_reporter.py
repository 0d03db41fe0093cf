"""Progress lines and the rows of the history."""

import csv
import io
from math import nan

import pytest

from ringtmp.run.output import reporter as module
from ringtmp.run.output import terminal
from ringtmp.run.output.lines import Line, show_loss, show_time
from ringtmp.run.output.reporter import Reporter

WAITED, ELAPSED = 3e8, 1.2e9  # nanoseconds of all ranks in a step


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def reporter(tmp_path, **changes):
    settings = {
        "total": 20,
        "start": 0,
        "per_epoch": 5,
        "batch_size": 10,
        "test_samples": 50,
        "test_every": 5,
        "classes": True,
        "show": True,
    }
    log = Reporter(history=tmp_path / "history.csv", **settings | changes)
    log.begin()
    return log


def train(log, clock, steps, seconds=0.5, loss=10.0, correct=7.0, waited=WAITED, elapsed=ELAPSED):
    for step in steps:
        clock[0] += seconds
        log.trained(step, loss, correct, waited, elapsed, 0.1)


def test_a_line_for_each_epoch(tmp_path, clock, capsys):
    """Loss, score and rate are those of the whole epoch, the test score that of the evaluation that follows it."""
    log = reporter(tmp_path)
    train(log, clock, range(4), loss=20.0, correct=5)
    train(log, clock, [4], loss=10.0, correct=10)
    assert not capsys.readouterr().out  # the evaluation is not complete
    train(log, clock, [5, 6], seconds=1.0)
    log.tested(5, loss=25.0, correct=45, spread=0.0)
    assert capsys.readouterr().out == (
        "epoch 1/4  step  5/20  loss   1.8000  train  60.0%  test  90.0%       20 samples/s  0:08 left\n"
    )
    train(log, clock, [7, 8, 9], seconds=1.0)
    log.tested(10, loss=25.0, correct=50, spread=0.0)
    assert capsys.readouterr().out == (
        "epoch 2/4  step 10/20  loss   1.0000  train  70.0%  test 100.0%       10 samples/s  0:10 left\n"
    )
    log.close()
    assert not capsys.readouterr().out


def test_rows_give_the_rate_and_the_idle_share_of_their_own_steps(tmp_path, clock):
    log = reporter(tmp_path)
    train(log, clock, range(4), seconds=0.5, waited=1e9, elapsed=2e9)
    train(log, clock, [4], seconds=2.0, waited=3e9, elapsed=4e9)
    clock[0] += 1.0
    log.tested(5, loss=25.0, correct=45, spread=0.0)
    train(log, clock, range(5, 10), seconds=1.0, waited=0.0, elapsed=1e9)
    log.tested(10, loss=25.0, correct=45, spread=0.0)
    log.close()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["step"] for row in rows] == [*"12345", "5", *"6789", "10", "10"]
    values = [(row["kind"], float(row["samples_per_s"]), float(row["idle"])) for row in rows]
    assert values[:4] == [("train", 20.0, 0.5)] * 4
    assert values[4:6] == [("train", 5.0, 0.75), ("test", 10.0, pytest.approx(7 / 12))]
    assert values[6] == ("train", 5.0, 0.0)  # the evaluation before it took its time
    assert values[7:11] == [("train", 10.0, 0.0)] * 4
    assert values[11] == ("test", 10.0, 0.0)
    assert float(rows[3]["lr"]) == 0.1
    assert float(rows[5]["score"]) == 0.9
    assert float(rows[5]["loss"]) == 0.5
    assert [float(rows[n]["seconds"]) for n in (0, 4, 5)] == [0.5, 4.0, 5.0]


def test_no_time_between_two_rows(tmp_path, clock):
    log = reporter(tmp_path)
    train(log, clock, [0], seconds=1.0)
    train(log, clock, [1], seconds=0.0, waited=0.0, elapsed=0.0)
    row = log.rows[-1]
    assert str(row["samples_per_s"]) == str(row["idle"]) == "nan"


@pytest.mark.parametrize(("epochs", "seconds", "least", "most"), [(500, 0.01, 5, 7), (500, 2.0, 500, 500)])
def test_many_epochs(tmp_path, clock, capsys, epochs, seconds, least, most):
    """At most a line a second, and always the last one."""
    log = reporter(tmp_path, total=epochs * 5)
    for epoch in range(epochs):
        train(log, clock, range(5 * epoch, 5 * epoch + 5), seconds=seconds / 5)
        log.tested(5 * epoch + 5, 25.0, 45, 0.0)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert least <= len(lines) <= most
    assert lines[-1].startswith("epoch 500/500")


def test_a_stop_among_many_epochs_leaves_the_last_line(tmp_path, clock, capsys):
    log = reporter(tmp_path, total=2500)
    for epoch in range(3):
        train(log, clock, range(5 * epoch, 5 * epoch + 5), seconds=0.01)
        log.tested(5 * epoch + 5, 25.0, 45, 0.0)
    log.close()
    assert [line[:11] for line in capsys.readouterr().out.splitlines()] == ["epoch   3/5"]


def test_a_stop_within_an_epoch(tmp_path, clock, capsys):
    """The steps since the last line have one of their own; an evaluation that is not made any more is not awaited."""
    log = reporter(tmp_path)
    train(log, clock, range(5))
    train(log, clock, [5, 6], loss=30.0)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/4  step  5/20  loss   1.0000  train  70.0%   ")
    assert lines[1].startswith("epoch 1.4/4  step  7/20  loss   3.0000")


def test_long_epochs_have_lines_every_ten_seconds_in_a_log(tmp_path, clock, capsys):
    """Each about the steps since the line before; the one of the epoch is about the whole of it."""
    log = reporter(tmp_path, total=10, per_epoch=10, test_every=10)
    train(log, clock, range(4), seconds=3.0, loss=40.0)
    train(log, clock, range(4, 8), seconds=3.0, loss=20.0)
    train(log, clock, range(8, 10), seconds=3.0, loss=10.0)
    log.tested(10, 25.0, 45, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("loss")[1].split()[0] for line in lines] == ["4.0000", "2.0000", "2.6000"]
    assert [line.split()[1] for line in lines] == ["0.4/1", "0.8/1", "1/1"]


def test_evaluations_within_an_epoch_have_lines(tmp_path, clock, capsys):
    log = reporter(tmp_path, total=10, per_epoch=10, test_every=4)
    train(log, clock, range(4), loss=40.0)
    log.tested(4, 25.0, 45, 0.0)
    train(log, clock, range(4, 10), loss=20.0)
    log.tested(8, 25.0, 46, 0.0)
    log.tested(10, 25.0, 47, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert [(line.split()[1], line.split("test")[1].split()[0]) for line in lines] == [
        ("0.4/1", "90.0%"),
        ("0.8/1", "92.0%"),
        ("1/1", "94.0%"),
    ]


def test_an_evaluation_that_is_repeated_after_a_resume(tmp_path, clock, capsys):
    log = reporter(tmp_path, start=5)
    log.tested(5, 25.0, 45, 0.0)
    assert capsys.readouterr().out == "epoch 1/4  step  5/20  test  90.0%\n"


@pytest.mark.parametrize(("spread", "shown"), [(40.0, "test R2  0.750  "), (0.0, "")])
def test_values(tmp_path, clock, capsys, spread, shown):
    """R2 is 1 - loss / what guessing the mean would lose; where that is unknown, nothing stands in its place."""
    log = reporter(tmp_path, classes=False, total=5)
    train(log, clock, range(5), correct=nan)
    log.tested(5, loss=10.0, correct=nan, spread=spread)
    assert capsys.readouterr().out == (f"epoch 1/1  step 5/5  loss   1.0000  {shown}     20 samples/s  0:00 left\n")


def test_without_test_samples_no_evaluation_is_awaited(tmp_path, clock, capsys):
    log = reporter(tmp_path, test_samples=0)
    train(log, clock, range(5))
    assert capsys.readouterr().out.startswith("epoch 1/4  step  5/20  loss   1.0000  train  70.0%   ")


def test_history_goes_on_after_a_resume(tmp_path, clock):
    for start in (0, 3):
        log = reporter(tmp_path, start=start)
        train(log, clock, range(start, start + 3), seconds=1.0)
        log.close()
        log.close()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(row["samples_per_s"]) for row in rows] == [10.0] * 6


def test_silence(tmp_path, clock, capsys):
    log = reporter(tmp_path, show=False)
    log.say("hello")
    train(log, clock, range(5))
    log.tested(5, 1.0, 1.0, 0.0)
    log.close()
    assert capsys.readouterr().out == ""


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("columns", [None, 100])
def test_a_full_disk_stops_nothing(tmp_path, clock, monkeypatch, columns):
    """Neither a log that takes no more, nor a terminal that is gone."""
    monkeypatch.setattr(terminal, "launcher_terminal", lambda: columns)
    monkeypatch.setattr("sys.stdout", FullDisk())
    log = reporter(tmp_path)
    log.say("hello")
    train(log, clock, range(5))
    log.tested(5, 1.0, 1.0, 0.0)
    log.terminal.draw("a table")
    log.close()
    monkeypatch.undo()
    assert len(log.rows) == 6


def test_the_bar(tmp_path, clock, monkeypatch):
    """Means of the present epoch, and of the last one where none has begun; rate and time left of the last seconds."""
    monkeypatch.setattr(terminal, "launcher_terminal", lambda: 160)
    log, states = reporter(tmp_path), []
    monkeypatch.setattr(log.terminal, "update", lambda done, facts: states.append((done, facts)))
    train(log, clock, [0], loss=30.0, seconds=1.0)
    train(log, clock, [1], loss=10.0, seconds=0.05)
    train(log, clock, [2, 3, 4], loss=20.0, seconds=3.0)
    log.tested(5, 25.0, 45, 0.0)
    train(log, clock, [5], loss=50.0, seconds=3.0)
    log.close()
    assert states == [
        (1, "epoch 0.2/4  loss   3.0000  train  70.0%       10 samples/s  0:19 left"),
        (3, "epoch 0.6/4  loss   2.0000  train  70.0%      6.6 samples/s  0:26 left"),
        (4, "epoch 0.8/4  loss   2.0000  train  70.0%      3.3 samples/s  0:48 left"),
        (5, "epoch 1/4  loss   2.0000  train  70.0%      3.3 samples/s  0:45 left"),
        (6, "epoch 1.2/4  loss   5.0000  train  70.0%  test  90.0%      3.3 samples/s  0:42 left"),
        (6, "epoch 1.2/4  loss   5.0000  train  70.0%  test  90.0%      3.3 samples/s  0:42 left"),
    ]


LINE = Line(12, 200, 5, 0.5, 0.25, 0.75, True, 1234.5, 3700.0)


@pytest.mark.parametrize("room", range(10, 130))
def test_a_line_fits(room):
    """What matters least is left out; the loss never is."""
    text = LINE.text(room)
    assert len(text) <= max(room, len("loss 0.5000"))
    assert "0.5000" in text


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (None, "epoch 2.4/40  step  12/200  loss   0.5000  train  25.0%  test  75.0%    1,234 samples/s  1:01:40 left"),
        (100, "epoch 2.4/40  step 12/200  loss 0.5000  train 25.0%  test 75.0%  1,234 samples/s  1:01:40 left"),
        (90, "epoch 2.4/40  loss 0.5000  train 25.0%  test 75.0%  1,234 samples/s  1:01:40 left"),
        (80, "epoch 2.4/40  loss 0.5000  train 25.0%  test 75.0%  1:01:40 left"),
        (60, "epoch 2.4/40  loss 0.5000  test 75.0%  1:01:40 left"),
    ],
)
def test_what_is_left_out_first(room, expected):
    assert LINE.text(room) == expected


def test_numbers():
    assert [show_loss(x) for x in (0.0, 2.30258, 0.0012, 0.00033, 12345.6)] == [
        "0.0000",
        "2.3026",
        "0.0012",
        "3.30e-04",
        "1.23e+04",
    ]
    assert [show_time(x) for x in (0.2, 59.6, 3599, 7384)] == ["0:00", "1:00", "59:59", "2:03:04"]

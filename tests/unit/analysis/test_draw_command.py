"""``ringtmp draw``: pictures and Perfetto traces of plans and runs, bad input."""

import gzip
import json
import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import pytest

import ringtmp
from ringtmp.analysis import draw_gantt
from ringtmp.commands.draw import command, draw
from ringtmp.config.click_command import parse_words

mpl.use("agg")


def _arguments(words):
    """Parameters of the command line `words`."""
    absent = {param.name: None for param in command.params}
    return SimpleNamespace(**absent | parse_words(command, "ringtmp draw", words))


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of each `draw_gantt` of the command: events and steps."""
    calls = []

    def note(events, **settings):
        calls.append((events, settings["steps"]))
        return draw_gantt(events, **settings)

    monkeypatch.setattr("ringtmp.analysis.picture.draw_gantt", note)
    return calls


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_command_draws(tmp_path, drawn, ending, magic):
    path = tmp_path / f"a.{ending}"
    words = "rule --ranks 3 --micro-batches 4 --chunks 2 --latency 0.5 --jitter 0.1 --steps 2 --out"
    draw(_arguments([*words.split(), str(path)]))
    assert path.read_bytes().startswith(magic)
    ((events, steps),) = drawn
    assert steps == (0, 1)
    assert len(events[events["kind"] == "F"]) == 3 * 2 * 4 * 2
    first = events[(events["stage"] == 0) & (events["kind"] == "F")].iloc[0]
    assert 0.45e6 <= first["end"] - first["start"] <= 0.55e6  # half an action, drawn as half a millisecond
    arrived = events[(events["stage"] == 1) & (events["kind"] == "F")].iloc[0]
    assert arrived["start"] - first["end"] == 0.5e6


def test_the_command_draws_a_plan(tmp_path, drawn):
    draw(_arguments(["plan:1f1b", "--ranks", "2", "--micro-batches", "3", "--out", str(tmp_path / "a.png")]))
    ((events, steps),) = drawn
    assert steps == (0, 0)
    order = {
        rank: " ".join(f"{e.stage}{e.kind}{e.micro_batch}" for e in mine.itertuples() if e.kind != "U")
        for rank, mine in events.groupby("rank")
    }
    assert order == {0: "0F0 0F1 0B0 0F2 0B1 0B2", 1: "1F0 1B0 1F1 1B1 1F2 1B2"}


def test_the_command_takes_the_middle_of_a_trace(run, tmp_path, drawn):
    for words in ([], ["--steps", "2-7"], ["--steps", "all", "--launch", "0"]):
        draw(_arguments([str(run.path), "--out", str(tmp_path / "a.png"), *words]))
    assert [steps for _, steps in drawn] == [(4, 5), (2, 7), None]


def test_the_command_writes_perfetto(run, tmp_path):
    for words, steps in (([], {4, 5}), (["--steps", "2-2"], {2}), (["--steps", "all"], set(range(11)))):
        path = tmp_path / "a.json.gz"
        draw(_arguments([str(run.path), "--out", str(path), *words]))
        entries = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert {each["args"]["step"] for each in entries if each["ph"] == "X"} >= steps
        assert {each["args"]["step"] for each in entries if each["ph"] == "X" and each["name"] == "U"} == steps - {10}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rule"], "out: is missing"),
        (
            ["rule", "--out", "a.gif"],
            "out: expected a file that ends in .png, .svg, .pdf, .json, .json.gz, got 'a.gif'",
        ),
        (["rule", "--out", "nowhere/a.png"], "out: nowhere/a.png cannot be written: No such file or directory"),
        (["rule", "--out", "nowhere/a.json"], "nowhere/a.json: cannot be written: No such file or directory"),
        (["nothing", "--out", "a.png"], "what: expected a run folder, plan:NAME or rule, got 'nothing'"),
        (["folder", "--out", "a.png"], "folder is not a run folder"),
        (["plan:fast", "--out", "a.png"], "schedule: expected one of naive"),
        (["plan:1f1b", "--chunks", "2", "--out", "a.png"], "chunks: schedule 1f1b takes 1, got 2"),
        (["rule", "--ranks", "0", "--out", "a.png"], "ranks: expected at least 1, got 0"),
        (["rule", "--micro-batches", "x", "--out", "a.png"], "micro-batches: 'x' is not a valid integer"),
        (["rule", "--latency", "nan", "--out", "a.png"], "latency: expected a number from 0, got nan"),
        (["rule", "--latency", "inf", "--out", "a.png"], "latency: expected a number from 0, got inf"),
        (["rule", "--jitter", "1", "--out", "a.png"], "jitter: expected a number from 0 and below 1, got 1.0"),
        (["rule", "--steps", "0", "--out", "a.png"], "steps: expected how many, or A-B such as 4-5, got '0'"),
        (["rule", "--steps", "3-2", "--out", "a.png"], "steps: expected how many"),
        (["rule", "--steps", "99999", "--out", "a.png"], "steps: 99999 of them are 9,599,904 actions"),
        (["rule", "--launch", "0", "--out", "a.png"], "launch: goes with a run folder, not with rule"),
        (["RUN", "--chunks", "2", "--out", "a.png"], "chunks: goes with plan:NAME and rule, not with RUN"),
        (["RUN", "--steps", "x", "--out", "a.png"], "steps: expected A-B such as 40-41, or all, got 'x'"),
        (["RUN", "--steps", "90-91", "--out", "a.json"], "steps: RUN holds steps 0 to 10, got 90-91"),
        (["RUN", "--launch", "3", "--out", "a.png"], "launch 3 has no trace"),
    ],
)
def test_bad_input_of_the_command(run, tmp_path, monkeypatch, words, message):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ringtmp.UserError) as error:
        draw(_arguments([word.replace("RUN", str(run.path)) for word in words]))
    assert message.replace("RUN", str(run.path)) in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.long
def test_the_command_as_a_process(tmp_path):
    def call(*words):
        return subprocess.run(
            [sys.executable, "-m", "ringtmp", "draw", *words], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )

    done = call("rule", "--ranks", "2", "--out", "a.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "written to a.json\n", "")
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    done = call("plan:fast", "--out", "b.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ringtmp: schedule: expected one of")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "b.png").exists()
    assert "--micro-batches" in call("--help").stdout

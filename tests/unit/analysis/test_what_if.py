"""A run simulated as it was run, and as it could have been."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import ringtmp
from ringtmp.__main__ import call
from ringtmp.analysis import open_run
from ringtmp.analysis import what_if as hindsight
from ringtmp.schedule.registry import SCHEDULES, plan_names
from ringtmp.simulate.pipeline import Scene, simulate
from ringtmp.simulate.planner import ENGINE, RULE


def trained(tmp_path, name="run", **settings):
    """A run on one emulated node whose actions take a millisecond, so that what else this machine does is no matter."""
    settings = {"steps": 8, "node_speed": "0.05", "eval_every": 0} | settings
    ringtmp.train(
        data="digits",
        model="mlp:64-64x2-10",
        batch_size=32,
        micro_batches=4,
        out=str(tmp_path),
        name=name,
        progress=False,
        **settings,
    )
    return open_run(tmp_path / name)


@pytest.mark.parametrize(("mode", "chunks", "own"), [({}, 1, RULE), ({"schedule": "gpipe"}, 1, "gpipe"), ({}, 3, RULE)])
def test_as_it_was_run(tmp_path, mode, chunks, own):
    """A run's own durations under the clock give the step that was measured; one rank alone never waits."""
    for attempt in range(3):  # others may take the cores away in the middle of a step
        made = trained(tmp_path, f"run-{attempt}", chunks=chunks, **mode)
        measured, found = hindsight.cases(made)
        if abs(found[0].outcome.step_seconds / measured.seconds - 1) < 0.2:
            break
    else:
        spans = made.events().query("kind == 'F'").eval("end - start").groupby(made.events()["stage"])
        if (spans.mean() > 1.15 * spans.median()).any():
            pytest.skip("the cores are taken by others: actions that sleep are woken late")
    assert found[0].what == f"{own}, as it was run"
    ours = found[0].outcome
    assert ours.step_seconds == pytest.approx(measured.seconds, rel=0.25)
    assert ours.scene.chunks == chunks
    assert measured.seconds > 4 * 3 * 0.5e-3
    assert (measured.idle, measured.first) == (pytest.approx(0, abs=0.02), 2)
    others = [
        name
        for name in (RULE, *plan_names())
        if name != own and (chunks == 1 or name == RULE or SCHEDULES[name].takes_chunks)
    ]
    wanted = [f"with {name}" for name in others if not (chunks == 1 and name == "interleaved")]
    assert [case.what for case in found[1:]] == [
        *wanted,
        "if the work were dealt evenly",
        "if messages took no time",
        "if actions always took as long",
    ]
    for case in found[1:]:
        assert case.outcome.step_seconds == pytest.approx(ours.step_seconds, rel=0.1)  # there is nothing to gain


@pytest.mark.parametrize(("chunks", "jitter"), [(1, 0.0), (1, 0.5), (2, 0.2)])
def test_scene_of_a_run(chunks, jitter):
    """From the events of a ring that is known: its durations, sizes, latency and jitter come out again."""
    stages = 3 * chunks
    seconds = np.array([[1.0 + s, 2.0 + s, 3.0 - s / 9, 0.5] for s in range(stages)]) * 1e-3
    known = Scene(
        3,
        chunks,
        np.array([1.0, 1.0, 0.75, 0.75]),
        seconds,
        ((0.25, 0.75),) * stages,
        latency=3e-4,
        jitter=jitter,
        seed=2,
    )
    events = simulate(known, steps=60, log=True).events()
    run = SimpleNamespace(
        events=lambda: events,
        config={"micro_batches": 4, "batch_size": 14},
        ranks=lambda: pd.DataFrame({"ranks": [3] * 3, "chunks": [chunks] * 3}),
    )
    scene = hindsight.scene_of(run)
    assert (scene.ranks, scene.chunks, scene.sizes.tolist()) == (3, chunks, known.sizes.tolist())
    np.testing.assert_allclose(scene.seconds, seconds, rtol=1e-5 + 0.6 * jitter)
    assert scene.latency == pytest.approx(3e-4, rel=1e-4)
    assert scene.jitter == pytest.approx(jitter, abs=0.05)
    assert scene.overhead == ENGINE


def test_durations_of_a_real_run(tmp_path):
    """64 x 64 weights, 8 rows, at 0.05 GFLOP/s: 2 x 64 x 64 x 8 operations; two such layers and one of 64 x 10."""
    scene = hindsight.scene_of(trained(tmp_path))  # medians: a few late actions are no matter
    one = 2 * 64 * (64 + 64 + 10) * 8 / 0.05e9
    assert scene.seconds[0, :3] == pytest.approx([one] * 3, rel=0.25)
    assert (scene.ranks, scene.chunks, scene.sizes.tolist(), scene.latency) == (1, 1, [1.0] * 4, 0.0)


def test_the_rule_as_it_was_limited(tmp_path, monkeypatch):
    """By the run's own settings."""
    seen = []
    monkeypatch.setattr(hindsight, "simulate", lambda *args, **how: seen.append(how) or simulate(*args, **how))
    hindsight.cases(trained(tmp_path, node_speed="5", in_flight=2, ahead=1.5))
    assert {(how["most"], how["ahead"]) for how in seen} == {(2, 1.5)}


def test_trace_on_the_command_line(tmp_path, capsys):
    trained(tmp_path)
    out = tmp_path / "steps.svg"
    assert call(["plan", "--trace", str(tmp_path / "run"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("measured", "ready, as it was run", "with zb-h2", "if messages took no time"):
        assert words in printed
    assert "nothing tried would have made it 2 % faster" in printed or "most to be gained" in printed
    assert "<svg" in out.read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval_every": 2}, "steady state: an evaluation lies among the steps; train with --eval-every 0"),
        ({"schedule": "pipedream"}, "was trained with pipedream: other schedules give other numbers"),
        ({"schedule": "2bw"}, "was trained with 2bw"),
        ({"steps": 1}, "steady state: the trace holds 1 whole steps, expected at least 2"),
        ({"trace": False}, "has no trace"),
    ],
)
def test_runs_that_tell_nothing(tmp_path, capsys, settings, words):
    trained(tmp_path, **{"node_speed": "5", **settings})
    assert call(["plan", "--trace", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ringtmp: ")
    assert told.count("\n") == 1
    assert words in told

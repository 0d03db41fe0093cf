"""The experiments on survival: schedules of failures, and what is made of progress that was seen, by hand."""

import json
from io import StringIO
from math import inf, isnan

import pytest
from rich.console import Console

from ringtmp.jobs.experiments.resilience_figure import draw, show, shown_mean
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.strikes import PHASES, cases, poisson
from ringtmp.jobs.lib.supervised_runs import Course, pace_of, paced
from ringtmp.jobs.lib.watch import (
    efficiency,
    expected,
    fell_back,
    final_loss,
    lost_seconds,
    pause,
    per_second,
    rate,
    reported_recoveries,
    trained,
    useful,
)

# Steps 1 to 4, one each half second; a fault at 2; then step 4 again, and 5 and 6.
MOMENTS = [(0.0, 1), (0.5, 2), (1.0, 3), (1.5, 4), (4.0, 4), (4.5, 5), (5.0, 6)]


def test_poisson_is_seeded_and_scales():
    some = poisson(60.0, 6000.0, 4, 1)
    assert some == poisson(60.0, 6000.0, 4, 1) != poisson(60.0, 6000.0, 4, 2)
    assert all(0 < a < b < 6000 for (a, _), (b, _) in zip(some, some[1:], strict=False))
    assert 70 < len(some) < 130  # 100 are to be expected, with a deviation of 10
    assert {rank for _, rank in some} == {0, 1, 2, 3}
    faster = poisson(15.0, 1500.0, 4, 1)
    assert [rank for _, rank in faster] == [rank for _, rank in some]
    assert [4 * at for at, _ in faster] == pytest.approx([at for at, _ in some])
    assert poisson(60.0, 0.0, 4, 1) == []


@pytest.mark.parametrize(("apart", "phases"), [(True, len(PHASES)), (False, len(PHASES) - 1)])
def test_cases_are_every_rank_and_phase_once(apart, phases):
    found = cases(3, apart, 5)
    assert len(found) == len({*found}) == 3 * phases
    assert found == cases(3, apart, 5) != cases(3, apart, 6)
    assert cases(3, apart, 5, 4) == found[:4]
    assert any(phase == "replicate" for _, phase in found) == apart


def test_at_least_200_kills_in_the_soak():
    """A restore is preceded by another kill."""
    every = [case for ranks in (3, 4, 5) for apart in (True, False) for case in cases(ranks, apart, ranks)]
    assert len(every) + sum(phase == "restore" for _, phase in every) >= 200


def test_progress():
    assert useful(MOMENTS) == [(0.0, 1), (0.5, 2), (1.0, 3), (1.5, 4), (4.5, 5), (5.0, 6)]
    assert fell_back(MOMENTS) == 1
    assert rate(MOMENTS) == 1.0
    assert rate(MOMENTS, end=2.0) == 2.0
    assert rate(MOMENTS, 4.2) == 2.0
    assert rate(MOMENTS, 6.0) == 0.0
    assert pause(MOMENTS, 2.0) == 3.0
    assert pause(MOMENTS, 5.0) == inf


def test_throughput_over_time():
    assert per_second(MOMENTS, 0.0) == pytest.approx([2, 1 + 0.5 / 3, 1 / 3, 1 / 3, 0.5 / 3 + 1])
    assert sum(per_second(MOMENTS, 0.0, 0.5)) * 0.5 == pytest.approx(5)
    assert per_second([], 0.0) == []


def test_course():
    course = Course(MOMENTS, [2.0], status=0)
    assert (course.begin, course.seconds, course.rate) == (0.0, 5.0, 1.0)
    given_up = Course(MOMENTS, [2.0], status=1, ended=10.0)  # its wall time goes on until it was given up
    assert (given_up.seconds, given_up.rate) == (10.0, 0.5)


def test_efficiency():
    assert efficiency(8.0, 10.0) == 0.8
    assert lost_seconds(0.8, 100.0, 4) == pytest.approx(5.0)
    assert isnan(lost_seconds(1.0, 100.0, 0))
    assert expected(3.0, 60.0) == 0.95
    assert expected(20.0, 15.0) == 0.0
    assert quartiles([1, 2, 3, 4, 5], interpolate=True) == [3, 2, 4]
    assert quartiles([1, 2, 4], interpolate=True) == [2, 1.5, 3]
    assert all(map(isnan, quartiles([])))


def test_what_is_read():
    text = (
        "recovered: rank 1 on vm (process 26134) is gone; went on at step 40, 1 step made again, after 0.96 s (clear "
        "0.10, start 0.57, agree 0.05, split 0.06, restore 0.03, redo 0.15)\nepoch 1\n"
        "recovered: the job has ended, status 9; went on at step 20, after 2.00 s (clear 1.00, redo 1.00)\n"
        "recovered: cut o"
    )
    first, second = reported_recoveries(text)
    assert (first["what"], first["step"], first["again"]) == ("rank 1 on vm (process 26134) is gone", 40, 1)
    assert first["seconds"] == {
        "clear": 0.1,
        "start": 0.57,
        "agree": 0.05,
        "split": 0.06,
        "restore": 0.03,
        "redo": 0.15,
    }
    assert (second["step"], second["again"], second["seconds"]) == (20, -1, {"clear": 1.0, "redo": 1.0})
    assert trained(["kind,step", "train,3,0.1,2", "test,3,0.1,2", "train,4,0.2,2", "train,5"]) == [3, 4]
    assert final_loss("train,3,0.1,9,1\ntest,3,0.1,2.5,1\ntest,6,0.2,1.5,1\n") == 1.5
    assert isnan(final_loss("train,3,0.1,9,1\n"))


def test_paced_flags():
    flags = paced(12, 0.06, 1 / 3, 100, mtbf=60.0)
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    assert values["--model"] == "mlp:64-64x11-64"
    assert values["--mtbf"] == "60.0"
    assert float(values["--node-speed"]) == pace_of(12, 0.06, 1 / 3) == 0.0786  # 48 x 12 x 6 x 64 x 64 / 3 in 60 ms


def test_picture_and_tables(tmp_path):
    origin = {
        "date": "2026-01-01 00:00",
        "commit": "abc",
        "cpu": "a",
        "cores": 2,
        "load": 0.1,
        "seconds": 1,
        "quick": True,
    }
    phases = {phase: [0.1, 0.1, 0.2] for phase in ("detect", "clear", "start", "agree", "split", "restore", "redo")}
    table = {
        "provenance": {"recovery": origin, "efficiency": origin},
        "recovery": [
            {
                "size": "small",
                "way": "relaunch",
                "ranks": 4,
                "kills": 2,
                "total": [0.7, 0.6, 0.9],
                "aim": 2.0,
                "phases": phases,
            }
        ],
        "throughput": [{"ranks": 4, "layers": 12, "lost": 1, "before": 4.0, "after": 3.0, "share_of_ideal": 1.0}],
        "efficiency": [
            {
                "way": way,
                "mean": mean,
                "seed": 1,
                "kills": 1,
                "seconds": 5.0,
                "undisturbed": 2.0,
                "efficiency": 0.5,
                "cost": None,
                "expected": 0.9,
                "again": 1,
                "finished": way == "ring",
                "strikes": [2.0],
                "course": per_second(MOMENTS, 0.0),
            }
            for way in ("ring", "server asp")
            for mean in (15.0, 30.0, 60.0)
        ],
        "outcomes": [
            {
                "role": "worker",
                "fault": "hung",
                "survived": True,
                "ended": False,
                "again": 0,
                "pause": None,
                "off": 0.1,
                "same": False,
                "how": "dropped",
                "why": "no end",
            },
            {"role": "server", "fault": "cut link", "survived": None, "why": "not root", "how": ""},
        ],
    }
    out = StringIO()
    show(json.loads(json.dumps(table)), Console(file=out, width=160))
    for words in ("0.70 (0.60 to 0.90)", "100.0%", "QUICK", "yes, but the job did not end", "not root", "never"):
        assert words in out.getvalue()
    assert shown_mean(table["efficiency"]) == 30.0
    draw(table, tmp_path / "figures" / "resilience.png")
    draw({"provenance": {}}, tmp_path / "empty.png")
    assert (tmp_path / "figures" / "resilience.png").stat().st_size > 10_000

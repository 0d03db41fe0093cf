"""The experiments' one command: what it answers, and quick runs with everything that they leave."""

import os
import subprocess
import sys

import pytest
from launching import ROOT

from ringtmp.jobs.experiments.__main__ import main
from ringtmp.jobs.experiments.report import results
from ringtmp.jobs.lib.experiment import EXPERIMENTS, find_experiments
from ringtmp.jobs.lib.store import places, read, sources
from ringtmp.jobs.lib.ways import colour_of

LONG = (
    "efficiency",
    "scalability",
    "architectures",
    "limits",
    "balance",
    "capacity",
    "cluster",
    "progress",
    "crossover",
    "resilience",
)
QUICK = [
    pytest.param("optimum", marks=pytest.mark.long),
    *(pytest.param(name, marks=pytest.mark.soak) for name in LONG),
]


def experiment(*words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "ringtmp.jobs.experiments", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Where quick runs leave what they find."""
    return tmp_path_factory.mktemp("experiments")


def assert_stated(table):
    """Each part of a result file says where it comes from."""
    parts = sources(table)
    assert parts
    assert len(parts) >= len(table.get("cases", []))
    for part in parts:
        assert {"commit", "date", "versions", "host", "cores", "cpu", "mpi", "links", "pace"} <= set(part)


@pytest.mark.parametrize("name", QUICK)
def test_quick(left, name):
    done = experiment(name, "--quick", "--out", left)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_stated(read(left / f"{name}.h5"))
    assert (left / f"{name}.md").read_text().count("|") > 30
    assert name in ("capacity", "optimum") or (left / f"{name}.png").stat().st_size > 10_000


def test_report(tmp_path):
    """One page of what the project has measured, with every picture in it; it needs no other file."""
    done = experiment("report", "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == len([*(ROOT / "jobs/figures").glob("*.png")])
    assert 'src="http' not in text and text.count("<table>") >= 8
    assert "8 nodes, all equal: workers of the ring wait" in text and "<code>scalability</code>" in text


@pytest.mark.parametrize("name", results())
def test_results_say_where_they_come_from(name):
    assert_stated(read(places(name)[0]))


def test_every_label_of_a_way_is_known():
    """Tables, figures and result files take labels from one registry."""
    for name in ("efficiency", "progress", "scalability", "capacity", "balance", "cluster"):
        table = read(places(name)[0])
        for row in table.get("rows") or [row for case in table["cases"] for row in case["rows"]]:
            assert colour_of(row["way"]).startswith("#")


def test_an_experiment_from_outside(tmp_path, capsys):
    """One file: a module elsewhere registers an experiment, which runs to a table, a result file and a report entry."""
    import extra_experiment  # registers when it is imported

    try:
        assert main(["coin", "--quick", "--out", str(tmp_path)]) == 0
        assert "heads" in capsys.readouterr().out
        assert [row["side"] for row in read(tmp_path / "coin.h5")["rows"]] == ["heads", "tails"]
        assert (tmp_path / "coin.md").read_text().startswith("**Two sides**")
        assert (tmp_path / "coin.png").stat().st_size > 5_000
        assert main(["report", "--from", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
        page = (tmp_path / "report.html").read_text()
        assert extra_experiment.Coin.name in page and "a coin lands on heads" in page
        assert main(["--help"]) == 0 and "a coin" in capsys.readouterr().out
        assert main(["coin", "--redraw", "--out", str(tmp_path)]) == 0
    finally:
        del EXPERIMENTS["coin"]


def test_shares_are_whole():
    for case in read(places("efficiency")[0])["cases"]:
        for row in case["rows"]:
            for worker in row["workers"]:
                assert sum(worker.values()) == pytest.approx(1, abs=0.01)
                assert min(worker.values()) > -0.01


def test_bad_input(tmp_path):
    done = experiment("nothing")
    assert done.returncode == 2 and "no experiment 'nothing'; expected efficiency," in done.stderr
    done = experiment("report", "--from", tmp_path)
    assert done.returncode == 2 and f"report: no results in {tmp_path}" in done.stderr
    listed = experiment().stdout
    assert all(name in listed for name in find_experiments())

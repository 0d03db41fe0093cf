"""The experiments' one command: what it answers, and quick runs with everything that they leave."""

import os
import subprocess
import sys

import pytest
from launching import ROOT

from jobs.experiments.__main__ import EXPERIMENTS
from jobs.experiments.report import claims
from jobs.experiments.store import places, read, sources

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
QUICK = ["optimum", *(pytest.param(name, marks=pytest.mark.soak) for name in LONG)]


def experiment(*words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "jobs.experiments", *map(str, words)],
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
    module = EXPERIMENTS[name][0]
    assert_stated(read(left / f"{module}.h5"))
    assert (left / f"{module}.md").read_text().count("|") > 30
    assert module in ("capacity", "optimum") or (left / f"{module}.png").stat().st_size > 10_000


def test_report(tmp_path):
    """One page of what the project has measured, with every picture in it; it needs no other file."""
    done = experiment("report", "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == len([*(ROOT / "jobs/figures").glob("*.png")])
    assert 'src="http' not in text and text.count("<table>") >= 8
    assert "8 nodes, all equal: workers of the ring wait" in text and "<code>scalability</code>" in text


def test_the_readme_has_the_claims_of_the_report():
    found = {module: read(path) for module, _ in EXPERIMENTS.values() if (path := places(module)[0]).exists()}
    assert claims(found) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("module", [module for module, _ in EXPERIMENTS.values() if places(module)[0].exists()])
def test_results_say_where_they_come_from(module):
    assert_stated(read(places(module)[0]))


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
    assert all(name in experiment().stdout for name in EXPERIMENTS)

"""The experiments' one command: what it answers, and quick runs with everything that they leave."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from jobs.experiments.__main__ import EXPERIMENTS
from jobs.experiments.store import read

LONG = (
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
QUICK = ["efficiency", "optimum", *(pytest.param(name, marks=pytest.mark.soak) for name in LONG)]


def experiment(*words, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "jobs.experiments", *map(str, words)], cwd=cwd, capture_output=True,
                          text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Where quick runs leave what they find."""
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("name", QUICK)
def test_quick(left, name):
    done = experiment(name, "--quick", "--out", left)
    assert done.returncode == 0, done.stdout + done.stderr
    module = EXPERIMENTS[name][0]
    table = read(left / f"{module}.h5")
    stated = table.get("provenance") or table["cases"][0]["provenance"]
    for key in ("commit", "versions", "host", "cores", "cpu"):
        assert key in str(stated), stated
    assert (left / f"{module}.md").read_text().count("|") > 30
    assert module in ("capacity", "optimum") or (left / f"{module}.png").stat().st_size > 10_000


def test_report(left):
    """One page of what the tests before this one have left, which needs no other file."""
    done = experiment("report", "--from", left, "--out", left / "report.html")
    assert done.returncode == 0, done.stderr
    text = (left / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') >= 1 and text.count("<table>") >= 2
    assert 'src="http' not in text and "<td>rings side by side" not in text
    assert "4 nodes, one half as fast: workers of the ring wait" in text
    assert "emulated nodes" in text and "<code>efficiency</code>" in text


def test_shares_are_whole(left):
    for case in read(left / "efficiency.h5")["cases"]:
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

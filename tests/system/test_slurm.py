"""The batch script that survives, under a real SLURM on this machine."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import MPIRUN, ROOT

sys.path.insert(0, str(ROOT))

from jobs.experiments.slurm import Slurm, why_not

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(120),
]


def steps(folder: Path) -> int:
    files = list(folder.glob("runs/*/history.csv"))
    lines = files[0].read_text().splitlines() if files else []
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


def until(condition, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)


def test_a_job_survives_a_kill_and_is_queued_again(tmp_path_factory, tmp_path, monkeypatch):
    """A rank is killed: made good within the job. The job is told that its time is up: it queues itself, and ends."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path / "memory"))
    flags = ["--model", "mlp:64-48x6-10", "--steps", "250", "--batch-size", "32", "--micro-batches", "4",
             "--pace", "0.05"]  # fmt: skip
    with Slurm(tmp_path_factory.mktemp("s"), nodes=2, cpus=2) as slurm:
        job = slurm.submit(
            str(ROOT / "jobs/slurm/supervise.sbatch"), flags, {"PYTHON": sys.executable, "LAUNCH": MPIRUN},
            "--nodes=2", "--ntasks-per-node=2", cwd=tmp_path,
        )  # fmt: skip
        log = tmp_path / f"ringtmp-{job}.log"
        until(lambda: steps(tmp_path) > 10, log)
        places = sorted(tmp_path.glob("runs/*/traces/*/processes.json"))[-1].read_text()
        os.kill(int(re.findall(r"\d+", places)[-1]), signal.SIGKILL)
        until(lambda: "recovered: " in log.read_text(), log)
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        until(lambda: "supervise: stopped; go on" in log.read_text(), log)
        assert slurm.wait(job) == "COMPLETED"
        assert "Restarts=1" in slurm.run("scontrol", "-o", "show", "job", job)
    text = log.read_text()
    assert re.search(r"recovered: rank \d on .*[01] steps? made again", text)
    assert f"run folder: runs/ringtmp-{job}, resumed at step" in text
    assert "finished at step 250" in text
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"ringtmp-{job}"]

"""The batch scripts, under a real SLURM on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from launching import MPIRUN, ROOT

from ringtmp.jobs.lib.slurm import Slurm, why_not
from ringtmp.kernels import _jit

# One cluster for all of them; most of their time it waits for its own clocks.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(600)]

SCRIPTS = ROOT / "jobs" / "slurm"
NET = ["--model", "mlp:64-48x6-10", "--batch-size", "32"]
FOUR = ("--nodes=2", "--ntasks-per-node=2")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if why := why_not():
        pytest.skip(why)
    with Slurm(tmp_path_factory.mktemp("s"), nodes=3, cpus=2) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    """`sbatch OPTIONS jobs/slurm/NAME.sbatch FLAGS` in an empty folder, with variables; the job's number."""

    def run(name: str, flags: list[str], *options: str, **env: str) -> str:
        ours = {
            "RINGTMP_HOME": str(ROOT),
            "PYTHON": sys.executable,
            "MPIRUN": MPIRUN,
            "NUMBA_CACHE_DIR": str(_jit.CACHE.parent),
            "RINGTMP_NODE_MEMORY": str(tmp_path / "memory"),
        }
        return slurm.submit(str(SCRIPTS / f"{name}.sbatch"), flags, ours | env, *options, cwd=tmp_path)

    return run


def steps(folder: Path) -> int:
    files = list(folder.glob("runs/*/history.csv"))
    lines = files[0].read_text().splitlines() if files else []
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


def until(condition, log: Path, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)


def test_a_job_survives_a_kill_a_lost_node_and_the_end_of_its_time(slurm, submit, train, tmp_path):
    """A rank is killed: made good within the job. A node is lost: SLURM queues the job, which goes on elsewhere.

    Its time is up: it queues itself. The weights are those of one rank to which nothing has happened.
    """
    flags = [*NET, "--steps", "150", "--micro-batches", "4"]
    job = submit("supervise", [*flags, "--node-speed", "0.05"], *FOUR)
    log = tmp_path / f"ringtmp-{job}.log"
    until(lambda: steps(tmp_path) > 10, log)
    places = sorted(tmp_path.glob("runs/*/traces/*/processes.json"))[-1].read_text()
    os.kill(int(re.findall(r"\d+", places)[-1]), signal.SIGKILL)
    until(lambda: "recovered: " in log.read_text(), log)
    slurm.lose("node2")
    alone = train(1, *flags, "--out", str(tmp_path / "alone"))
    until(lambda: "Restarts=1" in slurm.run("scontrol", "-o", "show", "job", job), log)
    begun = steps(tmp_path)
    until(lambda: steps(tmp_path) > begun, log)
    assert "NodeList=node[1,3]" in slurm.run("scontrol", "-o", "show", "job", job)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "supervise: stopped; continue" in log.read_text(), log)
    assert slurm.wait(job) == "COMPLETED"
    assert "Restarts=2" in slurm.run("scontrol", "-o", "show", "job", job)
    text = log.read_text()
    assert re.search(r"recovered: rank \d on .*[01] steps? made again", text)
    assert f"run folder: runs/ringtmp-{job}, resumed at step" in text
    assert "finished at step 150" in text
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"ringtmp-{job}"]
    assert re.findall(r"weights sha256 (\w+)", text)[-1] == re.search(r"weights sha256 (\w+)", alone.stdout)[1]
    assert "Requested nodes are busy" not in text  # those that stand by
    first = (tmp_path / f"ringtmp-{job}.ranks" / "rank0.log").read_text()
    assert "recovered: " in first
    assert "finished at step 150" in first


def test_a_job_out_of_time_ends_with_a_checkpoint(slurm, submit, tmp_path):
    job = submit("train", [*NET, "--steps", "1000", "--node-speed", "0.01", "--name", "long"], *FOUR)
    log = tmp_path / f"ringtmp-{job}.log"
    until(lambda: steps(tmp_path) > 2, log)
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    slurm.wait(job)
    assert "continue with: --resume runs/long" in log.read_text()


def test_the_server_trains_and_each_rank_has_a_log(slurm, submit, tmp_path):
    job = submit("server", [*NET, "--steps", "100"], *FOUR)
    assert slurm.wait(job) == "COMPLETED", (tmp_path / f"server-{job}.log").read_text()
    logs = {path.name: path.read_text() for path in (tmp_path / f"server-{job}.ranks").iterdir()}
    assert sorted(logs) == [f"rank{rank}.log" for rank in range(4)]
    for text in (logs["rank0.log"], (tmp_path / f"server-{job}.log").read_text()):
        assert "finished at step 100" in text
        assert "server" in text


def test_a_sweep_trains_one_line_per_task(slurm, submit, tmp_path):
    (tmp_path / "sweep.txt").write_text("--seed 11 --batch-size 32\n--seed 12 --batch-size 64\n")
    flags = ["sweep.txt", *NET, "--steps", "20"]
    job = submit("sweep", flags, "--nodes=1", "--ntasks-per-node=2", "--array=1-3")
    states = [slurm.wait(f"{job}_{task}") for task in (1, 2, 3)]
    logs = [(tmp_path / f"sweep-{job}-{task}.log").read_text() for task in (1, 2, 3)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED"], logs
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"sweep-{job}-1", f"sweep-{job}-2"]
    for task, seed, size in ((1, 11, 32), (2, 12, 64)):
        config = tomllib.loads((tmp_path / "runs" / f"sweep-{job}-{task}" / "config.toml").read_text())
        assert (config["seed"], config["batch_size"], config["steps"]) == (seed, size, 20)
    assert "sweep.txt has 2 lines and none for task 3" in logs[2]
    assert "ExitCode=2:0" in slurm.run("scontrol", "-o", "show", "job", f"{job}_3")


def test_an_experiment_runs_in_a_job(slurm, submit, tmp_path):
    job = submit("experiment", ["optimum", "--quick", "--out", str(tmp_path / "out")], "--cpus-per-task=2")
    assert slurm.wait(job) == "COMPLETED", (tmp_path / f"experiment-{job}.log").read_text()
    assert (tmp_path / "out" / "optimum.h5").exists()
    assert "optimum" in (tmp_path / f"experiment-{job}.log").read_text()


def test_ranks_get_threads_cores_and_a_cache_on_their_node(slurm, submit, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\necho "$* | $NUMBA_CACHE_DIR | $(stat -c %a "$NUMBA_CACHE_DIR")"\n')
    fake.chmod(0o755)
    env = {"PYTHON": str(fake), "NUMBA_CACHE_DIR": "", "TMPDIR": str(tmp_path), "LOGS": ""}
    job = submit("train", ["--seed", "1"], "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", **env)
    assert slurm.wait(job) == "COMPLETED"
    text = (tmp_path / f"ringtmp-{job}.log").read_text()
    line = f"-m ringtmp.train --threads 2 --seed 1 | {tmp_path}/ringtmp-numba-{os.getuid()} | 700\n"
    assert text.count(line) == 2, text
    assert "lacks support for cpu binding" in text  # asked for; this cluster has none
    assert not list(tmp_path.glob("*.ranks"))


def alone(script: Path, *flags: str, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}
    return subprocess.run(["bash", script, *flags], cwd=cwd, env=env | more, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.stem)
def test_a_script_away_from_the_project_says_so(script, tmp_path):
    done = alone(script, cwd=tmp_path)
    assert done.returncode == 2
    assert "sbatch in the project, or set RINGTMP_HOME to it" in done.stderr


def test_a_sweep_without_its_file_says_so(tmp_path):
    script = SCRIPTS / "sweep.sbatch"
    done = alone(script, "none.txt", cwd=tmp_path, RINGTMP_HOME=str(ROOT), SLURM_ARRAY_TASK_ID="1")
    assert (done.returncode, "there is no file 'none.txt'" in done.stderr) == (2, True)
    (tmp_path / "sweep.txt").write_text("--seed 1\n")
    done = alone(script, "sweep.txt", cwd=tmp_path, RINGTMP_HOME=str(ROOT))
    assert (done.returncode, "--array=1-1" in done.stderr) == (2, True)


def test_shell_scripts_are_clean():
    tool = Path(sys.executable).parent / "shellcheck"
    scripts = [*sorted(SCRIPTS.iterdir()), ROOT / ".ci" / "run"]
    done = subprocess.run([tool, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr

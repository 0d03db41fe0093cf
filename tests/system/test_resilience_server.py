"""Whole jobs of the parameter server that lose workers and servers, by faults from outside at a chosen moment."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from launching import command, job_flags

from ringtmp.analysis import open_run
from ringtmp.jobs.lib.strikes import nodes, strike_all
from ringtmp.jobs.lib.struck_job import Struck, Supervised

pytestmark = pytest.mark.alone

STEPS = 100
FLAGS = job_flags(STEPS, "--message-size", "20000")
COLOCATE = ["--colocate", "on"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """SHA-256 of the weights of a run to which nothing happens."""
    known: dict[tuple, str] = {}

    def find(ranks: int, *flags: str) -> str:
        if (ranks, flags) not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            words = command(ranks, "-m", "ps.train", *FLAGS, *flags)
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
            known[ranks, flags] = re.search("weights sha256 ([0-9a-f]{64})", done.stdout)[1]
        return known[ranks, flags]

    return find


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """Node memory of the test's own."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


def supervised(folder: Path, ranks: int, *flags: str) -> Supervised:
    return Supervised(folder, ranks, [*FLAGS, *flags], nodes(ranks), module="ps.train")


def losses(folder: Path) -> list[float]:
    """Of every step, each of which has been told once."""
    rows = [line.split(",") for line in (folder / "runs/run/history.csv").read_text().splitlines()]
    column = rows[0].index("loss")
    told = [(int(row[1]), float(row[column])) for row in rows[1:] if row[0] == "train"]
    assert [step for step, _ in told] == list(range(1, STEPS + 1))
    return [loss for _, loss in told]


def assert_learnt(folder: Path) -> None:
    told = losses(folder)
    assert np.mean(told[-10:]) < 0.75 * np.mean(told[:10])


KILLS = [
    # Two servers and two workers, as one server's bits are; and three ranks that do both.
    (4, ["--servers", "2"], (3, []), [(0, "U"), (1, "replicate"), (3, "restore")]),
    pytest.param(3, COLOCATE, (3, COLOCATE), [(2, "U"), (0, "checkpoint")], marks=pytest.mark.soak),
]


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "flags", "same", "which"), KILLS, ids=["servers", "colocate"])
def test_kills(tmp_path, memory, undisturbed, ranks, flags, same, which):
    """SIGKILL of workers and servers with BSP: at most one step made again, the same bits."""
    expected = undisturbed(same[0], *same[1])
    with supervised(tmp_path, ranks, *flags) as job:
        strike_all(job, which, (STEPS - 20) // len(which))
        assert job.wait() == 0, job.text
    assert job.sha256() == expected, job.text
    again = job.redone()
    assert len(again) == len(which) and max(again) <= 1, job.text
    losses(tmp_path)
    assert not memory.exists()  # the run has ended, and is forgotten


@pytest.mark.parametrize(
    ("consistency", "rank", "phase"), [pytest.param("ssp", 0, "U", marks=pytest.mark.long), ("asp", 2, "W")]
)
def test_kills_without_barriers(tmp_path, consistency, rank, phase):
    """It goes on from a step that all have made: no gradient is missing, and the loss falls."""
    with supervised(tmp_path, 3, "--consistency", consistency) as job:
        job.strike(rank, phase, 40)
        assert job.wait() == 0, job.text
    assert re.search(r"resumed at step \d+ from the memory of the nodes", job.text)
    assert len(job.redone()) == 1
    assert_learnt(tmp_path)


@pytest.mark.long
def test_a_servers_node_is_lost(tmp_path, memory, undisturbed):
    """With all that it remembers: its ranges come from the first worker's node."""
    with supervised(tmp_path, 3) as job:
        job.catch(0, "U", 30)
        [lost] = memory.glob("*/a")
        job.kill(0)
        shutil.rmtree(lost)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed(3)
    assert job.redone() in ([0], [1])


@pytest.mark.long
def test_without_servers_checkpoints_serve(tmp_path, undisturbed):
    """All-reduce: nothing is kept in memory."""
    with supervised(tmp_path, 2, "--consistency", "allreduce") as job:
        job.strike(1, "I", 40)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed(2, "--consistency", "allreduce")
    assert re.search(r"resumed at step (9|18|27|36)\n", job.text)


BACK = [
    (4, 3, ["--servers", "2"]),
    (4, 1, ["--consistency", "ssp", "--state-copies", "1"]),  # the one that holds the server's copies
    pytest.param(
        3, 2, ["--consistency", "asp", "--compression", "float16", "--local-steps", "2"], marks=pytest.mark.soak
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "rank", "flags"), BACK, ids=["bsp", "ssp", "asp"])
def test_a_stopped_worker_is_dropped_and_taken_back(tmp_path, monkeypatch, ranks, rank, flags):
    """The others go on without it; when it goes on it gets a share again, and no gradient counts twice."""
    monkeypatch.setenv("RINGTMP_NODES", "a,b,c,d")
    words = command(ranks, "-m", "ps.train", *FLAGS, *flags, "--worker-timeout", "1.2", "--node-speed", "0.05")
    with Struck(tmp_path, ranks, words) as job:
        pid = job.catch(rank, "W", 10)
        job.kill(rank, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while "is dropped" not in job.text:
            assert time.monotonic() < deadline, job.text
            time.sleep(0.01)
        os.kill(pid, signal.SIGCONT)
        assert job.wait(60) == 0, job.text
    assert re.search(rf"rank {rank} on \S+ \(process {pid}\) was silent for 1.2 s", job.text)
    back = re.search(rf"rank {rank} on \S+ \(process {pid}\) is back and .* from step (\d+) on", job.text)
    assert back, job.text
    assert "left" not in job.text.rsplit("finished at step", 1)[1]
    assert_learnt(tmp_path)
    run = open_run(tmp_path / "runs" / "run")
    events = run.events()
    made = sorted(set(events[(events["kind"] == "F") & (events["rank"] == rank)]["step"]))
    first = int(back[1])
    assert made == [*range(10), *[step for step in made if 10 <= step < first], *range(first, STEPS)]
    assert len(made) < STEPS
    assert not run.staleness().duplicated(["stage", "step", "worker"]).any()


@pytest.mark.parametrize(
    ("ranks", "flags", "words"),
    [
        (2, ["--consistency", "allreduce", "--state-copies", "1"], ["state_copies: ", "allreduce", "expected off"]),
        (2, ["--state-copies", "2"], ["state_copies: ", "expected off or 1", "got 2"]),
        (3, ["--backup", "1", "--state-copies", "1"], ["state_copies: ", "backup", "expected off"]),
        (2, ["--state-copies", "x"], ["state_copies: ", "'x'"]),
    ],
)
def test_bad_input(launch, tmp_path, ranks, flags, words):
    done = launch(ranks, "-m", "ps.train", *flags)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip()
    assert line.startswith("ringtmp: ") and "\n" not in line
    assert all(word in line for word in words), line
    assert not (tmp_path / "runs").exists()

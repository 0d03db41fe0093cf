"""Whole jobs that lose ranks, by faults from outside at a chosen moment, and go on to the undisturbed weights."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import command, job_flags

from ringtmp.jobs.lib.strikes import cases, kills, nodes
from ringtmp.jobs.lib.struck_job import Supervised
from ringtmp.trace import fault_probe as probe

pytestmark = pytest.mark.alone

STEPS = 120
FLAGS = job_flags(STEPS, "--micro-batches", "4")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> str:
    """SHA-256 of the weights of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(command(2, "-m", "ringtmp.train", *FLAGS), cwd=folder, capture_output=True, text=True)
    return re.search("weights sha256 ([0-9a-f]{64})", done.stdout)[1]


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """Node memory of the test's own."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.mark.parametrize(("ranks", "emulate"), [(3, True), pytest.param(4, False, marks=pytest.mark.soak)])
def test_kills(tmp_path, undisturbed, ranks, emulate):
    """SIGKILL of any rank in any phase: at most one step made again, the same bits. `make soak` has all of them."""
    kills(tmp_path, FLAGS, STEPS, undisturbed, ranks, emulate, cases(ranks, emulate, ranks, 3))


MOVING = [(0, "handed"), (2, "housed"), (1, "rebalance"), (1, "housed")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("emulate", "which"),
    [
        (True, MOVING[:2]),
        pytest.param(True, MOVING[2:], marks=pytest.mark.soak),
        pytest.param(False, MOVING, marks=pytest.mark.soak),
    ],
)
def test_kills_while_layers_move(tmp_path, undisturbed, emulate, which):
    """When they have been handed over, when the nodes' memory has them, and before: each launch starts from the same
    cut and sees again that the last node is slow."""
    flags = [*FLAGS, "--balance", "auto", "--node-speed", "0.2,0.2,0.01"]
    with Supervised(tmp_path, 3, flags, nodes(3) if emulate else []) as job:
        for rank, phase in which:
            before = job.recovered()
            job.strike(rank, phase, 1)
            while job.recovered() == before:
                assert job.process.poll() is None, job.text
                time.sleep(0.01)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert len(job.redone()) == len(which) and max(job.redone()) <= 1, job.text
    assert re.search(r"balance: step \d+: .*; layers \d,\d,\d to \d,\d,1", job.text), job.text


@pytest.mark.long
def test_other_ends_of_a_rank(tmp_path, undisturbed):
    """`exit(1)`, an exception, a segmentation fault."""
    with Supervised(tmp_path, 2, FLAGS) as job:
        for step, (rank, act) in enumerate([(1, probe.EXIT), (0, probe.RAISE), (1, probe.SEGFAULT)]):
            job.catch(rank, "W", 20 + 30 * step, act)
            job.rows[rank, probe.ACT] = probe.NOTHING
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert "raised on purpose by the fault injector" in job.text
    assert re.search(r"recovered: rank 0 on \S+ has failed \(RuntimeError: raised on purpose", job.text)
    assert max(job.redone()) <= 1 and len(job.redone()) == 3


@pytest.mark.long
def test_a_hung_rank_is_killed_and_replaced(tmp_path, undisturbed):
    with Supervised(tmp_path, 3, [*FLAGS, "--heartbeat-timeout", "1.5"]) as job:
        pid = job.catch(1, "I", 30)
        job.kill(1, signal.SIGSTOP)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    told = (
        rf"rank 1 on \S+ \(process {pid}\) has given no sign of life for 1.5 s \(--heartbeat-timeout\): taken for hung"
    )
    assert re.search(told, job.text)
    assert max(job.redone()) <= 1


@pytest.mark.long
def test_a_rank_that_stops_for_a_while_is_waited_for(tmp_path, undisturbed):
    with Supervised(tmp_path, 3, [*FLAGS, "--heartbeat-timeout", "30"]) as job:
        pid = job.catch(2, "W", 30)
        job.kill(2, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert "recovered" not in job.text and "hung" not in job.text


@pytest.mark.long
def test_a_node_leaves_and_loses_no_step(tmp_path, undisturbed):
    """SIGUSR1 to a rank: the job goes on without its node from the step that it ends."""
    with Supervised(tmp_path, 3, FLAGS, nodes(3)) as job:
        pid = job.catch(1, "F", 30)
        os.kill(pid, signal.SIGUSR1)
        job.rows[1, probe.ACT] = probe.NOTHING
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert re.search(r"recovered: rank 1 on \S+ has left; went on at step \d+, 0 steps made again", job.text)
    assert "over 2 ranks" in job.text


@pytest.mark.long
def test_a_host_is_lost_and_comes_back(tmp_path, memory, undisturbed):
    """With its memory: its layers come from its neighbour. When it is back it joins at the end of a step."""
    up = tmp_path / "up"
    up.write_text("a b c")
    flags = [*FLAGS, "--node-speed", "0.02"]
    with Supervised(tmp_path, 3, flags, [*nodes(3), "--probe", f"cat {up}", "--probe-every", "0.5"]) as job:
        job.catch(1, "U", 10)
        up.write_text("a c")
        [lost] = memory.glob("*/b")
        job.kill(1)
        shutil.rmtree(lost)
        job.catch(1, "F", 30)
        assert "over 2 ranks" in job.text
        up.write_text("a b c")
        job.rows[1, probe.ACT] = probe.NOTHING
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert max(job.redone()) <= 1 and job.redone()[1] == 0
    assert "recovered: a host has joined" in job.text
    assert job.text.count("over 3 ranks") == 2


@pytest.mark.long
def test_two_neighbours_are_lost_together(tmp_path, memory, undisturbed):
    """Their layers are nowhere: the last checkpoint counts, and the log says so."""
    with Supervised(tmp_path, 4, FLAGS, nodes(4)) as job:
        job.catch(2, "W", 40)
        [run] = memory.iterdir()
        job.kill(2)
        shutil.rmtree(run / "b")
        shutil.rmtree(run / "c")
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    assert re.search(r"no step is complete in the memory of the remaining nodes: layers .* are lost", job.text)
    assert re.search("continues from the checkpoint of step (27|36)", job.text)  # the last one that was complete


@pytest.mark.long
def test_a_run_that_cannot_go_on_is_given_up(tmp_path):
    """It fails again and again at the same place."""
    flags = [*FLAGS, "--optimizer", "sgd", "--lr", "1e9"]
    with Supervised(tmp_path, 2, flags, ["--back-off", "0.01", "--max-restarts", "2"]) as job:
        assert job.wait() == 1, job.text
    assert job.text.count("the loss became") >= 3
    assert "given up after 2 restarts (--max-restarts); continue with" in job.text
    assert job.text.count("Traceback") == 0


@pytest.mark.long
def test_stop_and_go_on_with_the_same_command(tmp_path, undisturbed):
    """SIGUSR1 to the supervisor, as from a batch system that takes the nodes away: status 75, then the same again."""
    with Supervised(tmp_path, 2, [*FLAGS, "--node-speed", "0.05"]) as job:
        job.catch(0, "F", 20)
        job.process.send_signal(signal.SIGUSR1)
        job.rows[0, probe.ACT] = probe.NOTHING
        assert job.wait() == 75, job.text
    assert json.loads((tmp_path / "runs/run/status.json").read_text())["state"] == "stopped"
    with Supervised(tmp_path, 2, FLAGS) as job:
        assert job.wait() == 0, job.text
    assert job.sha256() == undisturbed
    with Supervised(tmp_path, 2, FLAGS) as job:  # but a finished run is not overwritten
        assert job.wait() == 2, job.text
    assert "exists already, is finished and is not overwritten" in job.text


@pytest.mark.long
def test_interrupt(tmp_path):
    with Supervised(tmp_path, 2, [*FLAGS, "--node-speed", "0.05"]) as job:
        job.catch(0, "F", 20)
        job.process.send_signal(signal.SIGINT)
        job.rows[0, probe.ACT] = probe.NOTHING
        assert job.wait() == 130, job.text
    assert "continue with: --resume" in job.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "2"], ["program", "python -m ringtmp.train"]),
        (["-n", "0", "--", sys.executable, "-m", "ringtmp.train"], ["ranks", "got 0"]),
        (["-n", "2", "--", sys.executable, "-m", "ringtmp", "plan"], ["program", "ringtmp plan"]),
        (["-n", "2", "--hosts", ":", "--", sys.executable, "-m", "ringtmp.train"], ["hosts", "':'"]),
        (["-n", "2", "--mpirun", "no-such", "--", sys.executable, "-m", "ringtmp.train"], ["mpirun", "no-such"]),
        (["-n", "2", "--", sys.executable, "-m", "ringtmp.train", "--lr", "x"], ["lr", "'x'"]),
        (["-n", "2", "--", sys.executable, "-m", "ringtmp.train", "--epoch", "1"], ["--epoch"]),
        (["-n", "2", "--", sys.executable, "-m", "ringtmp.train", "--resume", "nowhere"], ["resume", "nowhere"]),
        (
            ["-n", "2", "--", sys.executable, "-m", "ringtmp.train", "--schedule", "2bw", "--state-copies", "1"],
            ["state_copies", "2bw"],
        ),
    ],
)
def test_bad_input(tmp_path, words, expected):
    done = subprocess.run(
        [sys.executable, "-m", "ringtmp", "supervise", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("ringtmp: ") and "\n" not in done.stderr.strip()
    assert all(word in done.stderr for word in expected), done.stderr
    assert not (tmp_path / "runs").exists()

"""How a run ends when it does not end by itself: signals, exceptions, NaN, stalls, the wrong launcher."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from launching import MPIRUN, command

LONG = pytest.mark.long
SLOW = ("-m", "ringtmp.train", "--model", "mlp:64-32x7-10", "--epochs", "100000", "--name", "run", "--eval-every", "50")


def started(tmp_path, ranks: int) -> subprocess.Popen:
    """A long run that has begun to train."""
    job = subprocess.Popen(
        command(ranks, *SLOW),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    history = tmp_path / "runs" / "run" / "history.csv"
    deadline = time.monotonic() + 90
    while not (history.exists() and "test" in history.read_text()):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def status(tmp_path) -> dict:
    return json.loads((tmp_path / "runs" / "run" / "status.json").read_text())


def open_mpi() -> bool:
    return "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=LONG), 3, pytest.param(8, marks=LONG)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_launcher(train, tmp_path, ranks, number):
    """A checkpoint is written, the marker says what stopped the run, and it can go on (tried after one of the two: the
    marker's number is all that they leave behind)."""
    job = started(tmp_path, ranks)
    job.send_signal(number)
    assert "continue with: --resume runs/run" in job.communicate(timeout=30)[0]
    marker = status(tmp_path)
    assert marker["state"] == "stopped"
    assert marker["signal"] in ({number, signal.SIGTERM} if open_mpi() else {number})  # Open MPI makes TERM of INT
    step = marker["step"]
    assert (tmp_path / f"runs/run/checkpoints/step-{step:08d}/COMMIT.json").exists()
    if number == signal.SIGTERM:
        more = train(2, "--resume", "run", "--steps", str(step + 3))
        assert more.returncode == 0, more.stderr
        assert status(tmp_path)["state"] == "finished"


def test_signal_to_a_single_process(tmp_path):
    """Without a launcher the exit status is the rank's own: 128 + the signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(int(number))
        folder.mkdir()
        job = subprocess.Popen(command(1, *SLOW)[3:], cwd=folder, stdout=subprocess.DEVNULL)
        while not (folder / "runs/run/history.csv").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        job.send_signal(number)
        assert job.wait(timeout=30) == 128 + number


def test_signal_to_one_rank(tmp_path):
    """A rank in the middle is told to stop: its token tells rank 0, and rank 0 tells the ring."""
    job = started(tmp_path, 3)
    ranks = [
        int(line.split()[0])
        for line in subprocess.run(
            ["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if "ringtmp.train" in line
        and "mpirun" not in line
        and "hydra" not in line
        and os.path.realpath(f"/proc/{line.split()[0]}/cwd") == str(tmp_path)
    ]
    assert len(ranks) >= 3
    os.kill(sorted(ranks)[-2], signal.SIGTERM)
    job.communicate(timeout=30)
    assert (status(tmp_path)["state"], status(tmp_path)["signal"]) == ("stopped", signal.SIGTERM)


BROKEN = """
import sys, time
from ringtmp.train import run
from ringtmp.nn.stage import Stage
whole = Stage.{method}
def broken(self, *arguments, **named):
    from mpi4py import MPI
    broken.calls += 1
    if {rank} in (MPI.COMM_WORLD.rank, -1) and broken.calls == 40:
        {action}
    return whole(self, *arguments, **named)
broken.calls = 0
Stage.{method} = broken
run("--model mlp:64-32x7-10 --name run".split() + {flags})
"""


def broken(launch, ranks, rank, action, method="backward_weight", flags=()):
    script = BROKEN.format(rank=rank, action=action, method=method, flags=list(flags))
    began = time.monotonic()
    done = launch(ranks, "-c", script, timeout=60)
    return done, time.monotonic() - began


RAISES, LEAVES = "raise ValueError('broken on purpose')", "sys.exit('left on purpose')"


@pytest.mark.parametrize(
    ("action", "ranks", "rank"),
    [
        *((RAISES, *where) for where in ((1, 0), (2, 0), (3, 1))),
        *(pytest.param(RAISES, *where, marks=LONG) for where in ((5, 4), (8, 5))),
        (LEAVES, 1, 0),
        (LEAVES, 3, 1),
    ],
)
def test_exception_on_one_rank(launch, tmp_path, action, ranks, rank):
    """`sys.exit` goes the same way out as any exception: on its own and in the middle of a ring."""
    done, _ = broken(launch, ranks, rank, action)
    assert done.returncode not in (0, 2)
    assert f"rank {rank} of {ranks}" in done.stderr
    assert "on purpose" in done.stderr
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["rank"] == rank


def test_loss_becomes_nan(train, tmp_path):
    done = train(3, "--model", "mlp:64-32x7-10", "--optimizer", "sgd", "--lr", "1e9", "--name", "run")
    assert done.returncode not in (0, 2)
    assert "the loss became" in done.stderr
    assert "rank 2 of 3" in done.stderr
    assert "in step" in done.stderr
    assert "Traceback" not in done.stderr
    assert status(tmp_path)["state"] == "failed"


def test_stall(launch):
    """A rank that stops without dying is told of by a neighbour; the job ends."""
    done, _ = broken(launch, 3, 1, "time.sleep(1000)", flags=["--stall-timeout", "2"])
    assert done.returncode not in (0, 2)
    assert "no action could go on for" in done.stderr and "waits for its neighbours, ranks" in done.stderr


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"])
def test_wrong_launcher(tmp_path, variable):
    """A world of size 1 under a launcher that meant more is refused, with the reason."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    env[variable] = "4"
    if variable == "PMI_SIZE":
        env["PMI_RANK"] = "0"
    done = subprocess.run(
        command(1, "-m", "ringtmp.train")[3:], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert variable in done.stderr
    assert "MPICH" in done.stderr or "Open MPI" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_mpirun_on_one_rank_inside_a_slurm_job(train):
    """mpirun's own variables count before SLURM's: one rank was meant here."""
    done = train(1, "--model", "mlp:64-8-10", "--steps", "2", SLURM_NTASKS="4")
    assert done.returncode == 0, done.stderr


def test_launcher_is_the_one_of_this_environment():
    assert os.access(MPIRUN, os.X_OK) or "/" not in MPIRUN


@pytest.mark.parametrize("ranks", [1, 3])
def test_full_disk(launch, tmp_path, ranks):
    """From step 5 on no file may grow beyond 20 KB: what cannot be written says so, and training goes on to its end."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    more = ["--model", "mlp:64-128x3-10", "--epochs", "20", "--checkpoint-every", "150"]
    done, _ = broken(launch, ranks, -1, full, flags=more)
    assert "finished at step 440" in done.stdout, done.stderr
    for words in ("write its checkpoint of step 150", "write its checkpoint of step 440", "write its trace"):
        for rank in range(ranks):
            assert re.search(rf"warning: rank {rank} on .* could not {words}", done.stderr), done.stderr
    assert "history.csv is not written any further" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert status(tmp_path)["saved"] is False
    assert not list((tmp_path / "runs/run/checkpoints").glob("*/*.h5"))


FROM_PYTHON = """
import ringtmp
from mpi4py import MPI
from ringtmp.nn.stage import Stage
whole = Stage.initialise
def broken(self, seed):
    if MPI.COMM_WORLD.rank == {rank}:
        raise ValueError("broken on purpose")
    return whole(self, seed)
Stage.initialise = broken
ringtmp.train(model="mlp:64-8x3-10", steps=5, progress=False)
"""


@pytest.mark.parametrize(("ranks", "rank"), [(2, 0), (3, 2)])
def test_exception_in_a_script(launch, ranks, rank):
    """`ringtmp.train` called from a script under mpirun ends the job as well."""
    done = launch(ranks, "-c", FROM_PYTHON.format(rank=rank), timeout=60)
    assert done.returncode not in (0, 2)
    assert f"rank {rank} of {ranks}" in done.stderr
    assert "broken on purpose" in done.stderr


def test_exception_with_a_full_disk_under_the_output(tmp_path):
    """Not even the message can be written: the job ends all the same."""
    script = tmp_path / "script.py"
    script.write_text(FROM_PYTHON.format(rank=0))
    done = subprocess.run([*command(2, "x")[:3], "sh", "-c", f"{command(1)[3]} {script} > /dev/full 2>&1"], timeout=60)
    assert done.returncode != 0


def test_full_disk_under_the_output(tmp_path):
    """Lines are lost, the run is not."""
    with open("/dev/full", "w") as full:
        job = command(1, "-m", "ringtmp.train", "--model", "mlp:64-8-10", "--epochs", "3", "--name", "run")[3:]
        done = subprocess.run(job, cwd=tmp_path, stdout=full, stderr=full, timeout=60)
    assert done.returncode == 0
    assert status(tmp_path)["state"] == "finished"


def test_two_jobs_on_one_run_folder(train, tmp_path):
    job = started(tmp_path, 1)
    done = train(2, "--resume", "run")
    assert done.returncode == 2
    assert "is being written by another job" in done.stderr
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert train(2, "--resume", "run", "--steps", str(status(tmp_path)["step"] + 3)).returncode == 0

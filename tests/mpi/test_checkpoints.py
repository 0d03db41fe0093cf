"""Checkpoints written during training: complete, and bit for bit the end of a run with that number of steps."""

import threading
import time

import pytest
from mpi4py import MPI

import ringtmp
from ringtmp import ps
from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint import manager as sets
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.ps.serving.checkpointing import CheckpointCollector

pytestmark = pytest.mark.mpi

SMALL = {
    "model": "mlp:11-13-9-17x2-8x2-7-3,activation=tanh",
    "data": "synthetic:samples=300,features=11,classes=3,seed=4",
    "batch_size": 16,
    "micro_batches": 4,
    "eval_every": 7,
    "lr": 0.01,
    "lr_schedule": "constant",
    "progress": False,
}


@pytest.fixture
def slow(monkeypatch):
    """Parts take 20 ms, in which many steps go by, and are never written by the thread that trains; who wrote which."""
    whole, done = checkpoint.write_part, []

    def write_part(root, step, rank, records):
        time.sleep(0.02)
        whole(root, step, rank, records)
        done.append((step, threading.current_thread() is not threading.main_thread()))

    monkeypatch.setattr(checkpoint, "write_part", write_part)
    return done


def go_on(comm, folder, step, steps):
    """Resume from the set of `step`, all newer ones being gone. Collective."""
    sleeping_barrier(comm)
    if comm.rank == 0:
        for newer in checkpoint.steps(folder):
            if newer > step:
                checkpoint.discard(folder, newer)
    sleeping_barrier(comm)
    return ringtmp.train(comm=comm, resume=str(folder.parent), steps=steps, progress=False)


@pytest.mark.parametrize("extra", [{}, {"schedule": "2bw"}, {"chunks": 2}], ids=str)
def test_sets_beside_the_training(comm, shared_path, slow, extra):
    """A checkpoint every 5 steps, each waiting for the one before it; a run resumes from the last one bit for bit."""
    if extra.get("chunks", 1) * comm.size > 8:
        extra = {}
    settings = SMALL | extra | {"steps": 23}
    result = ringtmp.train(comm=comm, **settings, checkpoint_every=5, out=str(shared_path), name="run")
    assert slow == [(step, True) for step in (5, 10, 15, 20, 23)]
    folder = shared_path / "run" / "checkpoints"
    if comm.rank == 0:
        assert checkpoint.steps(folder) == checkpoint.committed(folder) == [20, 23]
        for step in (20, 23):
            checkpoint.verify(folder, checkpoint.read_marker(folder, step))
        assert result.ranks[-1]["parts"]["checkpoint"] > 0.05e9  # waits
    more = go_on(comm, folder, 20, 23)
    assert (more.step, more.sha256) == (23, result.sha256)


@pytest.mark.parametrize("train", [ringtmp.train, ps.train], ids=["ring", "ps"])
def test_sets_by_the_clock(comm, shared_path, slow, train):
    """All ranks cut at a step that rank 0 has named; how often follows from the cost of a set."""
    layout = {"colocate": True} if train is ps.train else {}
    settings = SMALL | layout | {"steps": 60}
    result = train(comm=comm, **settings, mtbf=0.5, delay=0.0005, out=str(shared_path), name="run")
    every = comm.allgather([step for step, _ in slow])
    begun = max(every, key=len)
    assert all(mine == begun or (not mine and train is ps.train) for mine in every)  # some servers have no layer's home
    assert begun == sorted({*begun})
    assert begun[-1] == 60
    assert 11 <= begun[0] <= 20 or comm.size > 3  # ten steps, and two or so until the order is everywhere
    assert len(begun) > 2
    sleeping_barrier(comm)
    folder = shared_path / "run" / "checkpoints"
    kept = checkpoint.committed(folder)
    assert kept == checkpoint.steps(folder) == begun[-2:]
    for step in kept:
        checkpoint.verify(folder, checkpoint.read_marker(folder, step))
    if train is ringtmp.train:
        more = go_on(comm, folder, kept[0], 60)
        assert (more.step, more.sha256) == (60, result.sha256)


@pytest.mark.parametrize("train", [ringtmp.train, ps.train], ids=["ring", "ps"])
def test_a_late_order(comm, shared_path, slow, train, monkeypatch, capfd):
    """The last rank hears of the first order too late: that set is given up, whole ones follow, and nothing else."""
    ordered, asked, late = sets.CheckpointManager.ordered, CheckpointCollector.ordered, []

    def hears(self, step, made):
        if not late and self.rank == comm.size - 1:
            late.append(step)
            made = step
        ordered(self, step, made)

    def server_hears(self, step):
        if not late and self.comm.rank == comm.size - 1:
            late.append(step)
            self.made = dict.fromkeys(self.made, step)
        asked(self, step)

    monkeypatch.setattr(sets.CheckpointManager, "ordered", hears)
    monkeypatch.setattr(CheckpointCollector, "ordered", server_hears)
    layout = {"colocate": True} if train is ps.train else {}
    settings = SMALL | layout | {"steps": 60, "mtbf": 0.5, "delay": 0.0005}
    result = train(comm=comm, **settings, out=str(shared_path), name="run")
    sleeping_barrier(comm)
    folder = shared_path / "run" / "checkpoints"
    assert (result.step, result.saved) == (60, True)
    if late and slow:  # of 8 servers the last one may be no layer's home, and writes nothing
        assert late[0] not in [step for step, _ in slow]
        assert f"could not write its checkpoint of step {late[0]}: it was ordered too late" in capfd.readouterr().err
    assert len(checkpoint.committed(folder)) == 2
    assert comm.bcast(late, comm.size - 1)[0] not in checkpoint.steps(folder)


def test_nothing_stale_is_taken(comm, shared_path):
    """Parts that a killed launch has left are gone before the next one begins."""
    first = ringtmp.train(comm=comm, **SMALL, steps=6, out=str(shared_path), name="run")
    sleeping_barrier(comm)
    folder = shared_path / "run" / "checkpoints"
    if comm.rank == 0:
        checkpoint.write_part(folder, 8, 7, [])
    sleeping_barrier(comm)
    more = ringtmp.train(comm=comm, resume=first.folder, steps=9, progress=False)
    assert more.saved
    assert checkpoint.steps(folder) == [6, 9]


def test_other_exceptions_end_the_run(shared_path, monkeypatch):
    """Alone, since they end the job: what is no `OSError` comes out of the training, not of nowhere."""

    def broken(*arguments):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(checkpoint, "write_part", broken)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        ringtmp.train(
            comm=MPI.COMM_SELF, **SMALL, steps=50, checkpoint_every=5, out=str(shared_path / str(MPI.COMM_WORLD.rank))
        )

"""A data format from outside (`tests/support/outside/csv_format.py`): ring and server train on it, and resume."""

import csv_format  # noqa: F401 - registers the format
import numpy as np
import pytest
from mpi4py import MPI

import ringtmp
from ringtmp import ps


@pytest.fixture
def table(comm, shared_path):
    """A CSV file of 120 samples with 6 features and 3 classes."""
    path = shared_path / "samples.csv"
    if comm.rank == 0:
        rng = np.random.default_rng(5)
        x = rng.standard_normal((120, 6))
        y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
        np.savetxt(path, np.column_stack([x, y]), delimiter=",")
    comm.Barrier()
    return str(path)


@pytest.mark.mpi
def test_the_ring_trains_on_it_and_resumes(comm, table, shared_path):
    settings = {"data": table, "model": "mlp:6-9x6-3", "batch_size": 16, "micro_batches": 3, "progress": False}
    settings |= {"lr_schedule": "constant"}
    first = ringtmp.train(comm=comm, **settings, steps=7, out=str(shared_path / "runs"))
    more = ringtmp.train(comm=comm, resume=comm.bcast(first.folder), steps=12, progress=False)
    alone = ringtmp.train(comm=MPI.COMM_SELF, **settings, steps=12)
    assert (more.step, more.sha256) == (12, alone.sha256)


@pytest.mark.mpi
def test_servers_train_on_it(comm, table):
    settings = {"data": table, "model": "mlp:6-9x2-3", "batch_size": 16, "progress": False, "steps": 9}
    settings |= {"colocate": comm.size == 1}  # on one rank the server's rank works too
    result = ps.train(comm=comm, **settings)
    assert result.step == 9
    assert len(set(comm.allgather(result.sha256))) == 1

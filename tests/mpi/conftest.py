"""Under mpirun a rank that fails must end the others: they would wait for it in the next collective call."""

import sys
from itertools import product
from pathlib import Path

import pytest
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # naive.py


def chessboard(*axes):
    """The product of the axes on 2 ranks. On other numbers every second case, like the squares of one colour: each
    value meets each value or its neighbours; and 1 and 5 ranks take the colour that 3, 4 and 8 leave.
    """
    places = product(*map(range, map(len, axes)))
    colour = {1: 1, 2: None, 5: 1}.get(MPI.COMM_WORLD.size, 0)
    shown = [place for place in places if colour is None or sum(place) % 2 == colour]
    return [tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in shown]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and MPI.COMM_WORLD.size > 1:
        sys.stderr.write(f"rank {MPI.COMM_WORLD.rank}: {item.nodeid}\n{report.longreprtext}\n")
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
    return report


@pytest.fixture
def comm():
    """A communicator of the test's own."""
    mine = MPI.COMM_WORLD.Dup()
    yield mine
    mine.Barrier()
    mine.Free()


@pytest.fixture
def shared_path(tmp_path_factory, comm):
    """One temporary folder for all ranks."""
    path = tmp_path_factory.mktemp("shared") if comm.rank == 0 else None
    return comm.bcast(path)

"""Under mpirun a rank that fails must end the others: they would wait for it in the next collective call."""

import os
import sys
import zlib
from itertools import product

import pytest
from mpi4py import MPI


def chessboard(*axes):
    """The product of the axes on 2 ranks. On 1, 3 and 4 every second case, like the squares of one colour: each value
    meets each value or its neighbours, and 1 takes the colour that the others leave. On more, where a run costs most,
    every fourth one.
    """
    places = list(product(*map(range, map(len, axes))))
    every, colour = {1: (2, 1), 2: (1, 0), 3: (2, 0), 4: (2, 0), 5: (4, 1)}.get(MPI.COMM_WORLD.size, (4, 2))
    shown = [place for place in places if sum(place) % every == colour] or places[:1]
    return [tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in shown]


WHOLE = (
    "test_recorded",
    "test_same_numbers",
    "test_schedules",
    "test_layer_split",
    "test_balance",
    "test_memory",
    "test_rings_side_by_side",
)  # on 5 and on 8 ranks


def pytest_collection_modifyitems(config, items):
    """On 5 and on 8 ranks each half of the tests, but for those of `WHOLE`; all of them in `make soak`."""
    size = MPI.COMM_WORLD.size
    if size < 5 or "RINGTMP_SOAK" in os.environ:
        return

    def stays(item):
        name = item.function.__name__
        return item.module.__name__ in WHOLE or zlib.crc32(name.encode()) % 2 == (size > 5)

    config.hook.pytest_deselected(items=[item for item in items if not stays(item)])
    items[:] = [item for item in items if stays(item)]


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

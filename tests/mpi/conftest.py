"""Shared by the tests under mpirun: the tests that each number of ranks runs, fixtures, and runs with servers.

A rank that fails must end the others: they would wait for it in the next collective call.
"""

import os
import sys
import zlib
from itertools import product

import numpy as np
import pytest
from mpi4py import MPI

import ringtmp
from ringtmp import ps
from ringtmp.analysis import open_run
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.comm.point_to_point import ControlChannel

N = MPI.COMM_WORLD.size


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


# ---- runs with parameter servers ------------------------------------------------------------------------------------

# 8 layers: enough for a ring of 8 ranks. Odd widths, so that no product is a multiple of a vector.
SMALL = {
    "model": "mlp:11-13-9-17x2-8x2-7-3,activation=tanh",
    "data": "synthetic:samples=300,features=11,classes=3,seed=4",
    "batch_size": 16,
    "steps": 20,
    "eval_every": 7,
    "optimizer": "adamw",
    "lr": 0.01,
    "lr_schedule": "constant",
    "dtype": "float64",
    "progress": False,
}
MOMENTUM = SMALL | {
    "optimizer": "momentum",
    "steps": 7,
    "eval_every": 5,
    "weight_decay": 0.01,
    "clip_value": 0.02,
    "lr_schedule": "cosine",
    "warmup_steps": 3,
    "message_size": "400",
}
ITEM = 8
SERVING = {"colocate": True} if N == 1 else {}  # a server and at least one worker
SEVERAL = {"colocate": True} if N <= 2 else {}  # at least two workers, where there are two ranks
ALLREDUCE = {"consistency": "allreduce"}
_alone: dict[tuple, ringtmp.Result] = {}


def alone(**settings) -> ringtmp.Result:
    """The run of one rank with these settings, made once in each process."""
    key = tuple(sorted((k, str(v)) for k, v in settings.items()))
    if key not in _alone:
        _alone[key] = ringtmp.train(comm=MPI.COMM_SELF, **settings)
    return _alone[key]


def by_ids(settings: dict) -> str:
    return "-".join(f"{v}" if isinstance(v, str) else f"{k}{v}" for k, v in settings.items()) or "plain"


def assert_close(got, want, tolerance=1e-10):
    assert sorted(got) == sorted(want)
    for layer, arrays in want.items():
        for key, array in arrays.items():
            np.testing.assert_allclose(got[layer][key], array, atol=tolerance, rtol=0, err_msg=f"{layer}/{key}")


def assert_same_numbers(result, **settings):
    """Weights (collective), and what rank 0 reports of each step and test, as one process has them."""
    weights = result.weights()
    if weights:
        one = alone(**settings)
        assert result.step == settings["steps"]
        assert_close(weights, one.layers)
        rows = {(row["kind"], row["step"]): row for row in one.rows}
        assert sorted(rows) == sorted((row["kind"], row["step"]) for row in result.rows)
        for row in result.rows:
            same = rows[row["kind"], row["step"]]
            assert np.isclose(row["loss"], same["loss"], rtol=1e-8)
            assert np.isclose(row["score"], same["score"], rtol=1e-8, equal_nan=True)
            assert (str(row["lr"]), row["epoch"]) == (str(same["lr"]), same["epoch"])


class Traced:
    """A run with servers and its trace, which rank 0 opens. Collective."""

    def __init__(self, comm, path, **settings):
        self.result = ps.train(comm=comm, **settings, out=str(path), name="run")
        sleeping_barrier(comm)
        if comm.rank:
            return
        self.run = open_run(path / "run")
        self.events, self.ranks = self.run.events(), self.run.ranks().set_index("rank", drop=False)
        first = self.ranks.iloc[0]
        self.workers, self.servers, self.ranges, self.config = (
            first[key] for key in ("workers", "servers", "ranges", "config")
        )
        self.held = [0] * comm.size  # numbers that each rank serves
        for server, size, *segments in self.ranges:
            assert size == sum(stop - start for _, start, stop, _ in segments)
            if self.servers:
                self.held[server] += size

    def of(self, kind, rank=None):
        chosen = self.events[self.events["kind"] == kind]
        return chosen if rank is None else chosen[chosen["rank"] == rank]

    def about(self):
        """What `ringtmp.analysis` wants."""
        return self.events, self.ranks

    def sent(self, what="bytes", control=False):
        """From each rank to each other: bytes of gradients and weights, or messages of control, all of one size."""
        sends, matrix = self.of("send"), np.zeros((N, N), np.int64)
        sends = sends[(sends["stage"] < 0) == control]
        assert not control or (sends["bytes"] == ControlChannel.BYTES).all()
        np.add.at(matrix, (sends["rank"].to_numpy(), sends["peer"].to_numpy()), 1 if control else sends["bytes"])
        return matrix

    def modelled(self, exchanges, push=lambda size: ITEM * size, pull=lambda size: ITEM * size):
        """The cost model: for each exchange a worker pushes what a server holds, and pulls as much."""
        matrix = np.zeros((N, N), np.int64)
        for (server, size, *_), worker in product(self.ranges, self.workers):
            if worker != server:
                matrix[worker, server] += exchanges * push(size)
                matrix[server, worker] += exchanges * pull(size)
        return matrix


@pytest.fixture
def together(comm):
    """Ranks that have nothing to check sleep until the others have done so."""
    yield
    sleeping_barrier(comm)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """BSP with micro-batches, evaluations and checkpoints between steps; several tests look at this one run."""
    comm = MPI.COMM_WORLD.Dup()
    path = comm.bcast(tmp_path_factory.mktemp("base") if comm.rank == 0 else None)
    yield Traced(comm, path, **SMALL, **SERVING, worker_micro_batches=2, checkpoint_every=4)
    sleeping_barrier(comm)
    comm.Free()

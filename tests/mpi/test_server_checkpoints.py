"""Checkpoints of parameter servers on any number of ranks: complete, with the right weights, and resumed anywhere.

Rank 0 reads checkpoints for all.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import ALLREDUCE, SEVERAL, SMALL, N, alone, assert_close, by_ids, chessboard

import ringtmp
from ringtmp import ps
from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.storage.run_folder import RunFolder

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("together")]


def assert_set(folder, step):
    """A whole set with the weights of so many steps. Not collective."""
    marker = checkpoint.read_marker(folder, step)
    checkpoint.verify(folder, marker)
    one = alone(**SMALL | {"steps": step})
    found = {record.name: record for record in checkpoint.read_layers(folder, marker, one.layers)}
    assert_close({name: record.parameters for name, record in found.items()}, one.layers)
    for record in found.values():
        assert sorted(record.slots) == ["m", "v"]
        for arrays in record.slots.values():
            assert {key: a.shape for key, a in arrays.items()} == {key: a.shape for key, a in record.parameters.items()}
            assert all(np.abs(a).max() > 0 for a in arrays.values())


def test_sets_of_bsp(comm, base, shared_path):
    """The last two of those that were due; each is what a run of so many steps ends with, and goes on to its end."""
    if comm.rank == 0:
        folder = base.run.path / "checkpoints"
        assert checkpoint.steps(folder) == [16, 20]
        assert_set(folder, 16)
        assert_set(folder, 20)
        assert base.run.status["state"] == "finished"
        assert base.run.status["sha256"] == base.result.sha256
        shutil.copytree(base.run.path, shared_path / "run")
        checkpoint.discard(shared_path / "run" / "checkpoints", 20)
    sleeping_barrier(comm)
    more = ps.train(comm=comm, resume=str(shared_path / "run"), progress=False)
    assert (more.step, more.sha256) == (20, base.result.sha256)
    if comm.rank == 0:
        assert [row["step"] for row in more.rows if row["kind"] == "train"] == [17, 18, 19, 20]


def test_resume_in_every_layout(comm, shared_path):
    """From ring to server, two servers, every rank, all-reduce and back: twenty steps, with whole sets on the way."""
    legs = [
        (ringtmp.train, 3, {}),
        (ps.train, 7, {"servers": 1}),
        (ps.train, 11, {"servers": 2}),
        (ps.train, 15, {"servers": 1, "colocate": True}),
        (ps.train, 18, {"colocate": False} | ALLREDUCE),
        (ringtmp.train, 20, {}),
    ]
    if N <= 3:  # nobody would be left to work
        legs = [leg for leg in legs if leg[2].get("servers", 0) < N or "colocate" in leg[2]]
    else:
        del legs[1], legs[3 if N == 5 else 2]
    ringtmp.train(comm=comm, **SMALL | {"steps": 3}, out=str(shared_path), name="run")
    folder = shared_path / "run"
    for trainer, steps, layout in legs[1:]:
        sleeping_barrier(comm)
        result = trainer(comm=comm, resume=str(folder), steps=steps, checkpoint_every=2, progress=False, **layout)
        assert (result.step, result.saved) == (steps, True)
        sleeping_barrier(comm)
        last = steps - 1 if steps % 2 else steps - 2
        assert checkpoint.steps(folder / "checkpoints") == [last, steps]
        if comm.rank == 0:
            assert_set(folder / "checkpoints", last)
    weights = result.weights()
    if comm.rank == 0:
        assert_close(weights, alone(**SMALL).layers)
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"


GOES_ON = [
    ({"consistency": "ssp", "staleness": 2}, {"consistency": "bsp"}),
    ({"consistency": "asp"}, {"consistency": "ssp", "staleness": 1}),
]


@pytest.mark.parametrize(("first", "then"), [pair for (pair,) in chessboard(GOES_ON)], ids=by_ids)
def test_sets_without_barriers(comm, shared_path, first, then):
    """Every worker's gradients up to the step are in a set, of however many more steps; a run goes on from it."""
    settings = SMALL | {"steps": 10, "checkpoint_every": 4, "delay": 0.0005}
    ps.train(comm=comm, **settings, **SEVERAL, **first, out=str(shared_path), name="run")
    folder = shared_path / "run"
    if comm.rank == 0:
        assert checkpoint.steps(folder / "checkpoints") == [8, 10]
        for step in (8, 10):
            checkpoint.verify(folder / "checkpoints", checkpoint.read_marker(folder / "checkpoints", step))
    sleeping_barrier(comm)
    more = ps.train(comm=comm, resume=str(folder), steps=12, progress=False, **SEVERAL, **then)
    assert more.step == 12
    if comm.rank == 0:
        config = RunFolder(folder).config()
        assert {key: config[key] for key in ("consistency", "staleness") if key in config} == then

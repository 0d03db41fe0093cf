"""A layer, an optimizer and a loss from outside the package: the same weights on any number of ranks, after a resume,
and from the parameter server."""

import huber  # noqa: F401 - declares a loss
import lion  # noqa: F401 - declares an optimizer
import numpy as np
import pytest
import swiglu_layer  # noqa: F401 - declares a layer
from mpi4py import MPI

import ringtmp
from ringtmp import ps

pytestmark = pytest.mark.mpi

SETTINGS = {
    "model": [*({"type": "swiglu", "units": units} for units in (7, 9, 5, 6, 4, 8, 5)), {"type": "dense", "units": 1}],
    "data": "diabetes",
    "optimizer": "lion",
    "loss": "huber",
    "lr": 0.01,
    "lr_schedule": "constant",
    "batch_size": 16,
    "steps": 12,
    "weight_decay": 0.1,
    "progress": False,
}


def test_the_same_weights(comm):
    want = ringtmp.train(comm=MPI.COMM_SELF, **SETTINGS, micro_batches=1).sha256
    for more in ({"micro_batches": 5}, {"schedule": "1f1b"}, {"recompute": True}, {"threads": 2}, {"state_copies": 1}):
        assert ringtmp.train(comm=comm, **SETTINGS, **more).sha256 == want


def test_resume(comm, shared_path):
    whole = ringtmp.train(comm=comm, **SETTINGS)
    ringtmp.train(comm=comm, **SETTINGS | {"steps": 5}, out=str(shared_path), name="run")
    assert ringtmp.train(comm=comm, resume=str(shared_path / "run"), steps=12, progress=False).sha256 == whole.sha256


APART = [{}] if MPI.COMM_WORLD.size > 1 else []  # a server and a worker, each a rank of its own


@pytest.mark.parametrize("more", [*APART, {"colocate": True}, {"consistency": "allreduce"}], ids=str)
def test_server(comm, more):
    """One worker's sums are those of the ring; more workers sum over shares, in another order."""
    result = ps.train(comm=comm, **SETTINGS | {"dtype": "float64"}, **more)
    ring = ringtmp.train(comm=comm, **SETTINGS | {"dtype": "float64"})
    losses = [[row["loss"] for row in each.rows if row["kind"] == "train"] for each in (result, ring)]
    np.testing.assert_allclose(*losses, rtol=1e-9)

"""The asynchronous ring, computed anew by hand from the versions that its trace names."""

import eager_order  # noqa: F401 - declares a schedule
import naive
import numpy as np
import pytest
from conftest import chessboard
from mpi4py import MPI

import ringtmp
from ringtmp.analysis import open_run
from ringtmp.comm.mpi import from_rank_0
from ringtmp.data.dataset import epoch_order
from ringtmp.errors import UserError
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage

pytestmark = pytest.mark.mpi

WIDTHS, BATCH, M, STEPS, LR = [6, 7, 5, 8, 6, 9, 5, 7, 3], 12, 4, 6, 0.3
SETTINGS = {
    "model": "mlp:" + "-".join(map(str, WIDTHS)) + ",activation=tanh",
    "batch_size": BATCH,
    "micro_batches": M,
    "steps": STEPS,
    "eval_every": 0,
    "optimizer": "sgd",
    "lr": LR,
    "lr_schedule": "constant",
    "normalise": "none",
    "dtype": "float64",
    "progress": False,
    "seed": 3,
}


def arrays():
    rng = np.random.default_rng(5)
    return rng.standard_normal((60, 6)), rng.integers(0, 3, 60), rng.standard_normal((9, 6)), rng.integers(0, 3, 9)


@pytest.fixture
def data_file(comm, shared_path):
    """Path of a file with `arrays()`, for runs that are resumed."""
    path = str(shared_path / "data.npz")
    if comm.rank == 0:
        np.savez(path, **dict(zip(("x", "y", "x_test", "y_test"), arrays(), strict=True)))
    comm.Barrier()
    return path


def by_hand(versions):
    """Weights after all steps where F and I of layer `l`, micro-batch (step, j) took versions[l, step, j]."""
    x, y, *_ = arrays()
    model = build_model(SETTINGS["model"], "auto", 6, "classes", 3)
    stage = Stage(model, 0, 8, np.float64, Optimizer("sgd"), 1, 1)
    stage.initialise(3)
    first = [state.layer.unpack(state.flat) for state in stage.states]
    history = [[(p["weight"].copy(), p["bias"].copy()) for p in first]]
    kinds = ["tanh"] * 7 + ["linear"]
    for step in range(STEPS):
        order = epoch_order(3, step // 5, 60)[step % 5 * BATCH : (step % 5 + 1) * BATCH]
        sums = [(np.zeros_like(w), np.zeros_like(b)) for w, b in history[0]]
        for j in range(M):
            rows, kept = order[3 * j : 3 * j + 3], []
            h = x[rows]
            for layer, kind in enumerate(kinds):
                w, b = history[versions[layer, step, j]][layer]
                before = h
                h, z = naive.dense_forward(h, w, b, kind)
                kept.append((before, w, z, kind))
            _, _, dy = naive.softmax_cross_entropy(h, y[rows], 1 / BATCH)
            for layer in reversed(range(8)):
                before, w, z, kind = kept[layer]
                dy, dw, db, _ = naive.dense_backward(before, w, z, dy, kind)
                sums[layer][0][...] += dw
                sums[layer][1][...] += db
        history.append([(w - LR * dw, b - LR * db) for (w, b), (dw, db) in zip(history[-1], sums, strict=True)])
    return history[-1]


def versions_of(run):
    """By layer, step and micro-batch: the version that F took, and the check that I took the same."""
    events = run.events()
    holds = {rank: row["layers"] for rank, row in run.ranks().set_index("rank").iterrows()}
    found = {}
    for kind in "FI":
        for event in events[events["kind"] == kind].itertuples():
            for first, last in holds[event.rank]:
                for layer in range(first, last):
                    key = layer, event.step, event.micro_batch
                    assert found.setdefault(key, event.version) == event.version
    return found


@pytest.mark.parametrize("schedule", ["pipedream", "2bw"])
def test_by_hand(comm, shared_path, schedule):
    result = ringtmp.train(comm=comm, data=arrays(), **SETTINGS, schedule=schedule, out=str(shared_path), name="run")
    comm.Barrier()
    versions = from_rank_0(comm, lambda: versions_of(open_run(shared_path / "run")))
    assert len(versions) == 8 * STEPS * M
    want = from_rank_0(comm, lambda: by_hand(versions))
    for name, arrays_here in result.layers.items():
        weight, bias = want[int(name[:3])]
        np.testing.assert_allclose(arrays_here["weight"], weight, atol=1e-10)
        np.testing.assert_allclose(arrays_here["bias"], bias, atol=1e-10)
    late = {key: key[1] - version for key, version in versions.items()}
    if schedule == "2bw":
        assert all(lag == min(1, step) for (_, step, _), lag in late.items())
    else:  # rank r keeps p - r micro-batches between F and I
        assert max(late.values()) <= -(-(comm.size - 1) // M)
        assert (max(late.values()) > 0) == (comm.size > 1)
        assert all(lag == 0 for (layer, _, _), lag in late.items() if layer == 7)  # the last rank is never late


def test_two_buffered_weights_do_not_depend_on_the_ring(comm):
    """2BW's delay is one update everywhere: bit-equal on any number of ranks, for any number of micro-batches."""
    settings = SETTINGS | {"schedule": "2bw", "eval_every": 3}
    one = ringtmp.train(comm=MPI.COMM_SELF, data=arrays(), **settings | {"micro_batches": 1})
    sync = ringtmp.train(comm=MPI.COMM_SELF, data=arrays(), **settings | {"schedule": "1f1b"})
    for m, extra in chessboard((1, 3, 8), ({}, {"delay": 0.0005, "sends": "synchronous"}, {"in_flight": 2})):
        got = ringtmp.train(comm=comm, data=arrays(), **settings | {"micro_batches": m} | extra)
        assert got.sha256 == one.sha256 != sync.sha256


def test_pipedream_repeats(comm):
    """Its order is fixed, so which weights a forward sees depends on no timing. On one rank nothing is late."""
    settings = SETTINGS | {"schedule": "pipedream", "eval_every": 3}
    once = ringtmp.train(comm=comm, data=arrays(), **settings)
    again = ringtmp.train(comm=comm, data=arrays(), **settings, delay=0.0005, sends="synchronous")
    assert once.sha256 == again.sha256
    sync = ringtmp.train(comm=comm, data=arrays(), **settings | {"schedule": "1f1b"})
    assert (once.sha256 == sync.sha256) == (comm.size == 1)


@pytest.mark.parametrize(("schedule", "m"), chessboard(("pipedream", "2bw"), (1, 3)))
def test_few_micro_batches(comm, schedule, m):
    """Fewer than ranks: many steps are under way at once."""
    result = ringtmp.train(
        comm=comm, data=arrays(), **SETTINGS | {"schedule": schedule, "micro_batches": m, "steps": 12}
    )
    assert result.step == 12


def test_resume(comm, shared_path, data_file):
    """2BW goes on where it was: a checkpoint holds the weights before the last update as well."""
    settings = SETTINGS | {"schedule": "2bw", "data": data_file, "out": str(shared_path)}
    whole = ringtmp.train(comm=comm, **settings, name="whole")
    ringtmp.train(comm=comm, **settings | {"steps": 5}, name="half")
    more = ringtmp.train(comm=comm, resume=str(shared_path / "half"), steps=STEPS, progress=False)
    assert (more.step, more.sha256) == (STEPS, whole.sha256)
    sync = ringtmp.train(
        comm=comm,
        resume=str(shared_path / "whole"),
        out=str(shared_path),
        name="sync",
        mode="ready",
        schedule="1f1b",
        steps=STEPS + 3,
        progress=False,
    )
    assert sync.step == STEPS + 3


def test_a_schedule_from_outside(comm, shared_path, data_file):
    """`eager_order` is one file. Its weights are 2BW's, on any number of ranks, after a resume, within its memory."""
    settings = SETTINGS | {"data": data_file, "eval_every": 4, "steps": 9}
    want = ringtmp.train(comm=MPI.COMM_SELF, **settings | {"schedule": "2bw", "micro_batches": 1}).sha256
    settings |= {"schedule": "eager"}
    for m, extra in chessboard((1, 3, 8), ({}, {"delay": 0.0005, "sends": "synchronous"}, {"recompute": True})):
        assert ringtmp.train(comm=comm, **settings | {"micro_batches": m} | extra).sha256 == want
    ringtmp.train(comm=comm, **settings | {"steps": 4}, out=str(shared_path), name="run")
    more = ringtmp.train(comm=comm, resume=str(shared_path / "run"), steps=9, progress=False)
    assert more.sha256 == want
    told = from_rank_0(comm, lambda: set(open_run(shared_path / "run").ranks()["schedule"]))
    assert told == {"eager"}
    with pytest.raises(UserError, match="schedule eager has an order of its own"):
        ringtmp.train(comm=comm, **settings, mode="ready")
    for key, value in {"state_copies": 1, "balance": "auto", "chunks": 2}.items():
        with pytest.raises(UserError, match=f"{key}: .*schedule eager"):
            ringtmp.train(comm=comm, **settings, **{key: value})

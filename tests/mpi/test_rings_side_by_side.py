"""Rings side by side: the weights of one rank to rounding, the same bits each time, and who talks to whom."""

import numpy as np
import pytest
from conftest import chessboard
from launching import ROOT
from reference import alone

import ringtmp
from ringtmp.comm.ring_allreduce import RingAllreduce

WAYS = [
    {},
    {"schedule": "1f1b"},
    {"schedule": "zb-h2", "clip_norm": 0.1},
    {"chunks": 2, "optimizer": "momentum"},
    {"recompute": True, "threads": 2},
    {"micro_batches": 1},
]
GPT = {"model": "gpt:layers=6,width=8,heads=2,context=6,dropout=0.3", "data": "text:README.md"}


def settings_of(comm, **more):
    return {
        "model": f"mlp:64-20x{2 * comm.size}-10",
        "steps": 8,
        "batch_size": 27,
        "micro_batches": 2,
        "eval_every": 3,
        "dtype": "float64",
        "progress": False,
    } | more


def rings_of(comm):
    """How many rings so many ranks can be dealt over."""
    return [rings for rings in range(2, comm.size + 1) if comm.size % rings == 0]


def everyone(result):
    return np.concatenate([array.reshape(-1) for arrays in result.layers.values() for array in arrays.values()])


def check(comm, result, one, rings, rel=1e-10):
    """Weights of each ring against those of one rank, and the losses that the first one tells."""
    for name, arrays in result.layers.items():
        for key, array in arrays.items():
            np.testing.assert_allclose(array, one.layers[name][key], rtol=rel, atol=rel)
    assert len(set(comm.allgather(result.sha256))) == 1
    if comm.rank == 0:
        mine, theirs = ([(row["kind"], row["step"], row["loss"]) for row in each.rows] for each in (result, one))
        assert sorted(mine)[0][:2] == sorted(theirs)[0][:2]
        for ours, other in zip(sorted(mine), sorted(theirs), strict=True):
            assert ours[:2] == other[:2]
            assert ours[2] == pytest.approx(other[2], rel=1e-9)
    elif comm.rank >= comm.size // rings:
        assert result.rows == []


@pytest.mark.mpi
@pytest.mark.parametrize("way", chessboard(range(len(WAYS))))
def test_the_weights_of_one_rank(comm, way):
    for rings in rings_of(comm):
        settings = settings_of(comm, **WAYS[way[0]])
        plain = {key: value for key, value in settings.items() if key not in ("schedule", "chunks")}
        result = ringtmp.train(comm=comm, **settings, rings=rings)
        check(comm, result, alone(**plain), rings)


@pytest.mark.mpi
def test_the_same_bits_each_time(comm):
    """Whatever the timing; in single precision, where another order of a sum would show."""
    for rings in rings_of(comm):
        settings = settings_of(comm, dtype="float32", steps=20)
        first = ringtmp.train(comm=comm, **settings, rings=rings)
        again = ringtmp.train(comm=comm, **settings, rings=rings, delay=0.001, mode="ready")
        assert first.sha256 == again.sha256


@pytest.mark.mpi
def test_random_choices_are_those_of_the_whole_batch(comm, monkeypatch):
    """Dropout goes by the number of a sample in the batch, wherever it is trained."""

    text = ROOT / "README.md"
    settings = settings_of(
        comm, model=GPT["model"], data=f"text:{text}", steps=3, batch_size=2 * comm.size + 1, eval_every=0
    )
    for rings in rings_of(comm):
        if comm.size // rings > 8:
            continue
        result = ringtmp.train(comm=comm, **settings, rings=rings)
        check(comm, result, alone(**settings), rings, rel=1e-8)


@pytest.mark.mpi
def test_a_run_folder_and_a_resume(comm, shared_path):
    """The first ring writes; the run is gone on with on as many rings, and on one."""
    for rings in rings_of(comm)[:1]:
        settings = settings_of(comm, lr_schedule="constant")
        result = ringtmp.train(comm=comm, **settings, rings=rings, out=str(shared_path), checkpoint_every=3)
        folder = comm.bcast(result.folder)
        assert result.saved and result.exit_status == 0  # on the rings that do not write, too
        ringtmp.train(comm=comm, resume=folder, name="b", out=str(shared_path), steps=12, progress=False)
        one = ringtmp.train(comm=comm, resume=folder, steps=12, progress=False)
        whole = alone(**settings | {"steps": 12})
        check(comm, one, one, rings)
        for name, arrays in one.layers.items():
            for key, array in arrays.items():
                np.testing.assert_allclose(array, whole.layers[name][key], rtol=1e-10, atol=1e-10)


@pytest.mark.mpi
def test_a_stop_comes_to_all_rings(comm, monkeypatch):
    """A signal to a rank of the last ring: all end after the same step."""
    from ringtmp.ring.trainer import RingTrainer

    for rings in rings_of(comm):
        whole = RingTrainer.__init__

        def note(self, session, whole=whole):
            whole(self, session)
            if comm.rank == comm.size - 1:
                session.stop_request = lambda: 15 if self.step >= 5 else 0

        monkeypatch.setattr(RingTrainer, "__init__", note)
        result = ringtmp.train(comm=comm, **settings_of(comm, steps=4000, eval_every=50), rings=rings)
        monkeypatch.undo()
        assert result.state == "stopped"
        assert 5 <= result.step < 4000
        assert len(set(comm.allgather((result.step, result.sha256)))) == 1


@pytest.mark.mpi
def test_ring_sum(comm):
    """Any length, also shorter than the ring; again and again; every rank has the same bits."""
    rng = np.random.default_rng(comm.rank)
    for size in (1, 2, comm.size - 1 or 1, comm.size, 37):
        array = np.empty(size, np.float32)
        one = RingAllreduce(comm, array, 5)
        for _ in range(3):
            mine = rng.standard_normal(size).astype(np.float32)
            array[...] = mine
            one.start()
            while one.hop < one.hops:
                one.awaited.Wait()
                one.came()
            while not one.left():
                pass
            np.testing.assert_allclose(array, comm.allreduce(mine.astype(np.float64)), rtol=1e-5, atol=1e-5)
            assert len({each.tobytes() for each in comm.allgather(array)}) == 1
        comm.Barrier()
        one.close()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rings": 7}, "rings: 7 rings side by side do not"),
        ({"state_copies": 1}, "state_copies: with several"),
        ({"balance": "auto"}, "balance: with several"),
        ({"schedule": "2bw"}, "schedule: with several"),
        ({"batch_size": 3, "micro_batches": 3}, "micro_batches: 3 exceeds"),
    ],
)
def test_refused(comm, more, words):
    if comm.size == 1 and "exceeds" in words:
        return
    settings = settings_of(comm, rings=comm.size if comm.size > 1 else 2) | more
    with pytest.raises(ringtmp.UserError, match=words):
        ringtmp.train(comm=comm, **settings)

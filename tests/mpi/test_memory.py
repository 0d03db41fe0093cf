"""A ring under a cap: what is made again, what is held, what is refused; and that no bit depends on it."""

import os

import pytest
from conftest import chessboard
from mpi4py import MPI

import ringtmp
from ringtmp.ring import memory_model as footprint
from ringtmp.ring.trainer import RingTrainer
from ringtmp.run.memory_limits import Limit


@pytest.fixture
def bare(monkeypatch):
    """A program that takes nothing itself, and a node that sets no limit but the one asked for."""
    monkeypatch.setattr(footprint, "used", lambda: 0)
    monkeypatch.setattr(footprint, "KERNELS", 0)
    monkeypatch.setattr(footprint, "BUFFERS", 0)
    monkeypatch.setattr(footprint, "tightest", lambda given, ranks: Limit(int(given or 1 << 50), "the test"))


@pytest.fixture
def layouts(monkeypatch):
    """The layouts that are made."""
    made, build = [], RingTrainer.build

    def note(self):
        build(self)
        made.append(self.layout)

    monkeypatch.setattr(RingTrainer, "build", note)
    return made


def settings_of(comm, **more):
    return {
        "model": f"mlp:64-96x{3 * comm.size}-10",
        "batch_size": 96,
        "micro_batches": 6,
        "steps": 3,
        "checkpoint_every": 0,
        "eval_every": 0,
        "progress": False,
    } | more


@pytest.mark.mpi
@pytest.mark.parametrize(("way", "share"), chessboard([{}, {"schedule": "1f1b"}, {"chunks": 2}], [0.05, 0.5, 0.95]))
def test_as_much_is_made_again_as_the_cap_calls_for(comm, bare, layouts, way, share):
    """A cap between what the ring takes with all work made again, and with none."""
    settings = settings_of(comm, **way)
    plain = ringtmp.train(comm=comm, **settings)
    whole = comm.bcast(plain.ranks and [rank["expected"] for rank in plain.ranks])
    again = ringtmp.train(comm=comm, **settings, recompute=True)
    least = comm.bcast(again.ranks and [rank["expected"] for rank in again.ranks])
    cap = int(max(least) + share * (max(whole) - max(least)))
    capped = ringtmp.train(comm=comm, **settings, recompute="auto", memory_limit=str(cap))
    taken = comm.bcast(capped.ranks and [rank["expected"] for rank in capped.ranks])
    assert max(taken) <= cap
    assert plain.sha256 == again.sha256 == capped.sha256
    flagged = comm.allreduce(sum(sum(flags) for flags in layouts[-1].recompute))
    total = 3 * comm.size + 1
    # In ready mode fewer micro-batches are held as long as that is enough for all ranks to be busy.
    assert 0 < flagged < total or share > 0.05 + 0.9 * ("schedule" in way)


@pytest.mark.mpi
def test_fewer_micro_batches_are_held(comm, bare, layouts):
    settings = settings_of(comm)
    plain = ringtmp.train(comm=comm, **settings)
    layout = layouts[-1]
    flags = tuple((False,) * (last - first) for first, last in layout.layers(comm.rank))
    room = comm.allreduce(layout.needs.rank(layout.layers(comm.rank), (4,), flags).total, MPI.MAX)
    capped = ringtmp.train(comm=comm, **settings, memory_limit=str(room))
    assert capped.sha256 == plain.sha256
    assert set(comm.allgather(layouts[-1].most)) == {2}


@pytest.mark.mpi
def test_layers_go_where_there_is_room(comm, bare, layouts, monkeypatch):
    """The first rank has room for one."""
    settings = settings_of(comm)
    plain = ringtmp.train(comm=comm, **settings)
    needs = layouts[-1].needs
    cap = needs.stage(0, 1, 3, False).total if comm.size > 1 and comm.rank == 0 else 1 << 50
    monkeypatch.setattr(footprint, "tightest", lambda given, ranks: Limit(cap, "the test"))
    result = ringtmp.train(comm=comm, **settings)
    counts = [last - first for rank in comm.bcast(result.ranks) for first, last in rank["layers"]]
    assert sum(counts) == 3 * comm.size + 1
    if comm.size > 1:
        assert counts[0] == 1
    assert result.sha256 == plain.sha256


@pytest.mark.mpi
@pytest.mark.parametrize("more", [{}, {"schedule": "gpipe"}, {"layer_split": "measured"}])
def test_what_cannot_fit_is_refused(comm, bare, shared_path, more):
    with pytest.raises(ringtmp.UserError) as caught:
        ringtmp.train(comm=comm, **settings_of(comm), memory_limit="4000", out=str(shared_path / "runs"), **more)
    text = str(caught.value)
    assert len(set(comm.allgather(text))) == 1
    assert text.startswith("memory_limit: ")
    assert "alone takes" in text or "what would fit" in text
    assert not os.path.exists(shared_path / "runs")


@pytest.mark.mpi
def test_a_split_that_is_given_and_does_not_fit(comm, bare):
    if comm.size == 1:
        return
    settings = settings_of(comm)
    counts = [2 * comm.size + 2] + [1] * (comm.size - 1)
    counts[-1] += 3 * comm.size + 1 - sum(counts)
    plain = ringtmp.train(comm=comm, **settings)
    cap = max(comm.bcast(plain.ranks and [rank["expected"] for rank in plain.ranks]))
    with pytest.raises(ringtmp.UserError, match=r"memory_limit: rank 0 would take .* of .* \(the test\)"):
        ringtmp.train(comm=comm, **settings, memory_limit=str(cap), layer_split=",".join(map(str, counts)))

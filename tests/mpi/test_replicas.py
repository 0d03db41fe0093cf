"""Copies of stages on the ranks to the right: where they lie, that they are whole, and going on from them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import chessboard

import ringtmp
from ringtmp.resilience.node_memory import NodeMemory, StageReplica

pytestmark = pytest.mark.mpi

SETTINGS = {
    "model": "mlp:64-24x8-10",
    "batch_size": 16,
    "micro_batches": 4,
    "optimizer": "adamw",
    "steps": 6,
    "eval_every": 4,
    "progress": False,
    "checkpoint_every": 0,
    "lr_schedule": "constant",
}


@pytest.fixture
def nodes(comm, shared_path, monkeypatch):
    """Nodes of the ranks, as they are called; memory of the test's own, which is kept at the end of a run."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(shared_path / "memory"))
    monkeypatch.setattr(NodeMemory, "remove", lambda self: None)

    def name(*names: str) -> list[str]:
        named = [names[rank % len(names)] for rank in range(comm.size)]
        monkeypatch.setenv("RINGTMP_NODES", ",".join(named))
        return named

    return name


def copies(path: Path, step: int) -> dict[tuple[str, int, int], StageReplica]:
    """Copies of a step in all nodes' memory: by node, stage and holder."""
    found = {}
    for each in (path / "memory").glob("*/*/*.[ab]"):
        copy = StageReplica(each)
        if copy.step == step:
            _, stage, holder, _ = each.name.split(".")
            found[each.parent.name, int(stage), int(holder)] = copy
    return found


@pytest.mark.parametrize(
    ("names", "depth", "more"),
    chessboard(
        [("a", "b", "c", "d", "e", "f", "g", "h"), ("a",), ("a", "a", "b", "b")],
        [1, 2, 7],
        [{}, {"schedule": "1f1b"}, {"chunks": 1, "micro_batches": 1, "sends": "synchronous", "mode": "strict"}],
    ),
)
def test_copies_lie_on_the_ranks_to_the_right(comm, shared_path, nodes, names, depth, more):
    named = nodes(*names)
    plain = ringtmp.train(comm=comm, **SETTINGS | more)
    result = ringtmp.train(comm=comm, out=str(shared_path), name="run", state_copies=depth, **SETTINGS | more)
    assert result.sha256 == plain.sha256
    comm.Barrier()
    found = copies(shared_path, 6)
    reach = min(depth, comm.size - 1)
    expected = set()
    for owner in range(comm.size):
        holders = [(owner + hop) % comm.size for hop in range(reach + 1)]
        away = any(named[holder] != named[owner] for holder in holders)
        expected |= {(named[holder], owner, holder) for holder in (holders if away else holders[:1])}
    assert set(found) == expected
    for (_, stage, _), copy in found.items():
        assert copy.sound()
        own = found[named[stage], stage, stage]
        np.testing.assert_array_equal(copy.payload, own.payload)
    mine = found[named[comm.rank], comm.rank, comm.rank]
    for place, arrays in enumerate(result.layers.values()):  # the same numbers, in their own shapes
        numbers = np.concatenate([array.ravel() for array in arrays.values()])
        np.testing.assert_array_equal(np.sort(numbers), np.sort(mine.array(place)))
    previous = copies(shared_path, 5)  # the version before is whole as well, wherever it was sent
    assert set(previous) == expected and all(copy.sound() for copy in previous.values())


@pytest.mark.parametrize("chunks", [1, 2])
def test_going_on_from_memory_alone(comm, shared_path, nodes, chunks):
    """Without any checkpoint, on another split, with every owner's own copy gone: only replicas are left."""
    nodes("a", "b", "c", "d", "e", "f", "g", "h")
    if 2 * comm.size * chunks > 9:
        chunks = 1
    settings = SETTINGS | {"steps": 12, "eval_every": 5, "chunks": chunks}
    whole = ringtmp.train(comm=comm, **settings)
    ringtmp.train(comm=comm, out=str(shared_path), name="run", state_copies=1, **settings | {"steps": 7})
    comm.Barrier()
    run = shared_path / "run"
    if comm.rank == 0:
        shutil.rmtree(run / "checkpoints")
        if comm.size > 1:
            for (_, stage, holder), copy in copies(shared_path, 7).items():
                if stage % comm.size == holder:
                    copy.path.unlink()
    comm.Barrier()
    split = {"layer_split": ",".join(map(str, [10 - comm.size] + [1] * (comm.size - 1)))} if chunks == 1 else {}
    again = ringtmp.train(comm=comm, resume=str(run), state_copies=1, **{"steps": 12, "progress": False} | split)
    assert again.sha256 == whole.sha256
    assert again.step == 12
    if comm.rank == 0:
        assert again.rows[0]["step"] == 8
        rows = [line.split(",")[:2] for line in (run / "history.csv").read_text().splitlines()[1:]]
        tests = [["test", str(n)] for n in (5, 7, 10, 12)]
        assert sorted(rows) == sorted([["train", str(n + 1)] for n in range(12)] + tests)


def test_a_layer_that_is_lost_everywhere(comm, shared_path, nodes):
    """Then the checkpoint counts, and the notes say which layers were lost."""
    nodes("a", "b", "c", "d", "e", "f", "g", "h")
    settings = SETTINGS | {"steps": 9, "checkpoint_every": 4}
    whole = ringtmp.train(comm=comm, **settings)
    ringtmp.train(comm=comm, out=str(shared_path), name="run", state_copies=1, **settings | {"steps": 7})
    comm.Barrier()
    run = shared_path / "run"
    if comm.rank == 0:
        shutil.rmtree(run / "checkpoints" / "step-00000007")
        for copy in copies(shared_path, 7).values():
            if 0 in copy.layout.layers:
                copy.array(0)[0] += 1  # not as its checksum says
        for copy in copies(shared_path, 6).values():
            if 0 in copy.layout.layers:
                copy.path.unlink()
    comm.Barrier()
    again = ringtmp.train(comm=comm, resume=str(run), steps=9, progress=False, state_copies=1)
    assert again.sha256 == whole.sha256
    if comm.rank == 0:
        assert again.rows[0]["step"] == 5
    comm.Barrier()


def test_the_trace_shows_where_copies_go(comm, shared_path, nodes):
    """Only to the right neighbour, and every byte of them is there."""
    nodes("a", "b", "c", "d", "e", "f", "g", "h")
    ringtmp.train(comm=comm, out=str(shared_path), name="run", state_copies=2, **SETTINGS)
    comm.Barrier()
    if comm.rank == 0:
        from ringtmp.analysis import open_run

        events = open_run(shared_path / "run").events()
        sent = events[events["kind"] == "replicate"]
        assert len(sent) == 0 if comm.size == 1 else set((sent["rank"] + 1) % comm.size - sent["peer"]) == {0}
        payload = {stage: len(copy.payload) for (_, stage, _), copy in copies(shared_path, 6).items()}
        for rank in range(comm.size if comm.size > 1 else 0):
            hops = [rank] if comm.size == 2 else [rank, (rank - 1) % comm.size]
            expected = 7 * sum(payload[owner] for owner in hops)  # versions 0 to 6
            assert sent[sent["rank"] == rank]["bytes"].sum() == expected
    comm.Barrier()


def test_refused(comm):
    from ringtmp.errors import UserError

    for schedule in ("pipedream", "2bw"):
        with pytest.raises(UserError, match="state_copies"):
            ringtmp.train(comm=comm, state_copies=1, **SETTINGS | {"schedule": schedule})

"""What the nodes remember of servers: both versions of every range, on other nodes too; and going on from them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import chessboard
from mpi4py import MPI

import ringtmp
from ringtmp import ps
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.ps.serving.mirror import holder_of
from ringtmp.resilience.node_memory import NodeMemory, StageReplica

pytestmark = pytest.mark.mpi

N = MPI.COMM_WORLD.size
SETTINGS = {
    "model": "mlp:64-24x8-10",
    "batch_size": 16,
    "optimizer": "adamw",
    "steps": 6,
    "eval_every": 4,
    "message_size": "3000",
    "progress": False,
    "checkpoint_every": 0,
    "lr_schedule": "constant",
}
CNN = SETTINGS | {
    "model": "cnn:8x8-4c3-p2-16-10",
    "optimizer": "sgd",
    "message_size": "1MiB",
}  # a layer without parameters
SERVING = {"colocate": True} if N == 1 else {}  # a server and at least one worker
TWO = {"servers": 2} if N > 2 else {"colocate": True}
NODES = "abcdefgh"[:N]


@pytest.fixture
def memory(comm, shared_path, monkeypatch) -> Path:
    """Node memory of the test's own, which is kept at the end of a run; each rank is a node."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(shared_path / "memory"))
    monkeypatch.setenv("RINGTMP_NODES", ",".join(NODES))
    monkeypatch.setattr(NodeMemory, "remove", lambda self: None)
    yield shared_path / "memory"
    sleeping_barrier(comm)


def copies(memory: Path, step: int) -> dict[tuple[str, int, int], StageReplica]:
    """Copies of a step: by node, server and holder."""
    found = {}
    for each in memory.glob("*/*/*.[ab]"):
        copy = StageReplica(each)
        if copy.step == step:
            _, server, holder, _ = each.name.split(".")
            found[each.parent.name, int(server), int(holder)] = copy
    return found


def remembered(found: dict[tuple[str, int, int], StageReplica]) -> dict[int, np.ndarray]:
    """The flat parameters of each layer, from every part of it."""
    flats: dict[int, np.ndarray] = {}
    for copy in found.values():
        for place, (layer, start, stop, whole) in enumerate(copy.layout.parts):
            flats.setdefault(layer, np.full(whole, np.nan, copy.layout.dtype))[start:stop] = copy.array(place)
    return flats


@pytest.mark.parametrize(
    ("names", "settings", "layout"),
    chessboard([NODES, "a" * N, "aabb"], [SETTINGS, CNN], [SERVING, TWO, {"colocate": True}]),
)
def test_versions_of_every_range(comm, memory, shared_path, monkeypatch, names, settings, layout):
    """The last two steps are whole, on the server's node and on another one if there is any."""
    named = [names[rank % len(names)] for rank in range(N)]
    monkeypatch.setenv("RINGTMP_NODES", ",".join(named))
    plain = ps.train(comm=comm, **settings, **layout)
    result = ps.train(comm=comm, **settings, **layout, out=str(shared_path), name="run", state_copies=1)
    assert result.sha256 == plain.sha256
    weights = result.weights()
    if comm.rank:
        return
    servers = range(N if "colocate" in layout else layout.get("servers", 1))
    workers = range(N) if "colocate" in layout else range(len(servers), N)
    expected = set()
    for server in servers:
        holder = holder_of(server, servers, workers, named)
        expected.add((named[server], server, server))
        if holder >= 0:
            assert named[holder] != named[server]
            expected.add((named[holder], server, holder))
        else:
            assert len({*named}) == 1
    for step in (6, 5):
        found = copies(memory, step)
        assert set(found) == expected
        for (_, server, _), copy in found.items():
            assert copy.sound()
            np.testing.assert_array_equal(copy.payload, found[named[server], server, server].payload)
    flats = remembered(copies(memory, 6))
    assert sorted(flats) == list(range(len(weights)))
    for layer, (_, arrays) in enumerate(sorted(weights.items())):
        numbers = [np.zeros(0), *(array.ravel() for array in arrays.values())]
        np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.sort(flats[layer]))


@pytest.mark.parametrize(
    ("way", "layout"),
    chessboard([{"consistency": "ssp"}, {"consistency": "asp"}, {"local_steps": 3}], [SERVING, TWO]),
)
def test_without_barriers(comm, memory, shared_path, way, layout):
    """Every gradient up to the step is in a version, and all of it in the last one; with local steps every third."""
    settings = SETTINGS | {"steps": 12, "delay": 0.0005}
    result = ps.train(comm=comm, **settings, **layout, **way, out=str(shared_path), name="run", state_copies=1)
    weights = result.weights()
    if comm.rank:
        return
    before = copies(memory, 9 if "local_steps" in way else 11)
    assert before and all(copy.sound() for copy in before.values())
    flats = remembered(copies(memory, 12))
    for layer, (_, arrays) in enumerate(sorted(weights.items())):
        numbers = np.concatenate([array.ravel() for array in arrays.values()])
        np.testing.assert_array_equal(np.sort(numbers), np.sort(flats[layer]))


@pytest.mark.parametrize("layout", [SERVING, TWO][: 2 if N > 2 else 1])
def test_going_on_from_mirrors_alone(comm, memory, shared_path, layout):
    """Without any checkpoint, with ranges that are cut differently, and all that servers themselves held gone."""
    whole = ps.train(comm=comm, **SETTINGS | {"steps": 11}, **layout)
    ps.train(comm=comm, **SETTINGS | {"steps": 7}, **layout, out=str(shared_path), name="run", state_copies=1)
    sleeping_barrier(comm)
    if comm.rank == 0:
        shutil.rmtree(shared_path / "run" / "checkpoints")
        for (_, server, holder), copy in copies(memory, 7).items():
            if server == holder and N > 1:
                copy.path.unlink()
    sleeping_barrier(comm)
    again = ps.train(
        comm=comm, resume=str(shared_path / "run"), steps=11, progress=False, message_size="1000", state_copies=1
    )
    assert (again.step, again.sha256) == (11, whole.sha256)
    if comm.rank == 0:
        assert [row["step"] for row in again.rows if row["kind"] == "train"] == [8, 9, 10, 11]
        old, new = (generation * 1000 for generation in (0, 1))
        assert {int(path.name[:10]) for path in memory.glob("*/*/*.[ab]")} == {new} != {old}


def test_from_servers_to_the_ring_and_back(comm, memory, shared_path):
    """What the one remembers the other goes on from, an all-reduce too."""
    settings = SETTINGS | {"dtype": "float64", "micro_batches": 4}
    legs = [
        (ps.train, 3, TWO | {"state_copies": 1}),
        (ringtmp.train, 6, {"state_copies": 1}),
        (
            ps.train,
            9,
            SERVING | {"state_copies": 1} if N == 1 else {"servers": 1, "colocate": False, "state_copies": 1},
        ),
        (ps.train, 12, {"consistency": "allreduce", "state_copies": 0}),
    ]
    alone = ringtmp.train(comm=MPI.COMM_SELF, **settings | {"steps": 12})
    for leg, (trainer, steps, more) in enumerate(legs):
        where = {"resume": str(shared_path / "run")} if leg else {"out": str(shared_path), "name": "run"}
        values = {"progress": False} if leg else settings
        result = trainer(comm=comm, **values | {"steps": steps} | more | where)
        assert result.step == steps
        sleeping_barrier(comm)
        if comm.rank == 0:
            shutil.rmtree(shared_path / "run" / "checkpoints")
        sleeping_barrier(comm)
    weights = result.weights()
    if comm.rank == 0:
        for layer, arrays in alone.layers.items():
            for key, array in arrays.items():
                np.testing.assert_allclose(weights[layer][key], array, atol=1e-10, rtol=0)


def test_a_part_that_is_lost_everywhere(comm, memory, shared_path):
    """Then the checkpoint counts."""
    settings = SETTINGS | {"steps": 9, "checkpoint_every": 4}
    whole = ps.train(comm=comm, **settings, **TWO)
    ps.train(comm=comm, **settings | {"steps": 7}, **TWO, out=str(shared_path), name="run", state_copies=1)
    sleeping_barrier(comm)
    if comm.rank == 0:
        shutil.rmtree(shared_path / "run" / "checkpoints" / "step-00000007")
        for step in (6, 7):
            for (_, server, _), copy in copies(memory, step).items():
                if server == 0:
                    copy.array(0)[0] += 1  # not as its checksum says
    sleeping_barrier(comm)
    again = ps.train(comm=comm, resume=str(shared_path / "run"), steps=9, progress=False, state_copies=1)
    assert again.sha256 == whole.sha256
    if comm.rank == 0:
        assert again.rows[0]["step"] == 5


def test_refused(comm):
    for more, words in [
        ({"consistency": "allreduce"}, "state_copies: with consistency allreduce every rank holds everything"),
        ({"colocate": True, "state_copies": 2}, "state_copies: .* expected off or 1, got 2"),
        ({"colocate": True, "backup": 1}, "state_copies: with backup workers" if N > 1 else "state_copies|backup"),
    ]:
        with pytest.raises(ringtmp.UserError, match=words):
            ps.train(comm=comm, **SETTINGS | {"state_copies": 1} | more)

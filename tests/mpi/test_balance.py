"""Layers that change hands while training: who has what afterwards, and that no bit of the weights depends on it."""

import random

import h5py
import numpy as np
import pytest
from conftest import chessboard
from reference import alone

import ringtmp
from ringtmp.resilience.node_memory import NodeMemory
from ringtmp.ring import load_balance as balance
from ringtmp.ring.load_balance import RebalanceOrder, RebalancePolicy, hand_over, meet_round, owners
from ringtmp.ring.rebalance import Rebalancer

WAYS = [
    {},
    {"chunks": 2},
    {"schedule": "1f1b"},
    {"schedule": "zb-h2", "optimizer": "momentum"},
    {"clip_norm": 0.1},
    {"recompute": True, "threads": 2},
    {"micro_batches": 1, "dtype": "float64"},
    {"state_copies": 1},
    {"activation_memory": "1MiB", "optimizer": "sgd"},
    {"schedule": "interleaved-zb", "eval_every": 3},
]


def cuts(rng, layers, stages):
    return tuple(sorted(rng.sample(range(1, layers), stages - 1))) + (layers,)


@pytest.mark.mpi
@pytest.mark.parametrize("chunks", [1, 2])
def test_hand_over(comm, chunks):
    """Any cut to any other: each layer arrives once, unchanged, and nobody keeps what he has given away."""
    if comm.size == 1:
        meet_round(comm)
        return
    rng = random.Random(5)
    stages = chunks * comm.size
    layers = stages + 6
    before = cuts(rng, layers, stages)
    held = {
        n: [np.full(n + 1, n, float), np.full(2, -n)]
        for n, s in enumerate(owners(before))
        if s % comm.size == comm.rank
    }
    for _ in range(6):
        after = cuts(rng, layers, stages)
        hand_over(comm, before, after, held, lambda layer: [np.empty(layer + 1), np.empty(2, int)])
        assert sorted(held) == [n for n, s in enumerate(owners(after)) if s % comm.size == comm.rank]
        for n, (first, second) in held.items():
            assert (first == n).all() and (second == -n).all()
        meet_round(comm)
        before = after


@pytest.fixture
def ordered(monkeypatch, comm):
    """Have the ring stop after some steps for random cuts, and now and then go back."""
    rng = random.Random(11)
    monkeypatch.setattr(
        RebalancePolicy,
        "stepped",
        lambda self, step, mean, busiest: RebalanceOrder(2e6, 1e6, 0.1, step % 9 == 6) if step % 3 == 0 else None,
    )
    made = []

    def new_split(self, order):
        layout = self.trainer.layout
        meet_round(self.comm)
        if order.undo and self.earlier:
            return self.earlier.pop(), 0.0
        self.earlier.append(layout.ends)
        made.append(cuts(rng, len(layout.job.model.layers), len(layout.ends)))
        return made[-1], 0.0

    monkeypatch.setattr(Rebalancer, "_new_split", new_split)
    return made


@pytest.mark.mpi
@pytest.mark.parametrize("way", chessboard(range(len(WAYS))))
def test_same_bits(comm, shared_path, ordered, way):
    layers = 2 * comm.size + 3
    settings = {
        "model": f"mlp:64-20x{layers}-10",
        "steps": 20,
        "batch_size": 12,
        "micro_batches": 3,
        "eval_every": 7,
        "progress": False,
        "lr_schedule": "constant",
    } | WAYS[way[0]]
    more = {"out": str(shared_path), "checkpoint_every": 5} if comm.size < 8 or "state_copies" in settings else {}
    plain = {key: value for key, value in settings.items() if key not in ("schedule", "chunks")}
    result = ringtmp.train(comm=comm, **settings, **more, balance="auto")
    one = alone(**plain)
    assert result.sha256 == one.sha256
    if comm.size > 1:
        assert len(ordered) >= 3
    if comm.rank == 0:
        scores = [[row["loss"] for row in each.rows if row["kind"] == "test"] for each in (result, one)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-12)
    if more:
        if comm.rank == 0 and comm.size > 1:
            with h5py.File(next(shared_path.glob("*/traces/000/*.h5"))) as file:
                assert list(file.attrs["kinds"]).index("balance") in file["events/kind"][:]
        again = ringtmp.train(comm=comm, resume=result.folder, steps=23, progress=False)
        assert again.sha256 == alone(**plain | {"steps": 23}).sha256


@pytest.mark.mpi
@pytest.mark.parametrize("moves", [True, False])
def test_copies_follow_the_layers(comm, shared_path, ordered, monkeypatch, moves):
    """Replicas on nodes of their own, and the run gone on with from the memory of all but one node.

    Also where the ring has stopped and no layer has moved.
    """
    if not moves:
        monkeypatch.setattr(Rebalancer, "_new_split", lambda self, order: (self.trainer.layout.ends, 0.0))
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(shared_path / "memory"))
    monkeypatch.setenv("RINGTMP_NODES", ",".join(f"node{rank}" for rank in range(comm.size)))
    monkeypatch.setattr("ringtmp.run.finish.forget_run", lambda session: None)
    settings = {
        "model": f"mlp:64-20x{comm.size + 4}-10",
        "batch_size": 12,
        "micro_batches": 3,
        "progress": False,
        "lr_schedule": "constant",
        "eval_every": 0,
    }
    result = ringtmp.train(
        comm=comm,
        **settings,
        steps=8,
        state_copies=1,
        balance="auto",
        out=str(shared_path / "runs"),
        checkpoint_every=0,
    )
    monkeypatch.undo()
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(shared_path / "memory"))
    monkeypatch.setenv("RINGTMP_NODES", ",".join(f"node{rank}" for rank in range(comm.size)))
    if comm.rank == 0:
        import pathlib
        import shutil

        folder = pathlib.Path(result.folder)
        if comm.size > 1:
            run = next((shared_path / "memory").iterdir())
            shutil.rmtree(NodeMemory(run.name, f"node{comm.size - 1}").folder)
        for path in (folder / "checkpoints").iterdir():
            shutil.rmtree(path)
    comm.Barrier()
    again = ringtmp.train(comm=comm, resume=result.folder, steps=10, progress=False)
    one = alone(**settings, steps=10)
    assert again.step == 10
    assert again.sha256 == one.sha256


class Told(balance.LoadMeter):
    """A meter that shows what the pace says, whatever else the machine does."""

    def __init__(self, rebalancer):
        super().__init__()
        self.rebalancer = rebalancer

    @property
    def busy(self):
        layout, rank = self.rebalancer.trainer.layout, self.rebalancer.comm.rank
        return 1e9 * sum(sum(self.rebalancer.times[slice(*run)]) for run in layout.layers(rank))


@pytest.mark.mpi
def test_a_slow_node_gets_less(comm, monkeypatch):
    """Emulated nodes, the last four times as slow: it keeps what the best cut gives it, and no bit differs."""
    monkeypatch.setattr(balance, "LEAST", 0.0)
    whole = Rebalancer.__init__

    def told(self, *arguments):
        whole(self, *arguments)
        self.meter = Told(self)

    monkeypatch.setattr(Rebalancer, "__init__", told)
    count = 4 * comm.size
    speeds = ",".join(["0.02"] * (comm.size - 1) + ["0.005"])
    settings = {
        "model": f"mlp:64-16x{count}-10",
        "steps": 24,
        "batch_size": 8,
        "micro_batches": 2,
        "progress": False,
        "eval_every": 0,
    }
    result = ringtmp.train(comm=comm, **settings, node_speed=speeds, balance="auto")
    held = [sum(last - first for first, last in rank["layers"]) for rank in comm.bcast(result.ranks)]
    best = ringtmp.train(comm=comm, **settings | {"steps": 1}, node_speed=speeds, layer_split="measured")
    assert held == [sum(last - first for first, last in rank["layers"]) for rank in comm.bcast(best.ranks)]
    if comm.size > 1:
        assert held[-1] < min(held[:-1])
    assert result.sha256 == alone(**settings).sha256


@pytest.mark.mpi
@pytest.mark.parametrize("schedule", ["pipedream", "2bw"])
def test_refused(comm, schedule):
    with pytest.raises(ringtmp.UserError, match=f"balance: with schedule {schedule}"):
        ringtmp.train(comm=comm, steps=1, schedule=schedule, balance="auto", progress=False)

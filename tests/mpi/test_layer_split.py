"""The split round the ring: each rank knows its own costs alone, and all learn the answer of the one who knows all."""

import numpy as np
import pytest
from reference import alone

import ringtmp
from ringtmp.ring.layer_split import split_over_ring
from ringtmp.schedule.partition import StageCosts, split_layers


@pytest.mark.mpi
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_as_in_one_process(comm, chunks):
    rng = np.random.default_rng(chunks)
    for layers in (chunks * comm.size, chunks * comm.size + 7):
        for tight in (False, True):
            costs = rng.integers(1, 20, (chunks, comm.size, layers)).astype(float)
            reach = np.minimum(np.arange(layers + 1) + (3 if tight else layers), layers)
            parts = [[StageCosts.of(costs[c, rank], reach) for rank in range(comm.size)] for c in range(chunks)]
            expected = split_layers([part for row in parts for part in row])
            assert split_over_ring(comm, [row[comm.rank] for row in parts]) == expected
            assert sum(expected.counts) == (layers if expected.counts else 0)


@pytest.mark.mpi
def test_nothing_fits(comm):
    part = StageCosts.of(np.ones(3 * comm.size), np.minimum(np.arange(3 * comm.size + 1) + 2, 3 * comm.size))
    assert split_over_ring(comm, [part]).counts == []


@pytest.mark.mpi
def test_neighbours_only(comm):
    """What a rank sends goes one step to the left or to the right."""
    sent = []

    class Watched:
        rank, size, Irecv = comm.rank, comm.size, comm.Irecv

        def Send(self, message, dest, tag):  # noqa: N802
            sent.append(dest)
            comm.Send(message, dest, tag)

    split_over_ring(Watched(), [StageCosts.of(np.ones(2 * comm.size))] * 2)
    assert set(sent) <= {(comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size}
    assert comm.size == 1 or sent


@pytest.mark.mpi
def test_layers_in_proportion_to_speed(comm):
    """Emulated nodes, the first one half as fast: it gets half as many layers; and the weights are one rank's."""
    count = 4 * comm.size - 2
    settings = {"model": f"mlp:64-24x{count}-10", "steps": 2, "batch_size": 8, "micro_batches": 2, "progress": False}
    speeds = ",".join(["1", *["2"] * (comm.size - 1)])
    result = ringtmp.train(comm=comm, **settings, layer_split="measured", node_speed=speeds)
    held = [last - first for rank in comm.bcast(result.ranks) for first, last in rank["layers"]]
    if comm.size > 1:
        assert held[0] <= 0.6 * np.mean(held[1:]), held
    one = alone(**settings)
    assert result.sha256 == one.sha256


@pytest.mark.mpi
@pytest.mark.parametrize("split", ["even", "flops", "measured"])
def test_every_way(comm, split):
    settings = {"model": "mlp:64-24x9-10", "steps": 2, "batch_size": 8, "micro_batches": 2, "progress": False}
    result = ringtmp.train(comm=comm, **settings, layer_split=split)
    held = [last - first for rank in comm.bcast(result.ranks) for first, last in rank["layers"]]
    assert sum(held) == 10
    assert min(held) >= 1
    if split == "even":
        assert max(held) - min(held) <= 1
    assert result.sha256 == alone(**settings).sha256


@pytest.mark.mpi
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_very_slow_rank_is_left_out(comm, shared_path, place):
    """Only where that is allowed, and only if the ring is faster without it; it learns what the others have done."""
    if comm.size == 1:
        return
    settings = {
        "model": f"mlp:64-24x{comm.size + 1}-10",
        "steps": 4,
        "batch_size": 8,
        "micro_batches": 2,
        "progress": False,
    }
    speeds = ["2"] * comm.size
    speeds[0 if place == "first" else -1] = "0.02"
    flags = settings | {"layer_split": "measured", "node_speed": ",".join(speeds)}
    kept = ringtmp.train(comm=comm, **flags)
    assert len(comm.bcast(kept.ranks)) == comm.size
    left = ringtmp.train(comm=comm, **flags, allow_idle_ranks=True, out=str(shared_path))
    slow = 0 if place == "first" else comm.size - 1
    ranks = comm.bcast(left.ranks, 1 if place == "first" else 0)
    assert len(ranks) == comm.size - 1
    assert (left.layers == {}) == (comm.rank == slow)
    assert {each.sha256 for each in (kept, left)} == {alone(**settings).sha256}
    assert len(set(comm.allgather((left.folder, left.step, left.state)))) == 1
    equal = ringtmp.train(
        comm=comm, **settings | {"layer_split": "measured", "node_speed": "2", "allow_idle_ranks": True}
    )
    assert len(comm.bcast(equal.ranks)) == comm.size


@pytest.mark.mpi
def test_leaving_out_needs_speeds(comm):
    with pytest.raises(ringtmp.UserError, match="allow_idle_ranks: speeds are known with layer_split measured"):
        ringtmp.train(comm=comm, steps=1, allow_idle_ranks=True, progress=False)

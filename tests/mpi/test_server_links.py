"""The parameter server on any number of ranks: bytes over each link, leads and waits of workers, traces.

On one rank only colocation and the all-reduce have a worker; on two, colocation alone has two workers. Rank 0 reads
traces and checkpoints for all.
"""

import numpy as np
import pytest
from conftest import (
    ALLREDUCE,
    ITEM,
    MOMENTUM,
    SERVING,
    SEVERAL,
    SMALL,
    N,
    Traced,
    alone,
    assert_close,
    assert_same_numbers,
    by_ids,
    chessboard,
)
from raw_trace import shares

from ringtmp import ps
from ringtmp.analysis import lead, servers, transfers, waits
from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm.point_to_point import ControlChannel
from ringtmp.nn.model import build_model

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("together")]

# ---- what goes over each link ---------------------------------------------------------------------------------------


def test_bytes_of_bsp(base, comm):
    """One server: each worker pushes and pulls all parameters once a step, and no worker talks to a worker."""
    if comm.rank:
        return
    m = ITEM * sum(array.size for arrays in alone(**SMALL).layers.values() for array in arrays.values())
    data, control = base.sent(), base.sent(control=True)
    np.testing.assert_array_equal(data, base.modelled(20))
    assert data.sum() == 20 * 2 * m * (N - 1)
    assert not (data + control)[1:, 1:].any()
    if N > 1:
        moved = transfers(*base.about())
        assert (moved[["pushed", "pulled"]] == 20 * m).all().all()
        # What is begun and done in each step, three tests and the end; a sign of life now and then.
        seconds = (base.ranks["ended"].max() - base.ranks["began"].min()) / 1e9
        assert (control[1:, 0] >= 2 * 20 + 3 + 1).all()
        assert (control[1:, 0] <= 2 * 20 + 3 + 1 + 1 + seconds).all()
        assert (control[0, 1:] == 1).all()  # the end
    np.testing.assert_array_equal(base.run.communication().to_numpy(), data + ControlChannel.BYTES * control)
    assert (base.config["compression"], base.config["local_steps"]) == ("none", 1)


LAYOUTS = [{}, {"servers": 2}, {"servers": N - 1}, {"colocate": True}]
LAYOUTS = {1: LAYOUTS[3:], 2: LAYOUTS[::3], 3: [*LAYOUTS[:2], LAYOUTS[3]]}.get(N, LAYOUTS[1:])


@pytest.mark.parametrize("layout", LAYOUTS, ids=by_ids)
def test_layouts(comm, shared_path, layout):
    """Sharded by ranges of keys: what a server holds goes to it and comes from it, once for each worker and step."""
    traced = Traced(comm, shared_path, **MOMENTUM, **layout, checkpoint_every=2)
    assert_same_numbers(traced.result, **MOMENTUM)
    if "colocate" in layout and N == 3:  # three workers, whose sum depends on its order
        assert ps.train(comm=comm, **MOMENTUM, **layout, delay=0.0005).sha256 == traced.result.sha256
    if comm.rank:
        return
    data, control, workers = traced.sent(), traced.sent(control=True), traced.workers
    np.testing.assert_array_equal(data, traced.modelled(7))
    m = sum(traced.held)
    assert m == sum(array.size for arrays in alone(**MOMENTUM).layers.values() for array in arrays.values())
    held = [traced.held[server] for server in traced.servers]
    assert max(held) - min(held) <= (8 if "colocate" in layout else 50)
    if "colocate" not in layout:
        assert not (data + control)[np.ix_(workers, workers)].any()
        assert not data[np.ix_(traced.servers, traced.servers)].any()
    # All parameters there and back; where every rank serves, all but its own part.
    assert data.sum() == 7 * 2 * ITEM * m * (N - 1 if "colocate" in layout else len(workers))
    assert control.sum() <= 7 * len(workers) * (len(traced.servers) + 1) + 5 * N * N
    found = servers(*traced.about())
    want = {server: 7 * sum(owner == server for owner, *_ in traced.ranges) for server in traced.servers}
    assert found["updates"].to_dict() == want
    assert (traced.run.staleness()["staleness"] == 0).all()


@pytest.mark.parametrize("divisible", [False, True])
def test_allreduce(comm, shared_path, divisible):
    """2 (n - 1) / n of all parameters from each rank to its right neighbour, to nobody else; the same bits again."""
    settings = MOMENTUM
    if divisible:  # every layer is a message, and has 2 N outputs
        settings |= {"model": f"mlp:11-{2 * N}x3-{2 * N}", "data": f"synthetic:samples=300,features=11,classes={2 * N}"}
        settings |= {"message_size": "1MB"}
    traced = Traced(comm, shared_path, **settings, **ALLREDUCE)
    assert_same_numbers(traced.result, **settings)
    if not divisible and N <= 3:
        assert ps.train(comm=comm, **settings, **ALLREDUCE).sha256 == traced.result.sha256
    if comm.rank:
        return
    data, control = traced.sent(), traced.sent(control=True)
    sizes = [size for _, size, *_ in traced.ranges]
    m = ITEM * sum(sizes)
    assert m == sum(array.nbytes for arrays in alone(**settings).layers.values() for array in arrays.values())
    assert data.sum() == 7 * 2 * (N - 1) * m
    for rank in range(N):
        right = data[rank, (rank + 1) % N]
        assert data[rank].sum() == right
        assert abs(right - 7 * 2 * (N - 1) * m / N) <= 7 * 2 * ITEM * len(sizes) * (N - 1)
        if divisible:
            assert all(size % N == 0 for size in sizes)
            assert right == 7 * 2 * (N - 1) * m // N
    assert not control[1:, 1:].any()
    assert control.sum() <= N * (7 + 1 + 2)
    found = waits(*traced.about())
    assert (found[["server", "slower", "bound"]] == 0).all().all()
    if N > 1:
        moved = transfers(*traced.about())
        assert moved["pushed"].sum() == moved["pulled"].sum() == data.sum()


FILTERS = [{"compression": "float16"}, {"compression": "topk", "topk": 0.1}]


@pytest.mark.parametrize("way", [way for (way,) in chessboard(FILTERS)], ids=by_ids)
def test_filters(comm, shared_path, way):
    """Fewer bytes, as many as they say; the loss falls all the same."""
    traced = Traced(
        comm, shared_path, **SMALL | {"steps": 20, "eval_every": 0, "lr": 0.03}, message_size="1000", **SERVING, **way
    )
    if comm.rank:
        return
    halves = [lambda size: 2 * size + 4] * 2
    tenth = [lambda size: max(1, round(0.1 * size)) * (ITEM + 4)]
    np.testing.assert_array_equal(
        traced.sent(), traced.modelled(20, *halves if way["compression"] == "float16" else tenth)
    )
    assert traced.config["compression"] == way["compression"]
    losses = [row["loss"] for row in traced.result.rows if row["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_local_steps(comm, shared_path):
    """Every third step goes over the links; a set holds the weights of its step, which is one of those."""
    settings = SMALL | {"local_steps": 3, "steps": 11, "eval_every": 0, "lr": 0.02}
    traced = Traced(comm, shared_path, **settings, **SERVING, checkpoint_every=4)
    want = ps.train(comm=comm, **settings | {"steps": 9}, **SERVING).weights()
    if comm.rank:
        return
    np.testing.assert_array_equal(traced.sent(), traced.modelled(4))  # after 3, 6, 9 and 11
    sends = traced.of("send")
    assert set(sends[sends["stage"] >= 0]["step"]) <= {2, 5, 8, 10}
    assert traced.of("F")["step"].nunique() == 11
    folder = shared_path / "run" / "checkpoints"
    assert checkpoint.steps(folder) == [9, 11]
    records = checkpoint.read_layers(folder, checkpoint.read_marker(folder, 9), want)
    assert_close({record.name: record.parameters for record in records}, want, 0)


# ---- who is how far ahead, and who waits ----------------------------------------------------------------------------

STEP = 0.02 if N <= 3 else 0.04  # seconds that the slow worker takes


def slow():
    """A pace with which the last rank takes so long for a step, and the others next to nothing."""
    rows = -(-16 // (N if N <= 2 else N - 1))
    flops = sum(layer.flops(rows) for layer in build_model(SMALL["model"], "auto", 11, "classes", 3).layers)
    return {"node_speed": ",".join(["2"] * (N - 1) + [f"{flops / STEP / 1e9:.9f}"])}


UNEVEN = SMALL | {"steps": 12, "eval_every": 0} | SEVERAL
BOUNDS = {"bsp": 0, "ssp1": 1, "ssp3": 3, "asp": 12}


CASES = [("bsp", "slow"), ("ssp1", "slow"), ("ssp1", "delays"), ("ssp3", "delays"), ("ssp3", "slow"), ("asp", "slow")]


@pytest.mark.parametrize(("name", "how"), [case for (case,) in chessboard(CASES)])
def test_who_is_how_far_ahead(comm, shared_path, name, how):
    """Nobody is further than the bound; with one slow worker the others come to it, and wait there."""
    way = {"consistency": name[:3]} | ({"staleness": BOUNDS[name]} if "ssp" in name else {})
    traced = Traced(comm, shared_path, **UNEVEN, **way, **(slow() if how == "slow" else {"delay": 0.001}))
    if comm.rank:
        return
    late, leads, found = traced.run.staleness(), lead(*traced.about())["lead"], waits(*traced.about())
    assert len(late) == len(traced.workers) * 12 * len(traced.ranges)  # every gradient counts once
    assert not late.duplicated(["stage", "step", "worker"]).any()
    assert late["staleness"].min() == 0
    cause = {"bsp": "slower", "asp": "server"}.get(name, "bound")
    assert (found[list({"slower", "bound"} - {cause})] == 0).all().all()
    if N == 1 or name == "bsp":
        assert late["staleness"].max() == 0
    if N > 1:
        assert leads.max() <= BOUNDS[name]
        if how == "slow":
            assert leads.max() == BOUNDS[name] if name != "asp" else leads.max() > 3
            assert (late["staleness"].max() > 0) == (name != "bsp")
            assert name == "asp" or (found[cause].iloc[:-1] > 0.5 * STEP).all()


def test_backup_workers(comm, shared_path):
    """One is slow: the others do not wait for it, and it skips what was made without it. Nobody waits for its end."""
    traced = Traced(comm, shared_path, **UNEVEN | {"eval_every": 2}, **slow(), backup=min(1, N - 1))
    if comm.rank:
        return
    late = traced.run.staleness()
    took = late.groupby(["stage", "step"])["worker"].nunique()
    assert len(took) == 12 * len(traced.ranges)
    assert took.min() == max(1, len(traced.workers) - 1)
    assert (traced.of("F", N - 1)["step"].nunique() < 12) == (N > 1)
    rows = traced.result.rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["kind"] == "test"] == [2, 4, 6, 8, 10, 12]


# ---- traces ---------------------------------------------------------------------------------------------------------


def test_every_action_once(base, comm):
    """F, I and W of each step, piece and layer on each worker, in their order; U of each range on its server."""
    if comm.rank:
        return
    layers, pieces = range(8), range(2)
    assert base.workers == ([0] if N == 1 else list(range(1, N)))
    assert base.servers == [0]
    assert list(base.ranks["role"]) == (["both"] if N == 1 else ["server"] + ["worker"] * (N - 1))
    for worker in base.workers:
        forward = [(step, piece, layer) for step in range(20) for piece in pieces for layer in layers]
        backward = [(step, piece, layer) for step in range(20) for piece in pieces for layer in reversed(layers)]
        for kind, want in (("F", forward), ("I", backward), ("W", backward)):
            got = base.of(kind, worker)[["step", "micro_batch", "stage"]]
            assert list(got.itertuples(index=False, name=None)) == want
        taken = base.of("U", worker)
        taken = taken[taken["version"] < 0]
        assert not taken.duplicated(["step", "stage"]).any()
        assert len(taken) == 20 * 8
    updates = base.of("U", 0)
    updates = updates[updates["version"] >= 0]
    assert sorted(zip(updates["stage"], updates["version"], updates["step"], strict=True)) == [
        (number, step + 1, step) for number in range(len(base.ranges)) for step in range(20)
    ]
    late = base.run.staleness()
    assert len(late) == len(base.workers) * 20 * len(base.ranges)
    assert (late["staleness"] == 0).all()


def test_parts_sum_to_the_wall_time(base, comm):
    """No two events of a rank overlap, and none lies outside its wall time; causes add up to what was waited."""
    if comm.rank:
        return
    for rank in range(N):
        mine, facts, zero = base.events[base.events["rank"] == rank], base.ranks.loc[rank], base.ranks["began"].min()
        start, end = mine["start"].to_numpy(), mine["end"].to_numpy()
        assert (end >= start).all()
        assert (start[1:] >= end[:-1]).all()
        # Events are on rank 0's clock as measured, `began` and `ended` on the rank's own, which is the same here.
        slack = 1000 + max(facts[key]["uncertainty"] for key in ("clock_first", "clock_last"))
        assert start[0] >= facts["began"] - zero - slack
        assert end[-1] <= facts["ended"] - zero + slack
    table = base.run.breakdown()
    parts = table[["compute", "transfer", "wait", "checkpoint", "other"]]
    assert np.allclose(parts.sum(axis=1), table["wall"], rtol=0.01)
    assert (parts >= 0).all().all()
    assert (table["compute"] > 0).all()
    for rank in range(N):
        covered, waited = shares(base.run.path, rank)  # from the raw file
        row, told = table.loc[rank], base.result.ranks[rank]["parts"]
        assert waited == pytest.approx(row["wait"] / row["wall"], abs=0.001)
        assert 1 - row["other"] / row["wall"] - 0.01 <= covered <= 1.001  # some events are of `other`
        assert waited == pytest.approx(told["wait"] / sum(told.values()), abs=0.01)
    found = waits(*base.about())
    assert list(found.index) == list(base.workers)
    assert (found >= 0).all().all()
    np.testing.assert_allclose(found.sum(axis=1), table.loc[found.index, "wait"], atol=1e-9)

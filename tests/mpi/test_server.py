"""The parameter server on any number of ranks: the one-process numbers, what goes over each link, who waits for whom.

On one rank only colocation and the all-reduce have somebody to work; on two, colocation alone has two workers. Rank 0
reads traces and sets for all.
"""

import hashlib
import json
import shutil
from itertools import product

import naive
import numpy as np
import pytest
from conftest import chessboard
from mpi4py import MPI
from raw_trace import shares

import ps
import ringtmp
from ringtmp.analysis import lead, open_run, servers, transfers, waits
from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.comm.point_to_point import ControlChannel
from ringtmp.data.dataset import epoch_order
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage
from ringtmp.storage.run_folder import RunFolder

pytestmark = pytest.mark.mpi

N = MPI.COMM_WORLD.size
# 8 layers: enough for a ring of 8 ranks. Odd widths, so that no product is a multiple of a vector.
SMALL = {
    "model": "mlp:11-13-9-17x2-8x2-7-3,activation=tanh",
    "data": "synthetic:samples=300,features=11,classes=3,seed=4",
    "batch_size": 16,
    "steps": 20,
    "eval_every": 7,
    "optimizer": "adamw",
    "lr": 0.01,
    "lr_schedule": "constant",
    "dtype": "float64",
    "progress": False,
}
MOMENTUM = SMALL | {
    "optimizer": "momentum",
    "steps": 7,
    "eval_every": 5,
    "weight_decay": 0.01,
    "clip_value": 0.02,
    "lr_schedule": "cosine",
    "warmup_steps": 3,
    "message_size": "400",
}
ITEM = 8
SERVING = {"colocate": True} if N == 1 else {}  # a server and at least one worker
SEVERAL = {"colocate": True} if N <= 2 else {}  # at least two workers, where there are two ranks
ALLREDUCE = {"consistency": "allreduce"}
_alone: dict[tuple, ringtmp.Result] = {}


def alone(**settings) -> ringtmp.Result:
    """The run of one rank with these settings, made once in each process."""
    key = tuple(sorted((k, str(v)) for k, v in settings.items()))
    if key not in _alone:
        _alone[key] = ringtmp.train(comm=MPI.COMM_SELF, **settings)
    return _alone[key]


def by_ids(settings: dict) -> str:
    return "-".join(f"{v}" if isinstance(v, str) else f"{k}{v}" for k, v in settings.items()) or "plain"


def assert_close(got, want, tolerance=1e-10):
    assert sorted(got) == sorted(want)
    for layer, arrays in want.items():
        for key, array in arrays.items():
            np.testing.assert_allclose(got[layer][key], array, atol=tolerance, rtol=0, err_msg=f"{layer}/{key}")


def assert_same_numbers(result, **settings):
    """Weights (collective), and what rank 0 reports of each step and test, as one process has them."""
    weights = result.weights()
    if weights:
        one = alone(**settings)
        assert result.step == settings["steps"]
        assert_close(weights, one.layers)
        rows = {(row["kind"], row["step"]): row for row in one.rows}
        assert sorted(rows) == sorted((row["kind"], row["step"]) for row in result.rows)
        for row in result.rows:
            same = rows[row["kind"], row["step"]]
            assert np.isclose(row["loss"], same["loss"], rtol=1e-8)
            assert np.isclose(row["score"], same["score"], rtol=1e-8, equal_nan=True)
            assert (str(row["lr"]), row["epoch"]) == (str(same["lr"]), same["epoch"])


class Traced:
    """A run with its trace, which rank 0 opens. Collective."""

    def __init__(self, comm, path, **settings):
        self.result = ps.train(comm=comm, **settings, out=str(path), name="run")
        sleeping_barrier(comm)
        if comm.rank:
            return
        self.run = open_run(path / "run")
        self.events, self.ranks = self.run.events(), self.run.ranks().set_index("rank", drop=False)
        first = self.ranks.iloc[0]
        self.workers, self.servers, self.ranges, self.config = (
            first[key] for key in ("workers", "servers", "ranges", "config")
        )
        self.held = [0] * comm.size  # numbers that each rank serves
        for server, size, *segments in self.ranges:
            assert size == sum(stop - start for _, start, stop, _ in segments)
            if self.servers:
                self.held[server] += size

    def of(self, kind, rank=None):
        chosen = self.events[self.events["kind"] == kind]
        return chosen if rank is None else chosen[chosen["rank"] == rank]

    def about(self):
        """What `ringtmp.analysis` wants."""
        return self.events, self.ranks

    def sent(self, what="bytes", control=False):
        """From each rank to each other: bytes of gradients and weights, or messages of control, all of one size."""
        sends, matrix = self.of("send"), np.zeros((N, N), np.int64)
        sends = sends[(sends["stage"] < 0) == control]
        assert not control or (sends["bytes"] == ControlChannel.BYTES).all()
        np.add.at(matrix, (sends["rank"].to_numpy(), sends["peer"].to_numpy()), 1 if control else sends["bytes"])
        return matrix

    def modelled(self, exchanges, push=lambda size: ITEM * size, pull=lambda size: ITEM * size):
        """The cost model: for each exchange a worker pushes what a server holds, and pulls as much."""
        matrix = np.zeros((N, N), np.int64)
        for (server, size, *_), worker in product(self.ranges, self.workers):
            if worker != server:
                matrix[worker, server] += exchanges * push(size)
                matrix[server, worker] += exchanges * pull(size)
        return matrix


@pytest.fixture(autouse=True)
def together(comm):
    """Who has nothing to look at sleeps until the others have done so."""
    yield
    sleeping_barrier(comm)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """BSP with all there is: pieces, tests and checkpoints between steps; what follows looks at it from all sides."""
    comm = MPI.COMM_WORLD.Dup()
    path = comm.bcast(tmp_path_factory.mktemp("base") if comm.rank == 0 else None)
    yield Traced(comm, path, **SMALL, **SERVING, worker_micro_batches=2, checkpoint_every=4)
    sleeping_barrier(comm)
    comm.Free()


# ---- the same numbers -----------------------------------------------------------------------------------------------


def test_bsp_equals_one_process(base):
    assert_same_numbers(base.result, **SMALL)


def test_training_means_something(comm):
    """The comparison could fail: weights move with each step, with the seed and where gradients are clipped."""
    if comm.rank:
        return
    for settings, other in (SMALL, {"steps": 19}), (SMALL, {"seed": 1}), (MOMENTUM, {"clip_value": None}):
        with pytest.raises(AssertionError):
            assert_close(alone(**settings | other).layers, alone(**settings).layers, 1e-5)


WAYS = [{}, {"consistency": "ssp", "staleness": 0}]  # on any number of ranks
WAYS += [way for (way,) in chessboard([{"message_size": "200"}, {"worker_micro_batches": 1, "delay": 0.0005}])]


@pytest.mark.parametrize("way", WAYS, ids=by_ids)
def test_repeats_and_every_way_of_sending_give_the_same_bits(comm, base, way):
    """SSP with staleness 0 too; another chunk, fewer pieces, delays, a trace or none."""
    result = ps.train(comm=comm, **SMALL, **SERVING, **way)
    assert result.sha256 == base.result.sha256
    digests = [hashlib.sha256(), hashlib.sha256()]  # of the weights themselves
    for digest, weights in zip(digests, (result.weights(), base.result.weights()), strict=True):
        for layer, arrays in sorted(weights.items()):
            for key, array in sorted(arrays.items()):
                digest.update(f"{layer}/{key}".encode() + np.ascontiguousarray(array).tobytes())
    assert digests[0].digest() == digests[1].digest()


@pytest.mark.parametrize("workers", {1: [1], 2: [1], 3: [1, 2]}.get(N, [N - 2]))
def test_layouts_give_the_same_bits(comm, workers):
    """As many workers with one server, two, or each other: the same weights. One worker: those of one process."""
    settings = SMALL | {"steps": 6, "eval_every": 4}
    digests = set()
    for ranks, layout in ((workers + 1, {}), (workers + 2, {"servers": 2}), (workers, {"colocate": True})):
        some = comm.Split(0 if comm.rank < ranks <= N else MPI.UNDEFINED)
        if some:
            result = ps.train(comm=some, **settings, **layout, message_size="160")
            assert_same_numbers(result, **settings)
            digests.add(result.sha256)
            some.Free()
        sleeping_barrier(comm)
    assert len(digests) <= 1
    if workers == 1 and comm.rank == 0:
        assert digests == {alone(**settings).sha256}


CNN = {
    "model": "cnn:9x8-5c3-p2-6c2-a2-11-7-3",
    "data": "synthetic:samples=120,features=72,classes=3,seed=4",
    "batch_size": 12,
    "steps": 6,
    "eval_every": 5,
    "lr": 0.01,
    "dtype": "float64",
    "progress": False,
    "message_size": "250",
}
GPT = {
    "model": "gpt:layers=2,width=8,heads=2,context=9,dropout=0.1",
    "batch_size": 10,
    "steps": 5,
    "eval_every": 4,
    "lr": 0.01,
    "dtype": "float64",
    "progress": False,
}
REGRESSION = SMALL | {"model": "mlp:6-9x2-2", "data": "synthetic:samples=200,features=6,outputs=2,seed=1", "steps": 8}


@pytest.mark.parametrize(
    ("settings", "way"), chessboard([CNN, GPT, REGRESSION], [SERVING, ALLREDUCE]), ids=lambda s: by_ids(s)[:5]
)
def test_models(comm, shared_path, settings, way):
    """Nothing is sent of layers without parameters; dropout draws by the sample's number, whoever has it; R2."""
    if "data" not in settings:
        settings = settings | {"data": f"text:{shared_path / 'text'}"}
        if comm.rank == 0:
            (shared_path / "text").write_text("the ring goes round and round, the ring goes round; " * 40)
        sleeping_barrier(comm)
    assert_same_numbers(ps.train(comm=comm, **settings, **way), **settings)


def test_who_cannot_train():
    for settings, words in [
        ({}, "servers: 1 of 1 rank would serve"),
        ({"colocate": True, "backup": 1}, "backup: 1 of 1 worker"),
        ({"colocate": True, "backup": 1, "local_steps": 2}, "backup: .* local_steps 1"),
    ]:
        with pytest.raises(ringtmp.UserError, match=words):
            ps.train(comm=MPI.COMM_SELF, **SMALL, **settings)


# ---- every update, computed anew by hand ----------------------------------------------------------------------------

WIDTHS, BATCH, LR = [6, 7, 5, 8, 3], 13, 0.3
HAND = {
    "model": "mlp:" + "-".join(map(str, WIDTHS)) + ",activation=tanh",
    "batch_size": BATCH,
    "steps": 8,
    "eval_every": 0,
    "optimizer": "sgd",
    "lr": LR,
    "lr_schedule": "constant",
    "normalise": "none",
    "dtype": "float64",
    "progress": False,
    "seed": 3,
    "message_size": "300",
    "delay": 0.001,
}
KINDS = ["tanh"] * (len(WIDTHS) - 2) + ["linear"]


def arrays():
    rng = np.random.default_rng(5)
    return rng.standard_normal((60, 6)), rng.integers(0, 3, 60), rng.standard_normal((9, 6)), rng.integers(0, 3, 9)


def hand_stage():
    model = build_model(HAND["model"], "auto", 6, "classes", 3)
    stage = Stage(model, 0, len(KINDS), np.float64, Optimizer("sgd"), 1, 1)
    stage.initialise(3)
    return stage.states


def share_of(workers, worker, step):
    """Samples that a worker has in a step: even shares, larger ones first."""
    order = epoch_order(3, step // 4, 60)[step % 4 * BATCH : (step % 4 + 1) * BATCH]
    return np.array_split(order, len(workers))[workers.index(worker)]


def gradients(states, flats, rows, counted):
    """By layer, flat: gradients at these weights of the mean loss over `counted` samples, of which these are some."""
    x, y, *_ = arrays()
    h, kept, found = x[rows], [], []
    for state, flat, kind in zip(states, flats, KINDS, strict=True):
        w, b = state.layer.unpack(flat).values()
        before = h
        h, z = naive.dense_forward(h, w, b, kind)
        kept.append((before, w, z, kind))
    _, _, dy = naive.softmax_cross_entropy(h, y[rows], 1 / counted)
    for state, (before, w, z, kind) in zip(reversed(states), reversed(kept), strict=True):
        dy, dw, db, _ = naive.dense_backward(before, w, z, dy, kind)
        found.append(np.zeros(state.flat.size))
        state.layer.pack(found[-1], {"weight": dw, "bias": db})
    return found[::-1]


def by_hand(traced):
    """Weights by layer after the updates that servers noted, each by the gradients that it took, at their versions."""
    states = hand_stage()
    ranges = dict(enumerate(traced.ranges))  # server, size, segments of (layer, start, stop, at)

    def part(number, flats):
        return np.concatenate([flats[layer][start:stop] for layer, start, stop, _ in ranges[number][2:]])

    versions = {number: [part(number, [state.flat for state in states])] for number in ranges}
    events = traced.events[traced.events["stage"] >= 0].sort_values("end", kind="stable")
    served = [event for event in events.itertuples() if ranges[event.stage][0] == event.rank]
    met: dict[tuple, int] = {}  # by worker, step, range: the version that its gradient was made with
    newest: dict[tuple, int] = {}
    for event in served:
        if event.kind == "send":
            newest[event.peer, event.stage] = event.version
        elif event.kind == "receive":
            key = event.peer, event.step, event.stage
            assert key not in met
            met[key] = newest.get(key[::2], 0) if event.peer != event.rank else event.version
            assert event.version in (met[key], -1)
    cache: dict[tuple, list] = {}

    def gradient(worker, step):
        if (worker, step) not in cache:
            flats = [np.zeros(state.flat.size) for state in states]
            for number, (_, _, *segments) in ranges.items():
                for layer, start, stop, at in segments:
                    flats[layer][start:stop] = versions[number][met[worker, step, number]][at : at + stop - start]
            cache[worker, step] = gradients(states, flats, share_of(traced.workers, worker, step), BATCH)
        return cache[worker, step]

    pending: dict[int, list] = {number: [] for number in ranges}
    for event in served:
        if event.kind == "receive" and event.version >= 0:
            pending[event.stage].append((event.peer, event.step))
        elif event.kind == "U" and event.version >= 0:
            old, took = versions[event.stage], pending[event.stage]
            assert event.version == len(old)
            total = sum(part(event.stage, gradient(*each)) for each in took)
            if traced.config["backup"]:
                total *= BATCH / sum(len(share_of(traced.workers, *each)) for each in took)
            old.append(old[-1] - LR * total)
            pending[event.stage] = []
    assert not any(pending.values())
    for number, (_, _, *segments) in ranges.items():
        for layer, start, stop, at in segments:
            states[layer].flat[start:stop] = versions[number][-1][at : at + stop - start]
    return {f"{n:03d}-dense": state.layer.unpack(state.flat) for n, state in enumerate(states)}


if N == 3:  # which is enough: two workers that are late for each other

    @pytest.mark.parametrize(
        "way", [{"consistency": "asp"}, {"consistency": "ssp", "staleness": 1}, {"backup": 1}], ids=by_ids
    )
    def test_updates_by_hand(comm, shared_path, way):
        """Which gradient met which weights depends on the timing; what comes of it does not."""
        traced = Traced(comm, shared_path, data=arrays(), **HAND, **way)
        weights = traced.result.weights()
        if comm.rank:
            return
        assert_close(weights, by_hand(traced))
        late = traced.run.staleness()["staleness"]
        assert late.min() == 0
        assert late.max() > 0 or "backup" in way

    @pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
    def test_local_steps_by_hand(comm, optimizer):
        """Three steps alone, from the same weights, with new slots; then the mean of their ends, by samples."""
        settings = HAND | {"optimizer": optimizer, "local_steps": 3, "lr": 0.05, "delay": 0.0, "weight_decay": 0.02}
        weights = ps.train(comm=comm, data=arrays(), **settings).weights()
        if comm.rank == 0:
            workers = [1, 2]
            states = hand_stage()
            flats = [state.flat.copy() for state in states]
            for first in range(0, 8, 3):
                ends = []
                for worker in workers:
                    mine, slots = flats, [(np.zeros(f.size), np.zeros(f.size)) for f in flats]
                    for step in range(first, min(first + 3, 8)):
                        rows = share_of(workers, worker, step)
                        g = gradients(states, mine, rows, len(rows))
                        each = zip(mine, g, slots, strict=True)
                        if optimizer == "momentum":
                            moved = [naive.momentum(w, d, v, 0.05, 0.9, 0.02) for w, d, (v, *_) in each]
                        else:
                            rule = 0.05, 0.9, 0.999, 1e-8, 0.02, step - first + 1, optimizer == "adamw"
                            moved = [naive.adam(w, d, *slots, *rule) for w, d, slots in each]
                        mine, slots = [each[0] for each in moved], [each[1:] for each in moved]
                    ends.append((len(rows) / BATCH, mine))
                flats = [sum(share * mine[n] for share, mine in ends) for n in range(len(flats))]
            want = {
                f"{n:03d}-dense": state.layer.unpack(f) for n, (state, f) in enumerate(zip(states, flats, strict=True))
            }
            assert_close(weights, want, 1e-10)


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
        mine = base.events[base.events["rank"] == rank]
        start, end = mine["start"].to_numpy(), mine["end"].to_numpy()
        assert (end >= start).all()
        assert (start[1:] >= end[:-1]).all()
        assert start[0] >= base.ranks.loc[rank, "began"] - base.ranks["began"].min() - 1000
        assert end[-1] <= base.ranks.loc[rank, "ended"] - base.ranks["began"].min() + 1000
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


# ---- checkpoints ----------------------------------------------------------------------------------------------------


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

"""The parameter server on any number of ranks: the numbers of one process, and every update computed by hand.

On one rank only colocation and the all-reduce have a worker; on two, colocation alone has two workers.
"""

import hashlib

import naive
import numpy as np
import pytest
from conftest import (
    ALLREDUCE,
    MOMENTUM,
    SERVING,
    SMALL,
    N,
    Traced,
    alone,
    assert_close,
    assert_same_numbers,
    by_ids,
    chessboard,
)
from mpi4py import MPI

import ringtmp
from ringtmp import ps
from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.data.dataset import epoch_order
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("together")]

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


# ---- every update, computed by hand ---------------------------------------------------------------------------------

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

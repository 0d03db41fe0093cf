"""The same weights, bit for bit, for any number of ranks, schedule, timing, resume and number of micro-batches."""

import numpy as np
import pytest
from conftest import chessboard
from reference import alone

import ringtmp
from ringtmp.ring.trainer import RingTrainer

pytestmark = pytest.mark.mpi

# 8 layers: enough for 8 ranks. Odd widths, so that no product is a multiple of a vector.
SMALL = {
    "model": "mlp:11-13-9-17x2-8x2-7-3,activation=tanh",
    "data": "synthetic:samples=300,features=11,classes=3,seed=4",
    "batch_size": 16,
    "steps": 20,
    "eval_every": 7,
    "optimizer": "adamw",
    "lr": 0.01,
    "lr_schedule": "constant",
    "progress": False,
}
WAYS = [
    {"mode": "ready"},
    {"mode": "strict", "schedule": "naive"},
    {"mode": "strict", "schedule": "gpipe"},
    {"mode": "strict", "schedule": "1f1b"},
]


def name(way: dict) -> str | None:
    return way.get("schedule") or way["mode"] if isinstance(way, dict) else None


@pytest.mark.parametrize(("way", "m"), chessboard(WAYS, (1, 2, 7, 8)), ids=name)
def test_schedules_and_micro_batches(comm, way, m):
    """m = 7 does not divide the batch of 16: the last micro-batches are shorter. One piece gives the same."""
    result = ringtmp.train(comm=comm, **SMALL, **way, micro_batches=m)
    assert result.step == 20
    assert result.sha256 == alone(**SMALL, micro_batches=1).sha256


def test_weights_change_and_loss_falls():
    """The digest means something: training moves it, and another seed moves it too."""
    base = alone(**SMALL, micro_batches=7)
    assert base.sha256 != alone(**SMALL | {"steps": 19}, micro_batches=7).sha256
    assert base.sha256 != alone(**SMALL, micro_batches=7, seed=1).sha256
    losses = [row["loss"] for row in base.rows if row["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize(("way", "sends"), chessboard(WAYS, ("standard", "synchronous")), ids=name)
def test_random_delays(comm, way, sends):
    """Up to 2 ms (many ranks: 0.5) before every action, new on each rank; also with sends that block until received."""
    settings = SMALL | {"steps": 4, "micro_batches": 7}
    result = ringtmp.train(comm=comm, **settings, **way, sends=sends, delay=0.002 if comm.size < 5 else 0.0005)
    assert result.sha256 == alone(**settings).sha256


@pytest.mark.parametrize(("optimizer", "dtype"), chessboard(("sgd", "momentum", "adam"), ("float32", "float64")))
def test_optimizers_and_dtypes(comm, optimizer, dtype):
    settings = SMALL | {"optimizer": optimizer, "dtype": dtype, "weight_decay": 0.01, "micro_batches": 3, "steps": 8}
    settings |= {"model": "mlp:11-13-9-17x2-8x2-7-3,activation=gelu", "lr_schedule": "cosine", "warmup_steps": 3}
    assert ringtmp.train(comm=comm, **settings).sha256 == alone(**settings).sha256


def test_uneven_splits(comm):
    """All layers but the necessary ones on the first rank, and the other way round."""
    rest, settings = comm.size - 1, SMALL | {"steps": 8, "micro_batches": 7}
    counts = ([8 - rest] + [1] * rest, [1] * rest + [8 - rest])
    for split in ("measured", *(",".join(map(str, each)) for each in counts)):
        result = ringtmp.train(comm=comm, **settings, layer_split=split)
        assert result.sha256 == alone(**settings).sha256


@pytest.mark.parametrize("w_group", [None, 1, 3, 16])
def test_groups_of_weight_gradients(comm, w_group):
    """How many micro-batches one W takes together moves no bit."""
    settings = SMALL | {"steps": 8}
    result = ringtmp.train(comm=comm, **settings, micro_batches=16, w_group=w_group)
    assert result.sha256 == alone(**settings, micro_batches=1).sha256


CNN = {
    "model": "cnn:9x8-5c3-p2-6c2-a2-11-7-3",
    "data": "synthetic:samples=120,features=72,classes=3,seed=4",
    "batch_size": 12,
    "steps": 6,
    "eval_every": 5,
    "lr": 0.01,
    "progress": False,
}


@pytest.mark.parametrize(
    ("way", "m", "dtype"), [(WAYS[0], 5, "float32"), (WAYS[0], 1, "float64"), (WAYS[3], 5, "float64")], ids=str
)
def test_convolutional_net(comm, way, m, dtype):
    """Eight layers, pooling and flatten among them: a rank may hold none that has parameters."""
    settings = CNN | {"dtype": dtype}
    result = ringtmp.train(comm=comm, **settings, **way, micro_batches=m)
    assert result.sha256 == alone(**settings, micro_batches=1).sha256


@pytest.mark.parametrize(
    ("way", "extra"),
    [(WAYS[3], {}), (WAYS[0], {}), (WAYS[0], {"clip_norm": 0.05}), (WAYS[3], {"clip_norm": 0.05, "clip_value": 0.001})],
    ids=str,
)
def test_language_model(comm, way, extra, shared_path):
    """Embedding, six transformer blocks with dropout, head; gradients bounded one by one, or by the norm of all."""
    text = shared_path / "text"
    if comm.rank == 0:
        text.write_text("the ring goes round and round, the ring goes round; " * 40)
    comm.Barrier()
    settings = {
        "model": "gpt:layers=6,width=8,heads=2,context=9,dropout=0.1",
        "data": f"text:{text}",
        "batch_size": 10,
        "steps": 6,
        "eval_every": 4,
        "lr": 0.01,
        "progress": False,
        **extra,
    }
    result = ringtmp.train(comm=comm, **settings, **way, micro_batches=4)
    one = alone(**settings, micro_batches=1)
    assert result.sha256 == one.sha256
    if comm.rank == 0:
        rows = {(row["kind"], row["step"]): row for row in one.rows}
        for row in result.rows:
            same = rows[row["kind"], row["step"]]
            assert np.isclose(row["loss"], same["loss"], rtol=1e-12)
            assert row["score"] == same["score"]
        assert all(0 <= row["score"] <= 1 for row in result.rows)
    plain = alone(**settings | dict.fromkeys(extra), micro_batches=1)
    assert (plain.sha256 == one.sha256) == (not extra)  # the bound was felt


@pytest.mark.parametrize(("way", "how"), chessboard(WAYS[::3], ({"recompute": True}, {"threads": 2})), ids=str)
def test_recomputation_and_threads(comm, way, how):
    settings = SMALL | {"model": SMALL["model"].replace("7-3", "7-20")}  # more classes than a vector has lanes
    result = ringtmp.train(comm=comm, **settings, **way, **how, micro_batches=7)
    assert result.sha256 == alone(**settings, micro_batches=1).sha256


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_layers_in_pieces(comm, model, pieces, request):
    """So many pieces of the largest layers give the same bits on any number of ranks, wherever the chain is cut."""
    settings = SMALL | {"model": "mlp:11-9x7-3", "slices": pieces}
    if model == "gpt":
        text = f"text:{request.config.rootpath / 'README.md'}"
        settings |= {"model": "gpt:layers=3,width=12,heads=4,context=6,dropout=0.2", "data": text, "steps": 4}
    split = {} if comm.size > 3 else {"layer_split": "even"}
    result = ringtmp.train(comm=comm, **settings, **split, micro_batches=4)
    assert result.sha256 == alone(**settings, micro_batches=1).sha256
    assert any("columns" in name or "share" in name for names in comm.allgather(list(result.layers)) for name in names)


@pytest.mark.parametrize("more", [{}, {"clip_norm": 0.05}, {"chunks": 2}])
def test_a_stop_between_evaluations(comm, monkeypatch, more):
    """All updates of the last step are made, also where they wait for a norm: the weights are those of that step."""
    whole = RingTrainer.__init__

    def note(self, session):
        whole(self, session)
        if self.size == comm.size and comm.rank == comm.size - 1:
            session.stop_request = lambda: 15 if self.step >= 4 else 0

    monkeypatch.setattr(RingTrainer, "__init__", note)
    settings = SMALL | {"eval_every": 0, "micro_batches": 3, **more}
    chunks = {} if "chunks" not in more or 2 * comm.size <= 8 else {"chunks": 1}
    result = ringtmp.train(comm=comm, **settings | {"steps": 4000} | chunks)
    monkeypatch.undo()
    assert result.state == "stopped"
    assert 4 <= result.step < 4000
    plain = {key: value for key, value in settings.items() if key != "chunks"}
    assert result.sha256 == alone(**plain | {"steps": result.step}).sha256


def test_regression(comm):
    settings = SMALL | {"model": "mlp:6-9x7-2", "data": "synthetic:samples=200,features=6,outputs=2,seed=1"}
    settings |= {"micro_batches": 3}
    result, one = ringtmp.train(comm=comm, **settings), alone(**settings)
    assert result.sha256 == one.sha256
    if comm.rank == 0:
        tests = [row["score"] for row in result.rows if row["kind"] == "test"]
        assert len(tests) == 3
        assert tests == [row["score"] for row in one.rows if row["kind"] == "test"]


def test_history_is_the_same(comm):
    """What rank 0 reports came over the ring's links, and is what one rank reports."""
    result, one = ringtmp.train(comm=comm, **SMALL, micro_batches=7), alone(**SMALL, micro_batches=7)
    if comm.rank == 0:
        facts = [[(row[k]) for k in ("kind", "step", "loss", "score")] for row in result.rows]
        want = [[(row[k]) for k in ("kind", "step", "loss", "score")] for row in one.rows]
        assert sorted(facts, key=str) == sorted(want, key=str)
        assert len(facts) == 20 + 3


@pytest.mark.parametrize(("way",), chessboard(WAYS[::3]), ids=name)
def test_resume_on_other_ranks(comm, way, shared_path):
    """Ten steps on all ranks, ten more on half of them (rounded up), and the other way round."""
    settings = SMALL | {"micro_batches": 7, "out": str(shared_path)}
    half = comm.Split(0 if comm.rank < (comm.size + 1) // 2 else 1)
    chosen = comm.rank < (comm.size + 1) // 2
    want = alone(**SMALL, micro_batches=7).sha256
    first = ringtmp.train(comm=comm, **settings | {"steps": 10}, **way, name="down")
    if chosen:
        more = ringtmp.train(comm=half, resume=first.folder, steps=20, progress=False)
        assert (more.step, more.sha256) == (20, want)
        up = ringtmp.train(comm=half, **settings | {"steps": 10}, **way, name="up")
    comm.Barrier()
    folder = comm.bcast(up.folder if comm.rank == 0 else None)
    more = ringtmp.train(comm=comm, resume=folder, steps=20, progress=False, name="up-2", out=str(shared_path))
    assert (more.step, more.sha256) == (20, want)
    half.Free()


def test_weights_come_together(comm):
    """`Result.weights` on rank 0 holds every layer, as one rank has them."""
    weights = ringtmp.train(comm=comm, **SMALL, micro_batches=2).weights()
    want = alone(**SMALL, micro_batches=2).layers
    if comm.rank == 0:
        assert list(weights) == list(want)
        for layer, arrays in want.items():
            for key, array in arrays.items():
                assert np.array_equal(weights[layer][key], array)
    else:
        assert weights == {}

"""`ringtmp.train` as called from Python and notebooks, on one rank; what it reports is what is."""

import naive
import numpy as np
import pytest
from mpi4py import MPI

import ringtmp
from ringtmp.data.dataset import epoch_order, open_data
from ringtmp.ring.trainer import RingTrainer
from ringtmp.run.launch import launch

SETTINGS = {"model": "mlp:5-8-6-3,activation=tanh", "batch_size": 10, "micro_batches": 3, "progress": False}


def samples(n=80):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((n, 5))
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)


def judged(weights, x, y):
    """Mean loss and accuracy of a network, by the naive twins."""
    for number, layer in enumerate(weights.values()):
        kind = "linear" if number == len(weights) - 1 else "tanh"
        x, _ = naive.dense_forward(x, layer["weight"], layer["bias"], kind)
    loss, correct, _ = naive.softmax_cross_entropy(x, y, 1.0)
    return loss / len(y), correct / len(y)


def test_reported_numbers_are_true():
    """Loss and accuracy of the test samples and of a training batch, computed anew from the weights."""
    x, y = samples()
    settings = SETTINGS | {"dtype": "float64", "lr_schedule": "constant", "lr": 0.01}
    result = ringtmp.train(data=(x, y), steps=7, **settings)
    data = open_data((x, y), dtype=np.dtype(np.float64))
    test_x, test_y = np.empty((data.info.n_test, 5)), np.empty(data.info.n_test, np.int64)
    data.read("test", np.arange(data.info.n_test), test_x, test_y)
    last = result.history.iloc[-1]
    assert (last["kind"], last["step"]) == ("test", 7)
    np.testing.assert_allclose((last["loss"], last["score"]), judged(result.weights(), test_x, test_y), rtol=1e-10)
    rows = epoch_order(0, 0, data.info.n_train)[:10]
    first_x, first_y = np.empty((10, 5)), np.empty(10, np.int64)
    before = ringtmp.train(data=(x, y), steps=1, **settings | {"lr": 1e-300, "optimizer": "sgd"})  # start values
    data.read("train", rows, first_x, first_y)
    first = result.history.iloc[0]
    np.testing.assert_allclose((first["loss"], first["score"]), judged(before.weights(), first_x, first_y), rtol=1e-10)


def test_r2_is_scikit_learns():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(1)
    x = rng.standard_normal((90, 4))
    y = np.stack([x[:, 0] + x[:, 1], 5 + 3 * x[:, 2]], axis=1)
    result = ringtmp.train(
        data=(x, y), model="mlp:4-2", dtype="float64", steps=30, lr=0.1, batch_size=9, progress=False
    )
    data = open_data((x, y), dtype=np.dtype(np.float64))
    test_x, test_y = np.empty((18, 4)), np.empty((18, 2))
    data.read("test", np.arange(18), test_x, test_y)
    layer = result.weights()["000-dense"]
    score = r2_score(test_y, test_x @ layer["weight"] + layer["bias"], multioutput="variance_weighted")
    assert np.isclose(result.history.iloc[-1]["score"], score, rtol=1e-9)


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ringtmp.train(data=samples(), steps=3, **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    assert (result.folder, result.saved, result.state, result.step) == (None, False, "finished", 3)


def test_a_run_on_arrays_can_go_on(tmp_path):
    """With the same arrays; without them the message says what is missing."""
    steady = SETTINGS | {"lr_schedule": "constant"}
    first = ringtmp.train(data=samples(), steps=4, out=str(tmp_path), name="a", **steady)
    assert first.saved
    whole = ringtmp.train(data=samples(), steps=9, **steady)
    with pytest.raises(ringtmp.UserError, match="data: 'arrays'"):
        ringtmp.train(resume=first.folder, steps=9, progress=False)
    more = ringtmp.train(data=samples(), resume=first.folder, steps=9, progress=False)
    assert more.sha256 == whole.sha256


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimiser": "sgd"}, "did you mean 'optimizer'"),
        ({"batch_size": 1000}, "exceeds the 64 training samples"),
        ({"model": "mlp:4-3"}, "takes 4 inputs"),
        ({"layer_split": "2,1"}, "names 2 stages"),
        ({"data": 3}, "data: expected"),
        ({"data": ([[1, 2], [3]], [0, 1])}, "data: arrays"),
        ({"data": "x" * 5000}, "data: xxx"),
        ({"data": "synthetic:seed=99999999999999999999"}, "seed must be at least 0"),
        ({"data": "synthetic:samples=10000000000000"}, "data: synthetic"),
        ({"model": [{"type": "dense", "units": 3, "activation": ["relu"]}]}, "activation must be one of"),
    ],
)
def test_bad_input_raises(settings, words):
    with pytest.raises(ringtmp.UserError, match=words):
        ringtmp.train(**{"data": samples(), "steps": 2} | SETTINGS | settings)


@pytest.mark.parametrize("model", ["mlp:5-3", [{"type": "dense", "units": 3}]])
@pytest.mark.parametrize("m", [1, 10])
def test_one_layer(model, m):
    result = ringtmp.train(data=samples(), **SETTINGS | {"model": model, "micro_batches": m}, steps=30, lr=0.05)
    losses = result.history[result.history["kind"] == "train"]["loss"]
    assert losses.iloc[-5:].mean() < 0.8 * losses.iloc[:5].mean()


@pytest.mark.parametrize("mode", [{"mode": "ready"}, {"schedule": "1f1b"}])
def test_a_batch_of_one_sample(mode):
    settings = SETTINGS | {"batch_size": 1, "micro_batches": 1}
    assert ringtmp.train(data=samples(), **settings, **mode, steps=20).step == 20


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_gradients_that_are_no_numbers(monkeypatch, scale):
    """With a bound on their norm a run ends at once, and says what may help."""
    from ringtmp.errors import RunFailure
    from ringtmp.nn.stage import Stage

    monkeypatch.setattr(Stage, "add_squares", lambda self, total: scale)
    with pytest.raises(RunFailure, match=r"norm of the gradients became (nan|inf) in step 0; try a smaller --lr"):
        ringtmp.train(comm=MPI.COMM_SELF, data=samples(), steps=3, clip_norm=1.0, **SETTINGS)


def test_no_kernel_runs_before_all_are_compiled(monkeypatch):
    """Ranks that compile side by side break Numba's cache: start values, made with kernels, come after."""
    from ringtmp.nn.stage import Stage
    from ringtmp.run import launch

    order = []
    prepare_kernels, initialise = launch.prepare_kernels, Stage.initialise
    monkeypatch.setattr(launch, "prepare_kernels", lambda *a, **k: order.append("compile") or prepare_kernels(*a, **k))
    monkeypatch.setattr(Stage, "initialise", lambda *a: order.append("start values") or initialise(*a))
    ringtmp.train(data=samples(), steps=1, **SETTINGS)
    assert order == ["compile", "start values"]


def test_more_than_enough():
    """A group larger than a step and more threads than samples are what a step and a batch can use."""
    result = ringtmp.train(data=samples(), steps=4, w_group=10**9, threads=64, **SETTINGS)
    assert result.sha256 == ringtmp.train(data=samples(), steps=4, **SETTINGS).sha256
    with pytest.raises(ringtmp.UserError, match="threads: expected less than or equal to 1024"):
        ringtmp.train(data=samples(), steps=4, threads=100000, **SETTINGS)


@pytest.mark.parametrize("updates", [1, 4, 5, 8, 11, 12])
def test_stop(tmp_path, updates):
    """A stop lets an evaluation that is due happen first; what was left out is made up for by the resume."""
    calls = []

    def stop() -> int:
        calls.append(1)
        return 15 if len(calls) == updates else 0

    flags = SETTINGS | {"data": "arrays", "steps": 12, "eval_every": 4, "out": str(tmp_path), "name": "a"}
    flags.pop("progress")
    result = launch(RingTrainer, MPI.COMM_SELF, {}, flags, arrays=samples(), show=False, stop_request=stop)
    assert result.step == updates
    assert (result.state, result.signal) == (("finished", 0) if updates == 12 else ("stopped", 15))
    rows = result.rows
    if updates < 12:
        more = ringtmp.train(resume=result.folder, data=samples(), progress=False)
        assert (more.step, more.state) == (12, "finished")
        rows = rows + more.rows
    assert [row["step"] for row in rows if row["kind"] == "test"] == [4, 8, 12]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))


def test_many_runs_in_one_process():
    """Communicators are given back: MPICH has about 2,000 of them."""
    for _ in range(1100):
        with pytest.raises(ringtmp.UserError):
            ringtmp.train(comm=MPI.COMM_SELF, data=samples(), layer_split="x", steps=1, **SETTINGS)

"""What was trained, used: evaluated, asked about samples in files, and exported to formats that others run."""

import json
import math

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
from forking import Forks
from safetensors import safe_open

import ringtmp
from ringtmp.commands.export import export
from ringtmp.errors import UserError
from ringtmp.nn import onnx_export as graph
from ringtmp.run.inference import TrainedNetwork

TEXT = "round goes the ring, and home again. " * 40
IMAGES = [
    {"type": "conv2d", "shape": [8, 8, 1], "filters": 8, "size": 3, "pad": 1, "activation": "gelu"},
    {"type": "groupnorm", "groups": 4},
    {"type": "maxpool2d", "size": 2},
    {
        "type": "residual",
        "layers": [
            {"type": "conv2d", "filters": 8, "size": 3, "pad": 1, "activation": "silu"},
            {"type": "dropout", "rate": 0.1},
            {"type": "conv2d", "filters": 8, "size": 1},
        ],
    },
    {"type": "activation", "function": "tanh"},
    {"type": "avgpool2d", "size": 2, "stride": 1},
    {"type": "flatten"},
    {
        "type": "block",
        "layers": [
            {"type": "dense", "units": 24, "activation": "sigmoid", "bias": False},
            {"type": "dense", "units": 16, "activation": "relu"},
        ],
    },
    {"type": "dense", "units": 10},
]
RUNS = {
    "mlp": {"data": "digits", "model": "mlp:64-32x2-10"},
    "images": {"data": "digits", "model": IMAGES},
    "values": {"data": "diabetes", "model": "mlp:10-16-1", "batch_size": 32},
    "float64": {"data": "breast-cancer", "model": "mlp:30-8-2", "dtype": "float64", "batch_size": 32},
    "text": {"model": "gpt:layers=2,width=32,heads=4,context=16", "batch_size": 16},
    "slices": {"data": "digits", "model": "mlp:64-32x2-10", "slices": 3},
    "heads": {"model": "gpt:layers=1,width=32,heads=4,context=16", "batch_size": 16, "slices": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each kind."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "words").write_text(TEXT)
    made = {}
    for name, settings in RUNS.items():
        given = {"data": f"text:{folder / 'words'}"} | settings
        made[name] = ringtmp.train(**given, steps=20, eval_every=20, out=str(folder), name=name, progress=False)
    return made


def samples_of(net, split="test"):
    """Samples as they were given, before any normalisation."""
    data = net.data()
    part = data._parts[split]
    scale = net.info.normalisation
    return part.x if scale["kind"] == "none" else part.x.astype(np.float64) * scale["std"] + scale["mean"]


@pytest.mark.parametrize("name", RUNS)
def test_evaluate_says_what_training_said(runs, name):
    found = TrainedNetwork(runs[name].folder).evaluate()
    last = [row for row in runs[name].rows if row["kind"] == "test"][-1]
    assert found.loss == pytest.approx(last["loss"], rel=1e-6)
    assert found.score == pytest.approx(last["score"], rel=1e-6)
    assert TrainedNetwork(runs[name].folder).evaluate(split="train").samples > found.samples


@pytest.mark.parametrize("name", RUNS)
def test_outputs_do_not_depend_on_how_many_go_together(runs, name, monkeypatch):
    net = TrainedNetwork(runs[name].folder)
    x = net.data()._parts["test"].x[:40]
    whole = net.outputs(x)
    monkeypatch.setattr("ringtmp.run.inference._ROWS", 7)
    monkeypatch.setattr("ringtmp.run.inference._ROOM", 1)
    assert net.at_once() == 7
    np.testing.assert_array_equal(net.outputs(x), whole)


def test_predictions(runs):
    net = TrainedNetwork(runs["mlp"].folder)
    x = samples_of(net)
    made = net.predict(x.reshape(-1, 8, 8))  # as many numbers in another shape
    assert made.shape == (len(x), 10)
    np.testing.assert_allclose(made.sum(axis=1), 1, rtol=1e-5)
    right = np.mean(made.argmax(axis=1) == net.data()._parts["test"].y)
    assert right == pytest.approx(net.evaluate().score)
    values = TrainedNetwork(runs["values"].folder)
    said = values.predict(samples_of(values))[:, 0]
    scale, y = values.info.normalisation, values.data()._parts["test"].y[:, 0]
    truth = y * scale["target_std"][0] + scale["target_mean"][0]
    assert 25 <= truth.min() <= truth.max() <= 346  # the units of the data
    r2 = 1 - np.sum((said - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)
    assert r2 == pytest.approx(values.evaluate().score, abs=1e-4)
    with pytest.raises(UserError, match=r"x: samples have shape \(63,\); expected \(64,\)"):
        net.predict(x[:, 1:])
    with pytest.raises(UserError, match=r"x: holds tokens from 0 to 99; expected 0 to \d+"):
        TrainedNetwork(runs["text"].folder).predict(np.array([[0] * 15 + [99]]))


@pytest.mark.parametrize("name", RUNS)
def test_onnx_gives_the_same(runs, name, tmp_path):
    net = TrainedNetwork(runs[name].folder)
    export(net, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = samples_of(net)[:50]
    given = x.astype(np.int64 if net.model.takes_tokens else net.dtype).reshape(len(x), *net.info.sample_shape)
    made = dict(zip([each.name for each in session.get_outputs()], session.run(None, {"x": given}), strict=True))
    close = {"rtol": 1e-9, "atol": 1e-9} if net.dtype == np.float64 else {"rtol": 2e-4, "atol": 2e-5}
    if net.is_classes:
        np.testing.assert_allclose(made["probabilities"], net.predict(x).reshape(made["probabilities"].shape), **close)
    else:
        np.testing.assert_allclose(made["outputs"], net.predict(x), **close)
    found = onnx.load(tmp_path / "net.onnx")
    assert found.opset_import[0].version == graph.OPSET


def test_safetensors(runs, tmp_path):
    for name in ("images", "text"):
        net, path = TrainedNetwork(runs[name].folder), tmp_path / f"{name}.safetensors"
        export(net, path)
        with safe_open(path, "numpy") as file:
            told = json.loads(file.metadata()["ringtmp"])
            assert told["layers"] == json.loads(json.dumps(net.model.to_list())) and told["step"] == 20
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        weights = runs[name].weights()
        assert sorted(stored) == sorted(f"{layer}.{key}" for layer, arrays in weights.items() for key in arrays)
        for layer, arrays in weights.items():
            for key, array in arrays.items():
                np.testing.assert_array_equal(stored[f"{layer}.{key}"], array)


def test_in_pytorch(runs, tmp_path):
    """The exported weights in a PyTorch twin of the network."""
    torch = pytest.importorskip("torch", reason="PyTorch is installed for the benchmarks alone (make bench-torch)")
    from safetensors.torch import load_file

    from ringtmp.jobs.bench.torch_nets import Twin

    for name in ("mlp", "images", "text"):
        net, path = TrainedNetwork(runs[name].folder), tmp_path / f"{name}.safetensors"
        export(net, path)
        weights: dict = {}
        for key, tensor in load_file(path).items():
            layer, _, parameter = key.partition(".")
            weights.setdefault(layer, {})[parameter] = tensor.numpy()
        x = net.data()._parts["test"].x[:20]
        with torch.no_grad():
            twin = Twin(net.model, [weights.get(layer, {}) for layer, _ in net.layers()], "adamw", 0.1)
            made = twin.net.eval()(twin.inputs(x))
        np.testing.assert_allclose(made.numpy().reshape(len(x), -1), net.outputs(x), rtol=2e-4, atol=2e-5)


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    """What `python -m ringtmp NAME ARGUMENTS` ends with."""
    with Forks(["ringtmp.run.inference", "ringtmp.nn.onnx_export", "ringtmp.data.dataset", "onnx"]) as forks:
        yield lambda *words: forks.run("ringtmp", *words)


def test_commands(runs, run, tmp_path):
    folder, net = runs["mlp"].folder, TrainedNetwork(runs["mlp"].folder)
    done = run("evaluate", folder)
    assert done.returncode == 0 and f"accuracy {net.evaluate().score:.2%}" in done.stdout, done.stderr
    x = samples_of(net)
    np.savez(tmp_path / "some.npz", x=x, y=net.data()._parts["test"].y)
    done = run("evaluate", folder, "--data", tmp_path / "some.npz", "--split", "train")
    assert done.returncode == 0 and "train samples: loss" in done.stdout, done.stderr
    with h5py.File(tmp_path / "some.h5", "w") as file:
        file["x"] = x
    for source in ("some.npz", "some.h5"):
        out = tmp_path / f"{source}.out.h5"
        done = run("predict", folder, tmp_path / source, out)
        assert done.returncode == 0, done.stderr
        with h5py.File(out) as file:
            np.testing.assert_allclose(file["probabilities"][()], net.predict(x), rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(file["classes"][()], net.predict(x).argmax(axis=1))
            assert file.attrs["step"] == 20
    for ending in ("onnx", "safetensors"):
        done = run("export", folder, tmp_path / f"net.{ending}")
        assert done.returncode == 0 and "parameters in 3 layers" in done.stdout, done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bad_input(runs, run, tmp_path):
    folder = runs["mlp"].folder
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 5)))
    (tmp_path / "no.npz").write_bytes(b"nothing")
    (tmp_path / "there.h5").touch()
    cases = [
        (("evaluate", tmp_path / "none"), "is not a run folder"),
        (("evaluate", folder, "--data", "diabetes"), "data: diabetes: its sample_shape is"),
        (("evaluate", folder, "--split", "all"), "split: 'all' is not one of 'test', 'train'"),
        (("predict", folder, tmp_path / "none.npz", "o.h5"), "none.npz: no such file"),
        (("predict", folder, tmp_path / "y.npz", "o.h5"), "y.npz: has no 'x'; it holds y"),
        (("predict", folder, tmp_path / "no.npz", "o.h5"), "no.npz: cannot be read"),
        (("predict", folder, tmp_path / "short.npz", tmp_path / "o.h5"), "x: samples have shape (5,); expected (64,)"),
        (("predict", folder, tmp_path / "y.npz", tmp_path / "there.h5"), "there.h5 exists already"),
        (("export", folder, tmp_path / "net.pt"), "net.pt: expected a name that ends in .safetensors or .onnx"),
        (("export", folder, tmp_path / "deep" / "net.onnx"), "cannot write"),
    ]
    for words, text in cases:
        done = run(*words)
        assert done.returncode == 2 and text in done.stderr, (words, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "o.h5").exists()


def test_score_of_values_that_do_not_vary(runs, tmp_path):
    net = TrainedNetwork(runs["values"].folder)
    x = samples_of(net)
    np.savez(tmp_path / "same.npz", x=x, y=np.full(len(x), 100.0))
    assert math.isnan(net.evaluate(net.data(str(tmp_path / "same.npz"))).score)

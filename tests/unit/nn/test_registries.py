"""A layer, an optimizer and a loss from outside the package: two files, one and one, and nothing else is changed."""

import os
import subprocess
import sys
from pathlib import Path

import huber
import lion
import numpy as np
import onnxruntime
import pytest
import swiglu_layer
from mpi4py import MPI

import ringtmp
from ringtmp.commands.export import export
from ringtmp.config.schema import make_config
from ringtmp.emulate import layer_costs as costs
from ringtmp.errors import UserError
from ringtmp.kernels.registry import LOSSES, OPTIMIZERS, Registry, one_of
from ringtmp.kernels.update import BLOCK
from ringtmp.nn.buffers import slot_bytes, state_bytes
from ringtmp.nn.layer_spec import LAYERS
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage
from ringtmp.run.inference import TrainedNetwork
from ringtmp.schedule.registry import SCHEDULES, Schedule, add

TABLES = [{"type": "swiglu", "units": 7}, {"type": "swiglu", "units": 5}, {"type": "dense", "units": 1}]
OUTSIDE = Path(swiglu_layer.__file__).parent


def test_names():
    assert OPTIMIZERS["lion"].slots == ("m",)
    assert LOSSES["huber"].target == "values"
    assert LAYERS["swiglu"] is swiglu_layer.SwiGLU
    assert set(OPTIMIZERS) >= {"sgd", "momentum", "adam", "adamw", "lion"}
    assert make_config({"optimizer": "lion", "loss": "huber"}).effective_weight_decay == 0.0
    with pytest.raises(UserError, match="optimizer: expected 'adam', 'adamw', .* or 'lion', got 'tiger'"):
        make_config({"optimizer": "tiger"})
    with pytest.raises(UserError, match="loss: expected 'auto', 'cross-entropy', 'mse' or 'huber', got 'l1'"):
        make_config({"loss": "l1"})
    with pytest.raises(UserError, match="type must be one of .*, swiglu, transformer, got 'glu'"):
        build_model([{"type": "glu"}], "auto", 4, "values", 1)
    with pytest.raises(KeyError, match="optimizer: expected"):
        OPTIMIZERS["tiger"]
    assert [one_of(list("abc")[:n]) for n in (1, 2, 3)] == ["'a'", "'a' or 'b'", "'a', 'b' or 'c'"]


def test_a_name_is_taken_once():
    registry = Registry("layer", "ringtmp.kernels.losses", by_file=False)
    registry.add("one", swiglu_layer.SwiGLU, "here")
    registry.add("one", swiglu_layer.SwiGLU, "here")
    with pytest.raises(ValueError, match="layer 'one' is declared twice: in here and in there"):
        registry.add("one", swiglu_layer.SwiGLU, "there")


def test_no_name_of_ours_is_taken():
    assert "gpipe" in SCHEDULES
    with pytest.raises(ValueError, match="schedule 'gpipe' is declared twice: in ringtmp.schedule.schedules.gpipe and"):
        add(Schedule("gpipe"))
    with pytest.raises(
        ValueError, match="optimizer 'adam' is declared twice: in ringtmp.kernels.optimizers.adam and in here"
    ):
        OPTIMIZERS.add("adam", OPTIMIZERS["lion"], "here")
    assert OPTIMIZERS["adam"].name == "adam"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_forms_of_a_rule_give_its_numbers(dtype):
    """In place, beside the old arrays, and served from one row; the rule itself is the twin."""
    rng, rule, n = np.random.default_rng(0), OPTIMIZERS["lion"], 3 * BLOCK + 5
    w, g, m = rng.standard_normal((3, n)).astype(dtype)
    settings = rule.arguments(lr=0.01, weight_decay=0.1, momentum=0.9, step=3)
    here = w.copy(), m.copy()
    rule.in_place(here[0], g, here[1], *settings)
    new = np.empty_like(w), np.empty_like(m)
    rule.into(w, g, m, *new, *settings)
    served = w.copy(), m.copy()
    rows = np.stack([g * 0, g])
    rule.served(served[0], rows, np.array([1]), 1.0, np.inf, np.empty(BLOCK, dtype), served[1], *settings, 0, n)
    constants = lion.constants(dtype, *settings)
    want = [lion.rule(w[i], g[i], m[i], *constants) for i in range(50)]
    for other in (new, served):
        assert [a.tobytes() for a in other] == [a.tobytes() for a in here]
    np.testing.assert_allclose(np.transpose([a[:50] for a in here]), want, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_loss():
    rng = np.random.default_rng(0)
    prediction, target = 2 * rng.standard_normal((2, 6, 3))
    loss, right = huber.huber(prediction.copy(), target, 0.0)
    assert np.isnan(right)
    gradient = prediction.copy()
    huber.huber(gradient, target, 1.0)
    for i, j in ((0, 0), (3, 2), (5, 1)):
        moved = prediction.copy()
        moved[i, j] += 1e-6
        assert (huber.huber(moved, target, 0.0)[0] - loss) / 1e-6 == pytest.approx(gradient[i, j], abs=1e-5)


@pytest.mark.parametrize("slots", [1, 4])
def test_memory_is_what_a_stage_takes(slots):
    model, optimizer = build_model(TABLES, "huber", 11, "values", 1), Optimizer("lion")
    stage = Stage(model, 0, 3, np.dtype("f4"), optimizer, 6, slots)
    kept, others = state_bytes(model, 0, 3, stage.dtype, len(optimizer.slots))
    arrays = [a for state in stage.states for a in (state.flat, *state.slots.values())]
    assert kept == sum(a.nbytes for a in arrays)
    assert others == sum(state.gradient.nbytes + state.derived.nbytes for state in stage.states)
    rooms = {a.ctypes.data: a.nbytes for room in stage._rooms for each in room.values() for a in each if a.nbytes}
    first, further = (slot_bytes(model, 0, 3, 6, stage.dtype, whole=whole) for whole in (True, False))
    assert sum(rooms.values()) == first + (slots - 1) * further


def test_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "CACHE", tmp_path)
    model = build_model(TABLES, "huber", 11, "values", 1)
    table = costs.layer_costs(model, 8, np.dtype("f4"), Optimizer("lion"))
    assert [cost.flops for cost in table] == [12 * 8 * 11 * 7, 12 * 8 * 7 * 5, 6 * 8 * 5]
    assert min(cost.forward for cost in table) > 0 and min(cost.update for cost in table) > 0


def test_trained_exported_and_run_elsewhere(tmp_path):
    settings = {"data": "diabetes", "model": TABLES, "optimizer": "lion", "loss": "huber", "progress": False}
    settings |= {"steps": 60, "batch_size": 32, "lr": 0.01, "dtype": "float64", "out": str(tmp_path), "name": "run"}
    result = ringtmp.train(comm=MPI.COMM_SELF, **settings)
    losses = [row["loss"] for row in result.rows if row["kind"] == "train"]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert np.isnan(result.rows[-1]["score"])  # R2 does not follow from this loss
    net = TrainedNetwork(result.folder)
    export(net, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((9, 10)) / 20
    np.testing.assert_allclose(session.run(["outputs"], {"x": x})[0], net.predict(x), rtol=1e-9, atol=1e-9)


def test_an_installed_plug_in_is_found_from_the_command_line(tmp_path):
    """An entry point of the group `ringtmp.plugins` names the module; without it the name is unknown."""
    folder = tmp_path / "site" / "beasts-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: beasts\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[ringtmp.plugins]\nlion = lion\n")
    flags = ["--optimizer", "lion", "--steps", "2", "--out", str(tmp_path), "--name", "run"]
    paths = [str(Path(ringtmp.__file__).parents[1]), str(OUTSIDE)]
    for site, status in (([], 2), ([str(folder.parent)], 0)):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([*site, *paths])}
        start = [sys.executable, "-m", "ringtmp.train", *flags]
        done = subprocess.run(start, env=env, capture_output=True, text=True, timeout=250)
        assert done.returncode == status, done.stderr

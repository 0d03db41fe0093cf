"""The cost table: timed once for each kind of layer, kept beside the compiled kernels, printed by `ringtmp bench`."""

import json

import numpy as np
import pytest

from ringtmp.__main__ import call
from ringtmp.emulate import layer_costs as costs
from ringtmp.kernels import machine
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "CACHE", tmp_path)
    return tmp_path / "costs.json"


def test_equal_layers_are_timed_once(cache, monkeypatch):
    calls = []
    real = costs.measure
    monkeypatch.setattr(costs, "measure", lambda *args: calls.append(args[1]) or real(*args))
    model = build_model("mlp:16-16x5-4", "auto", 16, "classes", 4)
    table = costs.layer_costs(model, 8, np.dtype("f4"), Optimizer("momentum"))
    assert calls == [0, 1, 5]  # the first has no input gradient
    assert len(table) == 6
    assert table[1] == table[4]
    assert all(cost.forward > 0 and cost.backward_weight > 0 and cost.update > 0 for cost in table)
    assert table[1].flops == 6 * 8 * 16 * 16
    assert table[1].step(3) == 3 * table[1].seconds + table[1].update
    assert costs.layer_costs(model, 8, np.dtype("f4"), Optimizer("momentum")) == table  # from the file
    assert calls == [0, 1, 5]
    assert len(json.loads(cache.read_text())) == 3
    costs.layer_costs(model, 9, np.dtype("f4"), Optimizer("momentum"))
    costs.layer_costs(model, 8, np.dtype("f4"), Optimizer("momentum"), fresh=True)
    assert calls == [0, 1, 5] * 3
    cache.write_text("{broken")
    assert len(costs.layer_costs(model, 8, np.dtype("f4"), Optimizer("momentum"))) == 6


def test_larger_layers_cost_more(cache):
    model = build_model("mlp:512-512-8-10", "auto", 512, "classes", 10)
    large, _, small = costs.layer_costs(model, 32, np.dtype("f4"), Optimizer("sgd"))
    assert large.seconds > small.seconds
    assert large.flops == 6 * 32 * 512 * 512
    assert large.traffic == 4 * (3 * (512 * 512 + 512) + 2 * 32 * 1024)


def test_machine(monkeypatch):
    monkeypatch.setattr(machine, "best", lambda call, seconds=0.0: call() or 1e-3)
    assert machine.peak_flops(np.float32) == 2000 * 2 * 16 * 32 * 96 / 1e-3
    assert machine.bandwidth(1 << 20) == 2 * (1 << 20) / 1e-3


def test_the_command(capsys, cache):
    assert call(["bench", "cnn:6x6-3c3-p2-4", "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert "000-conv2d" in out
    assert "003-dense" in out
    for words, message in ((["rnn:3"], "model: expected mlp:"), (["mlp:4-4", "--rows", "0"], "rows: expected whole")):
        assert call(["bench", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1

"""Models written in one line or as tables of layers: what they make, and what does not fit."""

import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.nn.model import build_model
from ringtmp.nn.model_spec import gpt_options


def test_forms():
    model = build_model("cnn:28x28-32c3-p2-64c3-p2-128-10", "auto", (28, 28), "classes", 10)
    kinds = [layer.kind for layer in model.layers]
    assert kinds == ["conv2d", "maxpool2d", "conv2d", "maxpool2d", "flatten", "dense", "dense"]
    assert model.parameters == 32 * 9 + 32 + 64 * 288 + 64 + 3136 * 128 + 128 + 1290
    assert model.layers[0].flops(1) == 6 * 28 * 28 * 9 * 32
    model = build_model("gpt:layers=3,width=16,heads=4,context=12", "auto", (12,), "classes", 9, 12, True)
    assert [layer.kind for layer in model.layers] == ["embedding", "block", "block", "block", "block"]
    assert model.parameters == 9 * 16 + 12 * 16 + 3 * (12 * 256 + 13 * 16) + 32 + 16 * 9 + 9
    assert gpt_options("gpt:") == {"layers": 8, "width": 256, "heads": 8, "context": 128, "dropout": 0.0}
    deep = build_model("gpt:layers=8,width=32,heads=4,context=4", "auto", (4,), "classes", 3, 4, True)
    flat = np.zeros(deep.layers[1].count)
    deep.layers[1].initialise(flat, 0, 1)
    last = deep.layers[1].unpack(flat)["1.2.weight"]
    assert abs(last.std() * np.sqrt(128) - 0.25) < 0.01  # 1 / sqrt(2 layers)


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("cnn:8x8-3c3", (8, 8), "must end with a dense layer"),
        ("cnn:8x8-3c3-x2-10", (8, 8), "'x2' in 'cnn:8x8-3c3-x2-10'"),
        ("cnn:8x8-10-3c3-10", (8, 8), "after a dense layer"),
        ("cnn:9x8-3c3-10", (8, 8), "takes 9x8x1 inputs but the data has 64 features"),
        ("cnn:8x8-3c3-p9-10", (8, 8), "layer 1: size 9 is larger than the image of 8 x 8"),
        ("cnn:8x8-3c3-10,activation=swish", (8, 8), "option 'activation=swish'"),
        ("gpt:layers=0", (8, 8), "layers must be at least 1"),
        ("gpt:depth=3", (8, 8), "'depth=3'"),
        ("gpt:layers=2,width=16,heads=3,context=64", (64,), "heads must divide the 16 features"),
        ("gpt:layers=2,width=16,heads=4,context=64", (64,), "predicts 64 labels per sample"),
        ("rnn:3", (8, 8), "expected mlp:"),
        ([{"type": "conv2d", "filters": 3, "size": 3, "pad": 3}], (8, 8), "pad must be below size 3"),
        ([{"type": "conv2d", "filters": 3, "size": 3}, {"type": "dense", "units": 10}], (8, 8), "put a flatten layer"),
        ([{"type": "groupnorm", "groups": 2}], (8, 8), "groups must divide the 1 channels"),
        ([{"type": "maxpool2d"}], (8, 8), "layer 0: size must be a whole number of at least 1, got None"),
        ([{"type": "dropout", "rate": 1.0}], (8, 8), "rate must be a number from 0.0 to below 1.0"),
        ([{"type": "attention", "heads": 2}], (64,), "attention takes sequences"),
        ([{"type": "activation"}], (64,), "function must be one of linear"),
        ([{"type": "residual", "layers": [{"type": "dense", "units": 3}]}], (64,), "they are added"),
        ([{"type": "residual", "layers": [{"type": "dense", "units": 64, "activation": "relu"}]}], (64,), "end with a"),
        ([{"type": "block", "layers": []}], (64,), "layers must be a list of tables"),
        ([{"type": "block", "layers": [{"type": "dense"}]}], (64,), "layer 0.0: units must be a whole number"),
        ([{"type": "dense", "units": 10}, {"type": "embedding", "tokens": 3, "width": 2}], (64,), "must be the first"),
        (
            [{"type": "embedding", "tokens": 3, "width": 2}, {"type": "flatten"}, {"type": "dense", "units": 10}],
            (64,),
            "takes tokens; expected --data text:FILE",
        ),
        ([{"type": "layernorm", "gain": 2}], (64,), "unknown key 'gain'; known: shape, type"),
        ([{"type": ["dense"], "units": 10}], (64,), "type must be one of"),
        ([{"type": "dense", "units": 10, "scale": 10**400}], (64,), "scale must be a number"),
        ([{"type": "dense", "units": 10, "shape": []}], (1,), "shape must be sizes"),
        ([{"type": "dense", "units": 10, "shape": [True]}], (1,), "shape must be sizes"),
        ("mlp:64-256x99999999999-10", (64,), "size '256x99999999999'"),
        ("mlp:64-256x999999999-10", (64,), "at most 100000 layers"),
        ("mlp:" + "9" * 5000 + "-10", (64,), "expected mlp:"),
        ("cnn:8x8-" + "9" * 5000 + "c3-10", (64,), "expected cnn:"),
        ("gpt:layers=1000000000", (64,), "layers at most 100000"),
        ("gpt:width=" + "9" * 400, (64,), "width must be at least 1"),
        ("gpt:width=" + "9" * 5000, (64,), "expected gpt:"),
        ("gpt:dropout=" + "9" * 5000, (64,), "dropout must be a number from 0.0"),
    ],
)
def test_what_does_not_fit_is_named(spec, shape, words):
    with pytest.raises(UserError) as caught:
        build_model(spec, "auto", shape, "classes", 10)
    assert words in str(caught.value)

"""Layers in pieces beside the whole ones: the same function, the same gradients."""

import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.nn.layer import StepContext
from ringtmp.nn.layers.sliced import cut
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage

ROWS = 6
MLP = [
    {"type": "dense", "units": 11, "activation": "gelu"},
    {"type": "dense", "units": 9, "bias": False},
    {"type": "dense", "units": 3},
]


def models(name, count):
    """A network, whole and in pieces, and samples for it."""
    rng = np.random.default_rng(4)
    if name == "mlp":
        given, more = (MLP, "auto", 5, "classes", 3), ()
        x, y = rng.standard_normal((ROWS, 5)), rng.integers(0, 3, (ROWS, 1))
    else:
        given, more = ("gpt:layers=2,width=12,heads=6,context=4,dropout=0.3", "auto", (4,), "classes", 7), (4, True)
        x, y = rng.integers(0, 7, (ROWS, 4)), rng.integers(0, 7, (ROWS, 4))
    whole = build_model(*given, *more)
    return whole, build_model(cut(whole.layers, count), *given[1:], *more), x, y


def stage_of(model, dtype=np.float64):
    stage = Stage(model, 0, len(model.layers), dtype, Optimizer("sgd"), ROWS, 1)
    stage.initialise(0)
    return stage


def gradients(stage, x, y):
    work, context = stage.work(0, ROWS), StepContext(True, 3, 2, 0)
    stage.refresh_cache()
    work.x[...], work.labels[...] = x, y
    stage.forward(work, context)
    out = work.scores[0].copy()
    stage.loss(work, 1 / ROWS)
    stage.backward_input(work, context)
    stage.backward_weight([work], True)
    return out


def natural(state, flat):
    return {name: array.copy() for name, array in state.layer.unpack(flat).items()}


def split_dense(arrays, prefix, columns, rows=None, bias=True):
    """Some columns (and rows) of a dense layer's arrays."""
    rows = slice(None) if rows is None else rows
    found = {"weight": arrays[f"{prefix}weight"][rows][:, columns]}
    if bias and f"{prefix}bias" in arrays:
        found["bias"] = arrays[f"{prefix}bias"][columns]
    return found


def parts_of(layer, arrays, tables):
    """What the arrays of a whole layer are in each of its pieces."""
    kinds = [table["type"] for table in tables]
    if kinds == [layer.kind]:
        return [arrays]
    if set(kinds) == {"columns"}:
        found, at = [], 0
        for table in tables:
            units = table["layers"][0]["units"]
            found.append({f"0.{key}": a for key, a in split_dense(arrays, "", slice(at, at + units)).items()})
            at += units
        return found
    found, half, at = [], -1, 0
    for table in tables:
        if table["type"] == "carry":
            half, at = half + 1, 0
            found.append({f"0.{key}": arrays[f"{half}.0.{key}"] for key in ("gain", "bias")})
            continue
        width = arrays[f"{half}.{3 - half}.weight"].shape[0]
        if half == 0:
            part = table["layers"][0]["units"] // 3
            columns = np.concatenate([np.arange(at, at + part) + k * width for k in range(3)])
        else:
            part = table["layers"][0]["units"]
            columns = np.arange(at, at + part)
        up = split_dense(arrays, f"{half}.1.", columns)
        down = split_dense(arrays, f"{half}.{3 - half}.", slice(None), np.arange(at, at + part), bias=at == 0)
        place = 2 - half
        found.append({f"0.{k}": a for k, a in up.items()} | {f"{place}.{k}": a for k, a in down.items()})
        at += part
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_the_same_function_and_the_same_gradients(name, count):
    whole, pieces, x, y = models(name, count)
    assert len(pieces.layers) > len(whole.layers)
    assert pieces.parameters == whole.parameters
    one, many = stage_of(whole), stage_of(pieces)
    rng = np.random.default_rng(1)
    for state in one.states:
        state.flat += 0.1 * rng.standard_normal(state.flat.size)

    def expected(kind):
        found, at = [], 0
        for state in one.states:
            here = []
            size = state.layer.count
            while size > 0:
                here.append(pieces.layers[at])
                size -= pieces.layers[at].count
                at += 1
            tables = [layer.to_table() for layer in here]
            found += parts_of(state.layer, natural(state, getattr(state, kind)), tables)
        return found

    for state, arrays in zip(many.states, expected("flat"), strict=True):
        state.layer.pack(state.flat, arrays)
    want, got = gradients(one, x, y), gradients(many, x, y)
    np.testing.assert_allclose(got, want, atol=1e-12)
    for state, arrays in zip(many.states, expected("gradient"), strict=True):
        mine = natural(state, state.gradient)
        assert set(mine) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_allclose(mine[key], array, atol=1e-12, err_msg=f"{state.index} {key}")


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_start_values_have_the_deviations_of_the_whole(name):
    whole, pieces, *_ = models(name, 3)

    def norm(stage):
        return sum(float(np.sum(state.flat**2)) for state in stage.states)

    ratio = [norm(stage_of(pieces)) / norm(stage_of(whole))]
    assert 0.7 < ratio[0] < 1.4


def test_small_layers_stay_whole():
    model = build_model("mlp:8-64x2-2", "auto", 8, "classes", 2)
    tables = cut(model.layers, 4)
    assert [table["type"] for table in tables] == ["dense"] * 0 + ["dense", *["columns"] * 4, "dense"]
    assert cut(build_model("cnn:8x8-4c3-p2-10", "auto", (8, 8, 1), "classes", 10).layers, 2)[0]["type"] == "conv2d"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"type": "columns", "features": 9, "layers": [{"type": "dense", "units": 3}]}, "features must be at most"),
        ({"type": "share", "features": 2, "layers": [{"type": "dense", "units": 3}]}, "they are added"),
        ({"type": "carry", "features": 2, "layers": [{"type": "layernorm"}]}, "they are added"),
        ({"type": "share", "features": 2, "layers": [{"type": "dense", "units": 2}], "last": 1}, "last must be"),
    ],
)
def test_bad_tables(table, words):
    with pytest.raises(UserError, match=words):
        build_model([table, {"type": "dense", "units": 3}], "auto", 4, "classes", 3)

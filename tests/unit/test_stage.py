"""Whole models: gradients against finite differences and against the naive twins; any cut of the chain, the same."""

import naive
import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.nn.layer import aligned
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage

ROWS = 6


def model_of(activation, loss="cross-entropy", bias=True):
    widths = [7, 4, 3]
    tables = [{"type": "dense", "units": w, "activation": activation, "bias": bias} for w in widths]
    tables[-1]["activation"] = "linear"
    return build_model(tables, "auto", 5, "classes" if loss == "cross-entropy" else "values", 3)


def stages_of(model, cuts, rows=ROWS, dtype=np.float64):
    ends = [0, *cuts, len(model.layers)]
    made = [Stage(model, a, b, dtype, Optimizer("sgd"), rows, 2) for a, b in zip(ends, ends[1:], strict=False)]
    for stage in made:
        stage.initialise(3)
        for state in stage.states:
            if state.parameters["bias"].size:
                state.parameters["bias"][:] = 0.1
    return made


def samples(loss, rows=ROWS):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, rows) if loss == "cross-entropy" else rng.standard_normal((rows, 3))
    return rng.standard_normal((rows, 5)), labels


def forward(stages, x, labels, slot=0, scale=1.0):
    """Loss of one micro-batch; gradients at the output if `scale` is above 0."""
    works = [stage.work(slot, len(x)) for stage in stages]
    works[0].x[...] = x
    for number, (stage, work) in enumerate(zip(stages, works, strict=True)):
        stage.forward(work)
        if number + 1 < len(stages):
            works[number + 1].x[...] = work.y
    works[-1].labels[...] = labels.reshape(works[-1].labels.shape)
    return stages[-1].loss(works[-1], scale)[0]


def backward(stages, rows, slot=0, first=True):
    works = [stage.work(slot, rows) for stage in stages]
    for number in reversed(range(len(stages))):
        stages[number].backward_input(works[number])
        if number:
            works[number - 1].dy[...] = works[number].dx
        stages[number].backward_weight([works[number]], first)


def gradients(stages):
    return np.concatenate([state.gradient for stage in stages for state in stage.states])


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_finite_differences(activation, loss, bias):
    """Central differences in float64 agree to 1e-7 with what I and W give."""
    stages = stages_of(model_of(activation, loss, bias), [])
    x, labels = samples(loss)
    forward(stages, x, labels)
    backward(stages, ROWS)
    got = gradients(stages)
    want = []
    for state in stages[0].states:
        for place in range(state.flat.size):
            old, values = state.flat[place], []
            for shift in (1e-6, -1e-6):
                state.flat[place] = old + shift
                stages[0].derive()
                values.append(forward(stages, x, labels, scale=0.0))
            state.flat[place] = old
            stages[0].derive()
            want.append((values[0] - values[1]) / 2e-6)
    np.testing.assert_allclose(got, want, atol=1e-7 * max(1, np.abs(want).max()))
    assert np.abs(got).max() > 1e-3


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
def test_against_the_naive_chain(activation):
    stages = stages_of(model_of(activation), [])
    x, labels = samples("cross-entropy")
    loss = forward(stages, x, labels, scale=0.5)
    backward(stages, ROWS)
    states, kept = stages[0].states, []
    y = x
    for state in states:
        parameters, kind = state.parameters, state.layer.activation
        weight = state.layer.natural(state.flat)["weight"]
        kept.append((y, weight, None))
        y, z = naive.dense_forward(y, weight, parameters["bias"], kind)
        kept[-1] = (kept[-1][0], weight, z)
    want_loss, _, dy = naive.softmax_cross_entropy(y, labels, 0.5)
    assert np.isclose(loss, want_loss, rtol=1e-12)
    for state, (x_in, weight, z) in reversed(list(zip(states, kept, strict=True))):
        dy, grad_weight, grad_bias, _ = naive.dense_backward(x_in, weight, z, dy, state.layer.activation)
        found = state.layer.natural(state.gradient)
        np.testing.assert_allclose(found["weight"], grad_weight, atol=1e-12)
        np.testing.assert_allclose(found["bias"], grad_bias, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", [[1], [2], [1, 2]])
def test_any_cut_gives_the_same_bits(cuts, dtype):
    model = model_of("gelu")
    x, labels = samples("cross-entropy")
    whole, parts = stages_of(model, [], dtype=dtype), stages_of(model, cuts, dtype=dtype)
    for number, rows in enumerate((ROWS, 4)):
        for stages in (whole, parts):
            forward(stages, x[:rows], labels[:rows], slot=number)
            backward(stages, rows, slot=number, first=number == 0)
    np.testing.assert_array_equal(gradients(whole), gradients(parts))


def test_micro_batches_add_up():
    """Two halves give the gradient of the whole, up to rounding."""
    model = model_of("tanh")
    x, labels = samples("cross-entropy")
    one, two = stages_of(model, []), stages_of(model, [])
    forward(one, x, labels)
    backward(one, ROWS)
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        forward(two, x[part], labels[part], slot=number)
        backward(two, len(x[part]), slot=number, first=number == 0)
    np.testing.assert_allclose(gradients(one), gradients(two), atol=1e-12)


def test_start_values_belong_to_the_layer():
    """Keyed by (seed, layer): the same in any stage, another for each layer and seed; variance as He et al. ask."""
    model = build_model("mlp:64-200x3-10", "auto", 64, "classes", 10)
    flats = []
    for index, layer in enumerate(model.layers):
        flat = aligned(layer.count, np.float64)
        layer.initialise(flat, 5, index)
        weight = layer.natural(flat)["weight"]
        flats.append(weight)
        gain = 1 if index == 3 else 2
        assert abs(weight.var() * layer.inputs / gain - 1) < 0.15
        assert not layer.views(flat)["bias"].any()
    assert (flats[1] != flats[2]).all()
    cut = Stage(model, 2, 4, np.float64, Optimizer("sgd"), 1, 1)
    cut.initialise(5)
    np.testing.assert_array_equal(cut.states[0].layer.natural(cut.states[0].flat)["weight"], flats[2])


def test_buffers_start_on_cache_lines():
    stage = stages_of(model_of("gelu"), [])[0]
    for state in stage.states:
        for array in (state.flat, state.gradient, *state.slots.values()):
            assert array.ctypes.data % 64 == 0
    for buffer in stage.buffers(1):
        assert buffer.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mlp:5-7x2-3,depth=4", "option 'depth=4'"),
        ("mlp:5", "has no layer"),
        ("mlp:5-7x-3", "size '7x'"),
        ("mlp:6-3", "takes 6 inputs but the data has 5"),
        ("mlp:5-2", "gives 2 outputs but the data has labels 0 to 2"),
        ([], "has no layers"),
        ([{"type": "conv", "units": 3}], "type must be one of dense, conv2d"),
        ([{"type": "dense", "units": True}], "units must be a whole number"),
        ([{"type": "dense", "units": 3, "unit": 4}], "unknown key 'unit'"),
        ([{"type": "dense", "units": 3, "shape": [9]}], "shape must be sizes that multiply to the 5 that come in"),
        ([{"type": "dense", "units": 3, "bias": "no"}], "bias must be true or false"),
    ],
)
def test_models_that_do_not_fit(spec, words):
    with pytest.raises(UserError) as caught:
        build_model(spec, "auto", 5, "classes", 3)
    assert words in str(caught.value)


def test_stored_layers_build_the_same_model():
    model = build_model("mlp:5-7x2-3,activation=gelu", "auto", 5, "classes", 3)
    assert build_model(model.to_list(), "auto", 5, "classes", 3) == model

"""Whole models: gradients against finite differences and against the naive twins; any cut of the chain, the same."""

import naive
import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.nn.layer import aligned
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import LOOK, Stage

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
                stages[0].refresh_cache()
                values.append(forward(stages, x, labels, scale=0.0))
            state.flat[place] = old
            stages[0].refresh_cache()
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
        weight = state.layer.unpack(state.flat)["weight"]
        kept.append((y, weight, None))
        y, z = naive.dense_forward(y, weight, parameters["bias"], kind)
        kept[-1] = (kept[-1][0], weight, z)
    want_loss, _, dy = naive.softmax_cross_entropy(y, labels, 0.5)
    assert np.isclose(loss, want_loss, rtol=1e-12)
    for state, (x_in, weight, z) in reversed(list(zip(states, kept, strict=True))):
        dy, grad_weight, grad_bias, _ = naive.dense_backward(x_in, weight, z, dy, state.layer.activation)
        found = state.layer.unpack(state.gradient)
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
        weight = layer.unpack(flat)["weight"]
        flats.append(weight)
        gain = 1 if index == 3 else 2
        assert abs(weight.var() * layer.inputs / gain - 1) < 0.15
        assert not layer.views(flat)["bias"].any()
    assert (flats[1] != flats[2]).all()
    cut = Stage(model, 2, 4, np.float64, Optimizer("sgd"), 1, 1)
    cut.initialise(5)
    np.testing.assert_array_equal(cut.states[0].layer.unpack(cut.states[0].flat)["weight"], flats[2])


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
        ([{"type": "conv", "units": 3}], "type must be one of activation, attention"),
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


# ---- W in pieces -----------------------------------------------------------------------------------------------------

TEXT = "gpt:layers=3,width=16,heads=2,context=8"
IMAGES = "cnn:8x8-4c3-p2-6c3-a2-9-10,activation=gelu"


def other_models():
    return {
        "mlp": build_model("mlp:5-7x3-3,activation=gelu", "auto", 5, "classes", 3),
        "cnn": build_model(IMAGES, "auto", (8, 8), "classes", 10),
        "gpt": build_model(TEXT, "auto", (8,), "classes", 65, 8, True),
    }


def fed(model, slots, dtype=np.float32, threads=1, optimizer="adamw"):
    """A whole model as one stage, and a micro-batch of random samples in each slot, the last one short."""
    stage = Stage(model, 0, len(model.layers), dtype, Optimizer(optimizer), ROWS, slots, threads)
    stage.initialise(3)
    rng = np.random.default_rng(1)
    works = [stage.work(slot, ROWS - (slot == slots - 1)) for slot in range(slots)]
    for work in works:
        if model.takes_tokens:
            work.x[...] = rng.integers(0, 65, work.x.shape)
        else:
            work.x[...] = rng.standard_normal(work.x.shape)
        work.labels[...] = rng.integers(0, 3, work.labels.shape)
    return stage, works


def there_and_back(stage, works, weights=None, loss_scale=0.5):
    """F and I of some micro-batches; their losses, and copies of their outputs and of the gradients at the inputs."""
    found = []
    for work in works:
        stage.forward(work, weights=weights)
        y = work.y.copy()
        loss = stage.loss(work, loss_scale)
        stage.backward_input(work, weights=weights)
        found.append((loss, y, work.dx.copy()))
    return found


@pytest.mark.parametrize("seconds", ["each", "joined", "one", "uneven"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
def test_pieces_give_the_same_bits(name, seconds):
    """W piece by piece, and of several micro-batches by turns with other work, gives the gradients of W in one go."""
    model = other_models()[name]
    stage, (*works, other) = fed(model, 4)
    there_and_back(stage, works)
    assert len(stage.pieces) == 1
    stage.backward_weight(works, True)
    want = gradients([stage]).copy()
    assert np.abs(want).max() > 0
    count = len(model.layers)
    stage.cut(
        {
            "each": [1.0] * count,
            "joined": [0.6 * LOOK] * count,
            "one": [0.0] * count,
            "uneven": [LOOK * (n % 3) for n in range(count)],
        }[seconds]
    )
    held = [n for n, layer in enumerate(model.layers) if layer.count]
    assert [n for piece in stage.pieces for n in piece] == held
    if seconds in ("each", "one"):
        assert len(stage.pieces) == (len(held) if seconds == "each" else 1)
    elif seconds == "joined":
        assert [len(piece) for piece in stage.pieces] == [2] * (len(held) // 2) + [1] * (len(held) % 2)
    for state in stage.states:
        state.gradient.fill(np.nan)
    for first, some in ((True, works[:2]), (False, works[2:])):
        for piece in stage.pieces:
            stage.backward_weight(some, first, piece)
            there_and_back(stage, [other])  # what comes in between has a slot of its own, and the same scratch
    np.testing.assert_array_equal(gradients([stage]), want)


def test_a_piece_touches_its_layers_alone():
    stage, works = fed(other_models()["gpt"], 1)
    there_and_back(stage, works)
    for state in stage.states:
        state.gradient.fill(7)
    stage.backward_weight(works, True, (1, 3))
    assert [bool((state.gradient == 7).all()) for state in stage.states] == [True, False, True, False, True]


def test_pieces_last_long_enough():
    """Each but the last at least `LOOK`, and none goes on once it does."""
    stage = Stage(build_model("mlp:5-7x30-3", "auto", 5, "classes", 3), 0, 31, np.float32, Optimizer("sgd"), 2, 1)
    seconds = np.random.default_rng(2).uniform(0, 0.7, 31) * LOOK
    stage.cut(seconds)
    for piece in stage.pieces[:-1]:
        assert sum(seconds[n] for n in piece) >= LOOK
    for piece in stage.pieces:
        assert sum(seconds[n] for n in piece[:-1]) < LOOK
    assert 4 < len(stage.pieces) < 31


def test_layers_without_weights_and_threads():
    """A stage without weights has no piece; several threads share a whole W."""
    model = other_models()["cnn"]
    pool = Stage(model, 1, 2, np.float32, Optimizer("sgd"), 2, 1)
    pool.cut([1.0])
    assert pool.pieces == []
    stage, works = fed(model, 2, threads=2)
    stage.cut([1.0] * len(model.layers))
    assert len(stage.pieces) == 1
    there_and_back(stage, works)
    stage.backward_weight(works, True, stage.pieces[0])
    alone, same = fed(model, 2)
    there_and_back(alone, same)
    alone.backward_weight(same, True)
    np.testing.assert_array_equal(gradients([stage]), gradients([alone]))


def test_seconds_of_layers():
    """One for each layer, none where there are no weights; `cut` takes them."""
    model = other_models()["cnn"]
    stage, _ = fed(model, 1)
    stage.warm_up([ROWS])
    seconds = stage.weight_seconds()
    assert [each > 0 for each in seconds] == [layer.count > 0 for layer in model.layers]
    stage.cut(seconds)
    assert len(stage.pieces) >= 1


# ---- weights of then -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
def test_stashed_weights(name):
    """F and I with stashed weights give what they gave with the weights of then, W and U in between or not."""
    model = other_models()[name]
    stage, works = fed(model, 2)
    then = there_and_back(stage, works)
    stage.backward_weight(works, True)
    want = gradients([stage]).copy()
    stage.stash(1)
    flats = [flat.copy() for flat in stage.stash_flat(1)]
    for step in (1, 2):
        stage.update(0.3, step)
        stage.stash(0)
    now = there_and_back(stage, works)
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(now, then, strict=True))
    again = there_and_back(stage, works, stage.stashed(1))
    for a, b in zip(again, then, strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_array_equal(a[2], b[2])
    stage.backward_weight(works, True)
    np.testing.assert_array_equal(gradients([stage]), want)
    for flat, old, new in zip(stage.stash_flat(1), flats, stage.stash_flat(0), strict=True):
        np.testing.assert_array_equal(flat, old)
        assert not flat.size or not np.array_equal(flat, new)
    for a, b in zip(there_and_back(stage, works, stage.stashed(0)), now, strict=True):
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("recompute", [False, True])
def test_f_and_i_with_different_live_weights(recompute):
    """An update between F and I of a micro-batch changes nothing for one that keeps to its stash."""
    model = other_models()["mlp"]
    stages = [Stage(model, 0, 4, np.float64, Optimizer("sgd"), ROWS, 1, recompute=recompute) for _ in range(2)]
    x, labels = samples("cross-entropy")
    for number, stage in enumerate(stages):
        stage.initialise(3)
        work = stage.work(0, ROWS)
        work.x[...], work.labels[...] = x, labels.reshape(-1, 1)
        stage.stash(0)
        weights = stage.stashed(0)
        for state in stage.states:
            state.gradient.fill(0.1)
        stage.forward(work, weights=weights)
        if number:
            stage.update(0.5, 1)
        stage.loss(work, 1.0)
        stage.backward_input(work, weights=weights)
        stage.backward_weight([work], True)
    assert (stages[0].states[0].flat != stages[1].states[0].flat).any()
    np.testing.assert_array_equal(gradients([stages[0]]), gradients([stages[1]]))


def test_a_stash_is_used_again():
    """Rooms are made once, in any order, and hold the newest copy."""
    stage, _ = fed(other_models()["mlp"], 1)
    stage.stash(2)
    places = [[flat.ctypes.data for flat in stage.stash_flat(room)] for room in range(3)]
    assert len({place for room in places for place in room}) == 12
    for state in stage.states:
        state.flat += 1
    stage.stash(0)
    stage.stash(2)
    assert [[flat.ctypes.data for flat in stage.stash_flat(room)] for room in range(3)] == places
    for state, old in zip(stage.states, stage.stash_flat(0), strict=True):
        np.testing.assert_array_equal(old, state.flat)

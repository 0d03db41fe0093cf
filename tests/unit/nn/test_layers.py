"""Every kind of layer in a whole model: gradients against finite differences, any cut, any micro-batches; tables."""

import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.nn.layer import StepContext
from ringtmp.nn.layers.sliced import cut
from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage

ROWS = 5
IMAGE, TEXT = (6, 5, 2), (7,)
NETS = {
    "conv": (
        IMAGE,
        [
            {"type": "conv2d", "filters": 3, "size": 3, "pad": 1, "activation": "gelu"},
            {"type": "maxpool2d", "size": 2},
            {"type": "conv2d", "filters": 4, "size": 2, "stride": 2, "activation": "tanh", "bias": False},
            {"type": "flatten"},
            {"type": "dense", "units": 3},
        ],
    ),
    "image-residual": (
        IMAGE,
        [
            {"type": "groupnorm", "groups": 2},
            {
                "type": "residual",
                "layers": [
                    {"type": "conv2d", "filters": 4, "size": 3, "pad": 1, "activation": "silu"},
                    {"type": "conv2d", "filters": 2, "size": 3, "pad": 1},
                ],
            },
            {"type": "activation", "function": "gelu"},
            {"type": "avgpool2d", "size": 3, "stride": 2},
            {"type": "flatten"},
            {"type": "dropout", "rate": 0.3},
            {"type": "dense", "units": 3},
        ],
    ),
    "gpt": (TEXT, "gpt:layers=2,width=8,heads=2,context=7,dropout=0.2"),
    "blocks": (
        TEXT,
        [
            {"type": "embedding", "tokens": 3, "width": 6},
            {"type": "transformer", "heads": 3, "hidden": 5, "activation": "silu"},
            {
                "type": "block",
                "layers": [
                    {"type": "layernorm"},
                    {"type": "dense", "units": 4, "activation": "sigmoid"},
                    {"type": "dropout", "rate": 0.5},
                ],
            },
            {"type": "head", "units": 3, "bias": False},
        ],
    ),
    "cut-dense": (
        (4,),
        cut(
            build_model(
                [
                    {"type": "dense", "units": 7, "activation": "gelu"},
                    {"type": "dense", "units": 6, "bias": False},
                    {"type": "dense", "units": 3},
                ],
                "auto",
                4,
                "classes",
                3,
            ).layers,
            3,
        ),
    ),
    "cut-gpt": (
        TEXT,
        cut(
            build_model(
                "gpt:layers=1,width=6,heads=3,context=7,dropout=0.2", "auto", TEXT, "classes", 3, 7, True
            ).layers,
            2,
        ),
    ),
    "vector": (
        (4,),
        [
            {"type": "residual", "layers": [{"type": "layernorm"}, {"type": "dense", "units": 4, "scale": 0.5}]},
            {"type": "block", "layers": [{"type": "dense", "units": 6}, {"type": "flatten"}]},
            {"type": "dense", "units": 3},
        ],
    ),
}


def model_of(name):
    shape, spec = NETS[name]
    return build_model(spec, "auto", shape, "classes", 3, 7 if shape == TEXT else 1, shape == TEXT)


def samples(model, rows=ROWS):
    rng = np.random.default_rng(3)
    shape = (rows, model.layers[0].inputs)
    x = rng.integers(0, 3, shape) if model.takes_tokens else rng.standard_normal(shape)
    return x, rng.integers(0, 3, (rows, model.labels))


def stages_of(model, ends=(), dtype=np.float64, rows=ROWS, **how):
    ends = [0, *ends, len(model.layers)]
    stages = [Stage(model, a, b, dtype, Optimizer("sgd"), rows, 3, **how) for a, b in zip(ends, ends[1:], strict=False)]
    for stage in stages:
        stage.initialise(1)
        for state in stage.states:  # biases and gains away from 0 and 1
            state.flat += (0.1 * np.random.default_rng(state.index).standard_normal(state.flat.size)).astype(dtype)
        stage.refresh_cache()
    return stages


def step(stages, x, y, pieces, group=1):
    """Loss and gradients of a batch in pieces, W of `group` of them at a time."""
    model, total, start, waiting, fresh = stages[0].model, 0.0, 0, [], True
    for slot, rows in enumerate(pieces):
        works = [stage.work(slot % 3, rows) for stage in stages]
        context = StepContext(True, 9, 4, start)
        works[0].x[...] = x[start : start + rows]
        works[-1].labels[...] = y[start : start + rows]
        for n, stage in enumerate(stages):
            stage.forward(works[n], context)
            if n + 1 < len(stages):
                works[n + 1].x[...] = works[n].y
        total += stages[-1].loss(works[-1], 1 / len(x) / model.scored)[0]
        for n in reversed(range(len(stages))):
            stages[n].backward_input(works[n], context)
            if n:
                works[n - 1].dy[...] = works[n].dx
        waiting.append(works)
        start += rows
        if len(waiting) == group or start == len(x):
            for n, stage in enumerate(stages):
                stage.backward_weight([each[n] for each in waiting], fresh)
            waiting, fresh = [], False
    gradient = np.concatenate([state.gradient for stage in stages for state in stage.states])
    return total / len(x) / model.scored, gradient.copy()


@pytest.mark.parametrize("name", NETS)
def test_finite_differences(name):
    model = model_of(name)
    stages = stages_of(model)
    x, y = samples(model)
    _, got = step(stages, x, y, [ROWS])
    states = stages[0].states
    place, want = 0, np.zeros_like(got)
    checked = np.random.default_rng(0).permutation(got.size)[:150]
    for state in states:
        for i in range(state.flat.size):
            if place in checked:
                old, losses = state.flat[i], []
                for shift in (1e-6, -1e-6):
                    state.flat[i] = old + shift
                    stages[0].refresh_cache()
                    losses.append(step(stages, x, y, [ROWS])[0])
                state.flat[i] = old
                stages[0].refresh_cache()
                want[place] = (losses[0] - losses[1]) / 2e-6
            place += 1
    np.testing.assert_allclose(got[checked], want[checked], atol=2e-8)
    assert np.abs(got[checked]).max() > 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETS)
def test_any_cut_and_any_micro_batches_give_the_same_bits(name, dtype):
    """The chain cut after any layer; the batch in any pieces; W of any number of them together."""
    model = model_of(name)
    x, y = samples(model)
    _, want = step(stages_of(model, dtype=dtype), x, y, [ROWS])
    for end in range(1, len(model.layers)):
        np.testing.assert_array_equal(step(stages_of(model, [end], dtype), x, y, [ROWS])[1], want)
    for pieces, group in (([3, 2], 1), ([3, 2], 2), ([1] * 5, 1), ([1] * 5, 3), ([2, 2, 1], 2)):
        np.testing.assert_array_equal(step(stages_of(model, dtype=dtype), x, y, pieces, group)[1], want)
    single, double = (step(stages_of(model, dtype=t), x, y, [ROWS]) for t in (np.float32, np.float64))
    np.testing.assert_allclose(single[1], double[1], atol=2e-5)


@pytest.mark.parametrize("how", [{"threads": 2}, {"threads": 7}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_threads_and_recomputation_give_the_same_bits(name, how):
    model = model_of(name)
    x, y = samples(model)
    loss, want = step(stages_of(model, dtype=np.float32), x, y, [ROWS])
    for ends, pieces in (((), [ROWS]), ((2,), [2, 3]), ((1, 2), [1, 1, 3])):
        got = step(stages_of(model, ends, np.float32, **how), x, y, pieces)
        np.testing.assert_array_equal(got[1], want)
        assert np.isclose(got[0], loss, rtol=1e-14)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_some_layers_made_again_give_the_same_bits(name, seed):
    model = model_of(name)
    x, y = samples(model)
    _, want = step(stages_of(model, dtype=np.float32), x, y, [ROWS])
    flags = np.random.default_rng(seed).integers(0, 2, len(model.layers)).astype(bool).tolist()
    for pieces in ([ROWS], [2, 3], [1, 1, 3]):
        np.testing.assert_array_equal(step(stages_of(model, (), np.float32, recompute=flags), x, y, pieces)[1], want)


@pytest.mark.parametrize("name", NETS)
def test_start_values_are_drawn_in_pieces(name, monkeypatch):
    """As if a layer's were drawn at once, in its own shape."""
    model = model_of(name)
    whole = [stage.states for stage in stages_of(model, dtype=np.float32)]
    monkeypatch.setattr("ringtmp.nn.layer._DRAWN", 7)
    pieces = [stage.states for stage in stages_of(model, dtype=np.float32)]
    for one, other in zip(whole, pieces, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.flat, b.flat)
            assert a.layer.count == 0 or np.ptp(a.flat) > 0


def test_start_values_are_those_of_the_generator():
    layer = build_model("mlp:6-50-3", "auto", 6, "classes", 3).layers[0]
    flat = np.ones(layer.count, np.float32)
    layer.initialise(flat, 5, 2)
    rng = np.random.Generator(np.random.Philox(key=np.array([5, 2], np.uint64)))
    want = (rng.standard_normal((6, 50)) * (np.sqrt(2) / np.sqrt(6))).astype(np.float32)
    np.testing.assert_array_equal(layer.unpack(flat)["weight"], want)
    assert not layer.unpack(flat)["bias"].any()


@pytest.mark.parametrize("classes", [3, 10, 65])
@pytest.mark.parametrize("last", [[], [{"type": "flatten"}]], ids=["plain", "flatten"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_where_the_losses_gradient_lies_changes_no_bit(classes, last, activation):
    """Over the logits, or beside them: because of recomputation, or because I still needs the output."""
    tables = [{"type": "dense", "units": 20}, {"type": "dense", "units": classes, "activation": activation}, *last]
    model = build_model(tables, "auto", 6, "classes", classes)
    x, y = np.random.default_rng(0).standard_normal((9, 6)), np.arange(9).reshape(9, 1) % classes
    _, want = step(stages_of(model, dtype=np.float32, rows=9), x, y, [9])
    for ends, how in (((), {"recompute": True}), ((1,), {}), ((len(tables) - 1,), {}), ((1,), {"recompute": True})):
        np.testing.assert_array_equal(step(stages_of(model, ends, np.float32, 9, **how), x, y, [9])[1], want)
    wide = step(stages_of(model, rows=9), x, y, [9])[1]
    np.testing.assert_allclose(want, wide, atol=1e-5)
    slopes = []
    stage = stages_of(model, rows=9)[0]
    for shift in (1e-6, -1e-6):
        stage.states[0].flat[3] += shift
        stage.refresh_cache()
        slopes.append(step([stage], x, y, [9])[0])
        stage.states[0].flat[3] -= shift
    assert abs((slopes[0] - slopes[1]) / 2e-6 - wide[3]) < 1e-8


def test_recomputation_keeps_little():
    """Buffers within a stage exist once, not once per slot."""
    model = build_model("mlp:16-256x6-4", "auto", 16, "classes", 4)
    kept = []
    for recompute in (False, True):
        stage = Stage(model, 0, 7, np.float32, Optimizer("sgd"), 8, 10, recompute=recompute)
        buffers = {b.ctypes.data: b.nbytes for room in stage._rooms for k in ("y", "dy") for b in room[k] if b.size}
        kept.append(sum(buffers.values()))
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize("name", ["gpt", "conv", "image-residual"])
def test_steps_allocate_no_arrays(name):
    """A whole step asks for no memory but Python's small change."""
    import tracemalloc

    model = model_of(name)
    stages = stages_of(model, rows=64)
    x, y = samples(model, 64)
    step(stages, x, y, [32, 32])
    work = stages[0].work(0, 32)
    assert work.y.nbytes + sum(each.x.nbytes for each in work.parts[0].buffers) > 20_000
    for turn in range(4):
        if turn == 1:  # what is loaded on first use is there now
            tracemalloc.start()
        stages[0].forward(work, StepContext(True))
        stages[0].loss(work, 1.0)
        stages[0].backward_input(work, StepContext(True))
        stages[0].backward_weight([work], True)
        stages[0].update(1e-3, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


def test_an_exception_in_a_thread_is_raised():
    model = model_of("vector")
    stage = stages_of(model, threads=2)[0]
    work = stage.work(0, 2)
    work.parts[1].buffers[-1].inner = None
    with pytest.raises(TypeError):
        stage.forward(work)


@pytest.mark.parametrize("name", NETS)
def test_tables_build_the_same_model(name):
    """What a checkpoint stores of its layers gives them again."""
    model = model_of(name)
    shape = NETS[name][0]
    again = build_model(model.to_list(), "auto", shape, "classes", 3, model.labels, model.takes_tokens)
    assert again == model
    assert again.to_list() == model.to_list()


@pytest.mark.parametrize("name", NETS)
def test_parameters_by_name(name):
    """Natural arrays have the stated shapes, hold every number once, and come back as they went."""
    model = model_of(name)
    for state in stages_of(model)[0].states:
        flat = np.arange(state.flat.size, dtype=np.float64)
        arrays = state.layer.unpack(flat)
        assert {key: array.shape for key, array in arrays.items()} == {
            key: shape for key, shape in state.layer.shapes.items() if np.prod(shape)
        }
        every = np.concatenate([array.ravel() for array in arrays.values()]) if arrays else np.empty(0)
        np.testing.assert_array_equal(np.sort(every), flat)
        back = np.full_like(flat, np.nan)
        state.layer.pack(back, {key: array.copy() for key, array in arrays.items()})
        np.testing.assert_array_equal(back, flat)


def test_dropout_leaves_evaluations_alone():
    model = model_of("image-residual")
    stage = stages_of(model)[0]
    x, _ = samples(model)
    outputs = []
    for context in (
        StepContext(),
        StepContext(),
        StepContext(True, 9, 4, 0),
        StepContext(True, 9, 4, 0),
        StepContext(True, 9, 5, 0),
    ):
        work = stage.work(0, ROWS)
        work.x[...] = x
        stage.forward(work, context)
        outputs.append(work.y.copy())
    plain, again, dropped, same, other = outputs
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(dropped, same)
    assert (plain != dropped).any()
    assert (dropped != other).any()


def test_logits_are_not_copied():
    """The loss leaves its gradient where the logits were, if the last layer is linear."""
    stage = stages_of(model_of("gpt"))[0]
    work = stage.work(0, 2)
    assert work.dy.ctypes.data == work.y.ctypes.data
    tables = [{"type": "dense", "units": 3, "activation": "tanh"}]
    stage = Stage(build_model(tables, "auto", 4, "classes", 3), 0, 1, np.float32, Optimizer("sgd"), 2, 1)
    assert stage.work(0, 2).dy.ctypes.data != stage.work(0, 2).y.ctypes.data


def test_tokens_must_fit_the_text():
    tables = [{"type": "embedding", "tokens": 3, "width": 2}, {"type": "head", "units": 70}]
    with pytest.raises(UserError, match="the embedding has 3 tokens but the data 65"):
        build_model(tables, "auto", (8,), "classes", 65, 8, text=True)
    with pytest.raises(UserError, match="the data is text"):
        build_model("mlp:1-5", "auto", (1,), "classes", 5, 1, text=True)

"""Learning rates by step; that each rule goes downhill; an update beside the old arrays."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.kernels.registry import OPTIMIZERS
from ringtmp.nn.layer import aligned
from ringtmp.nn.optimizers import Optimizer, learning_rate, make_slots, smaller

SLOTS = {name: OPTIMIZERS[name].slots for name in ("sgd", "momentum", "adam", "adamw")}


def test_constant_and_warm_up():
    rate = learning_rate("constant", 0.8, 10, warmup=3)
    assert [round(rate(step), 6) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]


def test_cosine():
    rate = learning_rate("cosine", 2.0, 12, warmup=2)
    assert rate(2) == 2.0
    assert math.isclose(rate(7), 1.0)
    assert 0 < rate(11) < 0.06


def test_step():
    rate = learning_rate("step", 1.0, 100, warmup=1, every=10, factor=0.5)
    assert [rate(step) for step in (1, 10, 11, 20, 21)] == [1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("kind", ["constant", "cosine", "step"])
def test_a_warm_up_longer_than_the_run(kind):
    rate = learning_rate(kind, 1.0, 3, warmup=10)
    assert [rate(step) for step in range(3)] == [1 / 11, 2 / 11, 3 / 11]


@pytest.mark.parametrize("name", SLOTS)
def test_goes_downhill(name):
    """On |w|^2 / 2 every rule comes near 0."""
    w, g = aligned(50, np.float64), aligned(50, np.float64)
    w[:] = np.random.default_rng(0).standard_normal(50)
    rule = Optimizer(name, weight_decay=0.01)
    slots = make_slots(rule, w, aligned)
    assert tuple(slots) == SLOTS[name]
    for step in range(400):
        g[:] = w
        rule.update(w, g, slots, 0.05, step + 1)
    assert np.abs(w).max() < 0.02


SIZES = st.integers(0, 300) | st.sampled_from([1001, 4096, 5003])


def state(name, dtype, n, seed):
    """w, g and slots, of all magnitudes."""
    rng = np.random.default_rng(seed)
    w, g, m, v = (rng.standard_normal((4, n)) * 10.0 ** rng.integers(-12, 3, (4, n))).astype(dtype)
    return w, g, dict(zip(SLOTS[name], [m, v] if name == "momentum" else [m, np.abs(v)], strict=False))


def beside(rule, w, g, slots, lr, step):
    """New w and slots, from new memory between guards."""
    rooms = {key: np.full(a.size + 32, np.nan, a.dtype) for key, a in {"w": w, **slots}.items()}
    new = {key: room[16:-16] for key, room in rooms.items()}
    rule.update(w, g, slots, lr, step, (new["w"], {key: new[key] for key in slots}))
    assert all(np.isnan(room[:16]).all() and np.isnan(room[-16:]).all() for room in rooms.values())
    return new


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SLOTS)
@settings(max_examples=60, deadline=None)
@given(n=SIZES, seed=st.integers(0, 99), step=st.integers(1, 9))
def test_beside_as_in_place(name, dtype, n, seed, step):
    """The bits of an update in place at any length; the old arrays stay; the numbers of the naive twins."""
    rule = Optimizer(name, weight_decay=0.1)
    w, g, slots = state(name, dtype, n, seed)
    before = [a.tobytes() for a in (w, g, *slots.values())]
    new = beside(rule, w, g, slots, 0.01, step)
    assert [a.tobytes() for a in (w, g, *slots.values())] == before

    wide = [a.astype(np.float64) for a in (w, g, *slots.values())]
    if name in ("sgd", "momentum"):
        want = getattr(naive, name)(*wide, 0.01, *([0.9] if slots else []), 0.1)
    else:
        want = naive.adam(*wide, 0.01, 0.9, 0.999, 1e-8, 0.1, step, name == "adamw")
    tolerance = 3e-5 if dtype == np.float32 else 1e-12
    for got, exact in zip(new.values(), want if slots else [want], strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance * max(1.0, np.abs(exact).max(initial=0)))

    rule.update(w, g, slots, 0.01, step)
    assert [a.tobytes() for a in new.values()] == [a.tobytes() for a in (w, *slots.values())]


@pytest.mark.parametrize("name", SLOTS)
def test_to_and_fro(name):
    """Two versions that are written in turn end where one does that is written in place."""
    rule = Optimizer(name, weight_decay=0.01)
    w, g, slots = state(name, np.float32, 1003, 0)
    two = [(w.copy(), {key: slot.copy() for key, slot in slots.items()}) for _ in range(2)]
    for step in range(7):
        rule.update(w, g, slots, 0.1, step + 1)
        old, new = two[step % 2], two[1 - step % 2]
        rule.update(old[0], g, old[1], 0.1, step + 1, new)
        g = -g[::-1].copy()
    assert [a.tobytes() for a in (new[0], *new[1].values())] == [a.tobytes() for a in (w, *slots.values())]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SLOTS)
def test_vectors_round_as_single_numbers(name, dtype):
    """One at a time, so that no vector is used: the same bits. Where a number lies in an array must not matter."""
    rule = Optimizer(name, weight_decay=0.1)
    w, g, slots = state(name, dtype, 301, 5)
    new = beside(rule, w, g, slots, 0.01, 3)
    for i in range(len(w)):
        here = slice(i, i + 1)
        rule.update(w[here], g[here], {key: slot[here] for key, slot in slots.items()}, 0.01, 3)
    assert [a.tobytes() for a in new.values()] == [a.tobytes() for a in (w, *slots.values())]


def test_beside_with_nan():
    """A run that has diverged must not go on unseen."""
    for name in SLOTS:
        w, g, slots = state(name, np.float32, 100, 0)
        g[[3, 99]] = np.nan
        new = beside(Optimizer(name), w, g, slots, 0.1, 1)
        for a in new.values():
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(a)), [3, 99])


def test_all_kernels_are_compiled_ahead():
    """`prepare_kernels` on the family calls them with the types that real calls have."""
    for dtype in (np.float32, np.float64):
        prepare_kernels(dtype, ["keep"])
        for name in SLOTS:
            beside(Optimizer(name), *state(name, dtype, 9, 0), 0.1, 1)
    assert {name: len(OPTIMIZERS[name].into.signatures) for name in SLOTS} == dict.fromkeys(SLOTS, 2)


def test_those_with_fewer_slots():
    assert [smaller(name) for name in ("adamw", "momentum", "sgd")] == [["momentum", "sgd"], ["sgd"], []]

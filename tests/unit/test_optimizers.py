"""Learning rates by step, and that each rule goes downhill."""

import math

import numpy as np
import pytest

from ringtmp.nn.layer import aligned
from ringtmp.nn.optimizers import SLOTS, Optimizer, learning_rate, make_slots


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

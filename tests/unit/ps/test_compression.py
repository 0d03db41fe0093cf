"""Compressors: nothing is lost that is not fed back later, and a message has the size that is documented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.ps.compression import Compressor, HalfPrecision, TopK, make_compressor

DTYPES = [np.float32, np.float64]
SIZES = [1, 2, 7, 100, 2049]


def carried(compressor, number, gradient, row=None):
    """A gradient as the server receives it, whatever its buffer held before."""
    message = compressor.gradient_buffer(gradient.size)
    row = np.full(gradient.size, np.nan, gradient.dtype) if row is None else row
    before = gradient.copy()
    compressor.compress_gradient(number, gradient, message)
    np.testing.assert_array_equal(gradient, before)  # local steps and the all-reduce would miss it
    compressor.decompress_gradient(message, row)
    return row


def answered(compressor, weights):
    message, there = compressor.weights_buffer(weights.size), np.full_like(weights, np.nan)
    compressor.compress_weights(weights, message)
    compressor.decompress_weights(message, there)
    return there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_none(dtype, size):
    compressor, g = (
        make_compressor("none", dtype, 0.01),
        np.random.default_rng(size).standard_normal(size).astype(dtype),
    )
    assert type(compressor) is Compressor
    assert (compressor.compresses_gradients, compressor.compresses_weights) == (False, False)
    np.testing.assert_array_equal(carried(compressor, 0, g), g)
    np.testing.assert_array_equal(answered(compressor, g), g)
    assert compressor.gradient_buffer(size).nbytes == compressor.weights_buffer(size).nbytes == g.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1.0, 1e20])
def test_float16(dtype, size, scale):
    """Half a unit in the eleventh place, of numbers down to a 16384th of the largest; a few bytes for the scale."""
    compressor = make_compressor("float16", dtype, 0.01)
    assert type(compressor) is HalfPrecision
    assert (compressor.compresses_gradients, compressor.compresses_weights) == (True, True)
    g = (scale * np.random.default_rng(size).standard_normal(size)).astype(dtype)
    bound = np.maximum(np.abs(g) * 2.0**-11, np.abs(g).max() * 2.0**-25) * 1.001
    for there in (carried(compressor, 0, g), answered(compressor, g)):
        assert there.dtype == g.dtype
        assert (np.abs(there - g) <= bound).all()
        assert size == 1 or (there != g).any()
    assert compressor.gradient_buffer(size).nbytes == compressor.weights_buffer(size).nbytes == 2 * size + 4
    assert (carried(compressor, 0, np.zeros(size, dtype)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_diverging_run_shows_through_float16(dtype):
    there = carried(make_compressor("float16", dtype, 0.01), 0, np.array([1, np.nan, np.inf, -np.inf], dtype))
    np.testing.assert_array_equal(there, [1, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "share", "count"), [(1, 0.01, 1), (49, 0.01, 1), (151, 0.01, 2), (7, 1.0, 7), (9, 0.5, 4)]
)
def test_top_k_sends_the_largest(dtype, size, share, count):
    compressor = make_compressor("topk", dtype, share)
    assert type(compressor) is TopK
    assert (compressor.compresses_gradients, compressor.compresses_weights) == (True, False)
    g = np.random.default_rng(size).permutation(np.arange(1, size + 1)).astype(dtype)
    g[::2] *= -1
    there = carried(compressor, 0, g)
    np.testing.assert_array_equal(there, np.where(np.abs(g) > size - count, g, 0))
    assert compressor.gradient_buffer(size).nbytes == count * (g.itemsize + 4)
    assert compressor.weights_buffer(size).nbytes == g.nbytes
    np.testing.assert_array_equal(answered(compressor, g), g)  # weights come whole


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_top_k_keeps_is_fed_back(dtype, data):
    """Of each range by itself: what was sent and what is left are all that there was. Whole numbers: exact."""
    compressor = TopK(dtype, data.draw(st.floats(0.01, 1)))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    every = [np.zeros(size, dtype) for size in sizes]
    sent = [np.zeros(size, dtype) for size in sizes]
    for _ in range(data.draw(st.integers(1, 6))):
        for number in rng.permutation(len(sizes)):
            g = rng.integers(-50, 50, sizes[number]).astype(dtype)
            left = every[number] - sent[number] + g
            there = carried(compressor, number, g)
            every[number] += g
            sent[number] += there
            np.testing.assert_array_equal(sent[number] + compressor.residual[number], every[number])
            gone = there != 0
            assert gone.sum() <= compressor.count(sizes[number])
            np.testing.assert_array_equal(there[gone], left[gone])
            assert np.abs(compressor.residual[number]).max() <= np.abs(there[gone]).min(initial=np.inf)
    assert set(compressor.residual) == set(range(len(sizes)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_sends_everything_in_the_end(dtype):
    """A number that is always small is sent when enough of it has come together."""
    compressor, g = TopK(dtype, 0.25), np.array([8, 1, 1, 1], dtype)
    row = np.zeros(4, dtype)
    total = np.zeros(4, dtype)
    for _ in range(40):
        total += carried(compressor, 3, g, row)
    assert (total[1:] > 0).all()
    np.testing.assert_array_equal(total + compressor.residual[3], 40 * g)

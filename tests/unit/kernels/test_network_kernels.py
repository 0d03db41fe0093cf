"""Kernels of convolutional nets and transformers against naive twins; `small` ones run without the compiler too."""

import naive
import numpy as np
import pytest

from ringtmp.kernels.activations import ACTIVATIONS
from ringtmp.kernels.attention import BLOCK as ATTENTION_BLOCK
from ringtmp.kernels.attention import attention_backward_input, attention_forward
from ringtmp.kernels.conv import conv_backward_input, conv_backward_weight, conv_forward, conv_turn
from ringtmp.kernels.embedding import embedding_backward_weight, embedding_forward
from ringtmp.kernels.norm import (
    group_norm_backward_input,
    group_norm_backward_weight,
    group_norm_forward,
    layer_norm_backward_input,
    layer_norm_backward_weight,
    layer_norm_forward,
)
from ringtmp.kernels.pool import (
    average_pool_backward_input,
    average_pool_forward,
    max_pool_backward_input,
    max_pool_forward,
)

DTYPES = [np.float32, np.float64]
# rows, height, width, channels, filters, size, stride, pad
CONVS = {
    "small": (1, 3, 4, 2, 3, 3, 1, 1),
    "small-point": (1, 2, 2, 1, 1, 1, 1, 0),
    "wide": (2, 8, 6, 5, 33, 3, 1, 0),
    "deep": (1, 5, 4, 40, 35, 2, 2, 0),
    "stride": (2, 9, 9, 3, 4, 3, 2, 1),
    "far": (1, 6, 7, 2, 3, 5, 3, 2),
    "cut": (1, 8, 8, 1, 9, 2, 3, 1),
}
ATTENTIONS = {"small": (2, 5, 3, 2), "small-one": (1, 1, 1, 1), "blocks": (1, 37, 2, 16), "odd": (2, 70, 1, 33)}


def normals(*shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def blank(*shape, dtype):
    return np.full(shape, np.nan, dtype)


def close(got, want):
    scale = max(1.0, float(np.max(np.abs(want), initial=0)))
    np.testing.assert_allclose(got, want, atol=scale * (3e-5 if got.dtype == np.float32 else 1e-11), rtol=0)


def packed(weight):
    return np.concatenate([naive.panels(row.reshape(-1, weight.shape[3])) for row in weight])


def unpacked(flat, shape):
    k, _, c, o = shape
    return np.stack([naive.unpanel(part, k * c, o) for part in flat.reshape(k, -1)]).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "tanh"])
@pytest.mark.parametrize("case", CONVS.values(), ids=CONVS)
def test_networks_conv(case, activation, dtype):
    m, high, wide, c, o, k, stride, pad = case
    h, w = (high + 2 * pad - k) // stride + 1, (wide + 2 * pad - k) // stride + 1
    x, weight, bias = normals(m, high, wide, c, dtype=dtype), normals(k, k, c, o, dtype=dtype), normals(o, dtype=dtype)
    y, dx = blank(m, h, w, o, dtype=dtype), blank(*x.shape, dtype=dtype)
    slope = blank(*((m * h * w, o) if activation == "gelu" else (0, 0)), dtype=dtype)
    room = blank(max((high + 2 * pad) * (wide + 2 * pad) * c, (high + k - 1) * (wide + k - 1) * o), dtype=dtype)
    code = ACTIVATIONS[activation]
    conv_forward(x, packed(weight), bias, y, slope, k, stride, pad, code, room)
    z = naive.conv(x, weight, bias, stride, pad)
    close(y, np.vectorize(lambda value: naive.activate(value, activation))(z))
    dy = normals(*y.shape, dtype=dtype, seed=1)
    delta = dy * np.vectorize(lambda value: naive.slope(value, activation))(z)
    want_dx, want_weight, want_bias = naive.conv_backward(x, weight, delta, stride, pad)
    turned = blank(weight.size, dtype=dtype)
    conv_turn(packed(weight), turned, k, c, o)
    conv_backward_input(y, slope, dy, turned, dx, k, stride, pad, code, room)
    close(dy, delta)
    close(dx, want_dx)
    grad, grad_bias = blank(weight.size, dtype=dtype), blank(o, dtype=dtype)
    conv_backward_weight(x, dy, grad, grad_bias, k, stride, pad, False, room)
    conv_backward_weight(x, dy, grad, grad_bias, k, stride, pad, True, room)
    close(unpacked(grad, weight.shape), 2 * want_weight)
    close(grad_bias, 2 * want_bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [(1, 4, 5, 2, 2, 2), (2, 7, 7, 3, 3, 2), (1, 5, 9, 1, 2, 3), (2, 3, 3, 17, 3, 3)],
    ids=["small", "overlap", "gaps", "whole"],
)
def test_networks_pool(case, dtype):
    m, high, wide, c, size, stride = case
    x = normals(m, high, wide, c, dtype=dtype)
    for choose in (np.max, np.mean):
        want = naive.pool(x, size, stride, choose)
        y, dx, dy = blank(*want.shape, dtype=dtype), blank(*x.shape, dtype=dtype), normals(*want.shape, dtype=dtype)
        if choose is np.max:
            want_dx = naive.max_pool_backward(x, dy, size, stride)
            max_pool_forward(x, y, size, stride)
            max_pool_backward_input(x, y, dy, dx, size, stride)
        else:
            want_dx = naive.average_pool_backward(x.shape, dy, size, stride)
            average_pool_forward(x, y, size, stride)
            average_pool_backward_input(dy, dx, size, stride)
        close(y, want)
        close(dx, want_dx)


def test_max_pool_of_equal_numbers_and_nan():
    """Of equal numbers the first takes the gradient, as in PyTorch; a NaN in the window shows."""
    x = np.zeros((1, 2, 4, 1), np.float32)
    y, dx = np.empty((1, 1, 2, 1), np.float32), np.empty_like(x)
    max_pool_forward(x, y, 2, 2)
    max_pool_backward_input(x, y, np.ones_like(y), dx, 2, 2)
    assert dx.ravel().tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    for place in range(4):
        x[:] = 0
        x.ravel()[[0, 1, 4, 5][place]] = np.nan
        max_pool_forward(x, y, 2, 2)
        assert np.isnan(y.ravel()).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (5, 33), (3, 256)], ids=["small", "small-one", "odd", "wide"])
def test_networks_layer_norm(shape, dtype):
    m, n = shape
    x, gain, bias, dy = (normals(*s, dtype=dtype, seed=i) for i, s in enumerate(((m, n), (n,), (n,), (m, n))))
    x += 3
    y, dx, moments = blank(m, n, dtype=dtype), blank(m, n, dtype=dtype), blank(m, 2, dtype=dtype)
    layer_norm_forward(x, gain, bias, y, moments)
    layer_norm_backward_input(x, gain, moments, dy, dx)
    close(y, naive.normalise(x, gain, bias))
    want = naive.normalise_backward(x, gain, dy)
    close(dx, want[0])
    grad, grad_bias = blank(n, dtype=dtype), blank(n, dtype=dtype)
    for add in (False, True):
        layer_norm_backward_weight(x, moments, dy, grad, grad_bias, add)
    close(grad, 2 * want[1])
    close(grad_bias, 2 * want[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [(1, 3, 2, 2), (2, 5, 1, 7), (2, 6, 3, 16)], ids=["small", "one", "wide"])
def test_networks_group_norm(case, dtype):
    """A group of a sample is a row of layer norm, its gain and bias repeated for each pixel."""
    m, pixels, groups, n = case
    x, dy = normals(*case, dtype=dtype), normals(*case, dtype=dtype, seed=1)
    gain, bias = normals(groups, n, dtype=dtype), normals(groups, n, dtype=dtype, seed=2)
    y, dx, moments = blank(*case, dtype=dtype), blank(*case, dtype=dtype), blank(m, groups, 2, dtype=dtype)
    group_norm_forward(x, gain, bias, y, moments)
    group_norm_backward_input(x, gain, moments, dy, dx)
    grad, grad_bias = blank(groups, n, dtype=dtype), blank(groups, n, dtype=dtype)
    for add in (False, True):
        group_norm_backward_weight(x, moments, dy, grad, grad_bias, add)
    for g in range(groups):
        rows, gradient = x[:, :, g].reshape(m, -1), dy[:, :, g].reshape(m, -1)
        close(y[:, :, g].reshape(m, -1), naive.normalise(rows, np.tile(gain[g], pixels), np.tile(bias[g], pixels)))
        want_dx, want_gain, want_bias = naive.normalise_backward(rows, np.tile(gain[g], pixels), gradient)
        close(dx[:, :, g].reshape(m, -1), want_dx)
        close(grad[g], 2 * want_gain.reshape(pixels, n).sum(axis=0))
        close(grad_bias[g], 2 * want_bias.reshape(pixels, n).sum(axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTIONS.values(), ids=ATTENTIONS)
def test_networks_attention(case, dtype):
    m, steps, heads, d = case
    n = heads * d
    qkv, dy = normals(m, steps, 3 * n, dtype=dtype), normals(m, steps, n, dtype=dtype, seed=1)
    y, logsum, dqkv = (
        blank(m, steps, n, dtype=dtype),
        blank(m, heads, steps, dtype=dtype),
        blank(*qkv.shape, dtype=dtype),
    )
    room = blank(2 * steps * (d + ATTENTION_BLOCK), dtype=dtype)
    attention_forward(qkv, y, logsum, heads, room)
    close(y, naive.attention(qkv, heads)[0])
    attention_backward_input(qkv, y, logsum, dy, dqkv, heads, room)
    close(dqkv, naive.attention_backward(qkv, dy, heads))


def test_attention_sees_no_later_place_and_no_large_scores():
    """A change at place t leaves what comes before untouched, bit for bit; scores of a thousand give no NaN."""
    qkv = normals(1, 40, 12, dtype=np.float32)
    room = np.empty(2 * 40 * (2 + ATTENTION_BLOCK), np.float32)
    results = []
    for change in (0, 1000):
        qkv[0, 23:] += change
        y, logsum = blank(1, 40, 4, dtype=np.float32), blank(1, 2, 40, dtype=np.float32)
        attention_forward(qkv, y, logsum, 2, room)
        assert np.isfinite(y).all()
        results.append(y)
    np.testing.assert_array_equal(results[0][0, :23], results[1][0, :23])
    assert (results[0][0, 23:] != results[1][0, 23:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_networks_embedding_small(dtype):
    tokens = np.array([[1, 4, 1], [0, 1, 4]])
    table, position, dy = (normals(*s, dtype=dtype, seed=i) for i, s in enumerate(((5, 3), (3, 3), (2, 3, 3))))
    y = blank(2, 3, 3, dtype=dtype)
    embedding_forward(tokens, table, position, y)
    np.testing.assert_array_equal(y, table[tokens] + position)
    grad, grad_position = blank(5, 3, dtype=dtype), blank(3, 3, dtype=dtype)
    for add in (False, True):
        embedding_backward_weight(tokens, dy, grad, grad_position, add)
    want = np.zeros((5, 3))
    np.add.at(want, tokens, dy)
    close(grad, 2 * want)
    close(grad_position, 2 * dy.sum(axis=0, dtype=np.float64))

"""Element-wise operations that are not part of a product: sums of branches, dropout, clipping."""

import numpy as np

from ringtmp.kernels._jit import jit
from ringtmp.kernels.compilation import kernel

_MULTIPLY1, _MULTIPLY2, _GOLDEN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), 0x9E3779B97F4A7C15
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)


@kernel("base", (2,), (2,))
def add_to(y, x):
    """Add `x`, float[n], to `y`, float[n], in place."""
    for i in range(y.size):
        y[i] += x[i]


@jit
def _mix(z):
    """Scramble 64 bits (the finaliser of SplitMix64: Steele, Lea & Flood 2014)."""
    z = (z ^ (z >> _S30)) * _MULTIPLY1
    z = (z ^ (z >> _S27)) * _MULTIPLY2
    return z ^ (z >> _S31)


@kernel("base", (2, 2), (2, 2), 0.5, 0, 0, 0)
def dropout(x, y, rate, key, step, sample):
    """Set each number to 0 with probability `rate` and divide the others by 1 - rate.

    Row i belongs to sample `sample` + i of optimizer step `step`. Whether number j of it is kept depends on
    (key, step, sample + i, j) alone, so any rank with any micro-batches draws the same mask, and I draws it again.

    Parameters
    ----------
    x : float[m, n]
        Input of F, or the gradient in I.
    y : float[m, n]
        Receives the result; may be `x` itself.
    rate : float
        Probability of 0, from 0 up to but not 1.
    key : int
        Key of the layer, 0 to 2**64 - 1; different layers draw different masks.
    step : int
        Optimizer step, from 0.
    sample : int
        Number of the first row's sample within the step's batch.
    """
    m, n = x.shape
    kind = x.dtype.type
    scale = kind(1 / (1 - rate))
    limit = np.uint64(rate * 16777216.0)
    of_step = _mix(np.uint64(key) ^ _mix(np.uint64(step) + np.uint64(_GOLDEN)))
    for i in range(m):
        state = _mix(of_step ^ (np.uint64(sample + i) * np.uint64(_GOLDEN)))
        for j in range(n):
            bits = _mix(state + np.uint64(j + 1) * np.uint64(_GOLDEN)) >> _S40
            y[i, j] = x[i, j] * scale if bits >= limit else kind(0)


@kernel("base", (2,), 1.0)
def clip_value(g, limit):
    """Limit every number to [-limit, limit] in place; NaN stays.

    Parameters
    ----------
    g : float[n]
        Numbers to limit.
    limit : float
        Bound of the absolute value, above 0.
    """
    low, high = g.dtype.type(-limit), g.dtype.type(limit)
    for i in range(g.size):
        value = high if g[i] > high else g[i]
        g[i] = low if value < low else value


@kernel("base", (2,))
def squared_norm(g):
    """Sum of squares of `g`, float[n], in float64 and in ascending order."""
    total = 0.0
    for i in range(g.size):
        value = np.float64(g[i])
        total += value * value
    return total


@kernel("base", (2,), 1.0)
def scale_by(g, factor):
    """Multiply `g`, float[n], by `factor` in place."""
    f = g.dtype.type(factor)
    for i in range(g.size):
        g[i] *= f

"""Losses and their gradients in one pass."""

import math

from kernels._jit import jit
from kernels.scalar import exp


@jit
def softmax_cross_entropy(logits, labels, scale, dlogits):  # noqa: ANN001, ANN201
    """Loss sum (float64) and correct answers of logits[m, c] for labels[m]; dlogits = (softmax - 1hot) * scale.

    The largest logit is taken off first, so nothing overflows. dlogits may be logits itself, so that no second copy of
    them exists; of size 0: only the loss is wanted.
    """
    m, c = logits.shape
    kind = logits.dtype.type
    wanted = dlogits.size > 0
    loss, correct = 0.0, 0
    for i in range(m):
        top, best = logits[i, 0], 0
        for j in range(1, c):
            if logits[i, j] > top:
                top, best = logits[i, j], j
        label = labels[i]
        here = logits[i, label] - top
        total = kind(0)
        if wanted:
            for j in range(c):
                power = exp(logits[i, j] - top)
                dlogits[i, j] = power
                total += power
            share = kind(scale) / total
            for j in range(c):
                dlogits[i, j] *= share
            dlogits[i, label] -= kind(scale)
        else:
            for j in range(c):
                total += exp(logits[i, j] - top)
        loss += math.log(total) - here
        correct += best == label
    return loss, correct


@jit
def mean_squared_error(prediction, target, scale, dprediction):  # noqa: ANN001, ANN201
    """Sum over rows of the mean squared error (float64); dprediction = 2 * error / c * scale (size 0: not wanted)."""
    m, c = prediction.shape
    wanted = dprediction.size > 0
    loss = 0.0
    for i in range(m):
        row = 0.0
        for j in range(c):
            error = prediction[i, j] - target[i, j]
            row += error * error
            if wanted:
                dprediction[i, j] = 2.0 * error / c * scale
        loss += row / c
    return loss

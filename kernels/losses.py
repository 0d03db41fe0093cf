"""Losses and their gradients. The gradient takes the place of the predictions: no second copy of them exists.

Always the same place, and never another array: whether two arrays may be one decides which machine code a loop takes,
and with it the order of its sums.
"""

import math

from kernels._jit import jit
from kernels.scalar import exp


@jit
def softmax_cross_entropy(logits, labels, scale):
    """Loss sum (float64) and correct answers of logits[m, c] for labels[m]; logits become (softmax - 1hot) * scale.

    The largest logit is taken off first, so nothing overflows. scale 0: only the loss is wanted, the logits stay.
    """
    m, c = logits.shape
    kind = logits.dtype.type
    loss, correct = 0.0, 0
    for i in range(m):
        top, best = logits[i, 0], 0
        for j in range(1, c):
            if logits[i, j] > top:
                top, best = logits[i, j], j
        label = labels[i]
        here = logits[i, label] - top
        total = kind(0)
        if scale > 0:
            for j in range(c):
                logits[i, j] = exp(logits[i, j] - top)
            for j in range(c):
                total += logits[i, j]
            share = kind(scale) / total
            for j in range(c):
                logits[i, j] *= share
            logits[i, label] -= kind(scale)
        else:
            for j in range(c):
                total += exp(logits[i, j] - top)
        loss += math.log(total) - here
        correct += best == label
    return loss, correct


@jit
def mean_squared_error(prediction, target, scale):
    """Sum over rows of the mean squared error (float64); prediction[m, c] becomes 2 * error / c * scale if wanted."""
    m, c = prediction.shape
    loss = 0.0
    for i in range(m):
        row = 0.0
        for j in range(c):
            error = prediction[i, j] - target[i, j]
            row += error * error
            if scale > 0:
                prediction[i, j] = 2.0 * error / c * scale
        loss += row / c
    return loss

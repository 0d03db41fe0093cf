"""Softmax and cross-entropy, for classes."""

import math

from kernels.loss import loss
from kernels.scalar import exp


@loss("cross-entropy", target="classes", probabilities="Softmax")
def softmax_cross_entropy(logits, labels, scale):
    """Cross-entropy of softmax(logits) for some labels. The largest logit is taken off first, so nothing overflows.

    Parameters
    ----------
    logits : array [m, c]
        Become (softmax - 1hot) * scale, the gradient; they stay if scale is 0.
    labels : int64 array [m]
        0 to c - 1.
    scale : float
        Factor of the gradient, or 0: only the loss is wanted.

    Returns
    -------
    float, float
        The sum of the losses (float64), and how many of the largest logits are the labels'.
    """
    m, c = logits.shape
    kind = logits.dtype.type
    total_loss, correct = 0.0, 0
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
        total_loss += math.log(total) - here
        correct += best == label
    return total_loss, float(correct)

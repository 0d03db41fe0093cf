"""Softmax and cross-entropy, for classes."""

import math

from ringtmp.kernels.loss import loss
from ringtmp.kernels.scalar import exp


@loss("cross-entropy", target="classes", probabilities="Softmax")
def softmax_cross_entropy(logits, labels, scale):
    """Cross-entropy of softmax(logits), summed over rows. The largest logit is subtracted first, so nothing overflows.

    Parameters
    ----------
    logits : float[m, c]
        Outputs; become the gradient (softmax - 1hot) * scale, or stay if `scale` is 0.
    labels : int64[m]
        Classes, each 0 to c - 1.
    scale : float
        Factor of the gradient, above 0; or 0 to compute the loss alone.

    Returns
    -------
    float, float
        Sum of the losses (float64); number of rows whose largest logit is the label's.
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

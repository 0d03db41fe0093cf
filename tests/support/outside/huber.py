"""Huber's loss, as somebody outside the package would add it: one file."""

import math

from ringtmp.kernels.loss import loss


@loss("huber", target="values")
def huber(prediction, target, scale):
    """Half the squared error of each number up to an error of 1, linear beyond; see `ringtmp.kernels.registry.Loss`."""
    m, c = prediction.shape
    total = 0.0
    for i in range(m):
        row = 0.0
        for j in range(c):
            error = prediction[i, j] - target[i, j]
            size = abs(error)
            row += 0.5 * size * size if size <= 1 else size - 0.5
            if scale > 0:
                prediction[i, j] = (error if size <= 1 else math.copysign(1.0, error)) / c * scale
        total += row / c
    return total, math.nan

"""Mean squared error, for values."""

import math

from kernels.loss import loss


@loss("mse", target="values", gives_r2=True)
def mean_squared_error(prediction, target, scale):
    """Mean squared error of each row.

    Parameters
    ----------
    prediction : array [m, c]
        Becomes 2 * error / c * scale, the gradient; it stays if scale is 0.
    target : array [m, c]
    scale : float
        Factor of the gradient, or 0: only the loss is wanted.

    Returns
    -------
    float, float
        The sum of the rows' errors (float64), and NaN: no prediction is right or wrong.
    """
    m, c = prediction.shape
    total_loss = 0.0
    for i in range(m):
        row = 0.0
        for j in range(c):
            error = prediction[i, j] - target[i, j]
            row += error * error
            if scale > 0:
                prediction[i, j] = 2.0 * error / c * scale
        total_loss += row / c
    return total_loss, math.nan

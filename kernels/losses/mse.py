"""Mean squared error, for values."""

import math

from ringtmp.kernels.loss import loss


@loss("mse", target="values", gives_r2=True)
def mean_squared_error(prediction, target, scale):
    """Mean squared error of each row, summed over rows.

    Parameters
    ----------
    prediction : float[m, c]
        Outputs; become the gradient 2 * error / c * scale, or stay if `scale` is 0.
    target : float[m, c]
        Values that the outputs should have.
    scale : float
        Factor of the gradient, above 0; or 0 to compute the loss alone.

    Returns
    -------
    float, float
        Sum of the rows' errors (float64); NaN, since no prediction is right or wrong.
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

"""Layer norm over the last axis and group norm over pixels and a group of channels: F, I and W apart.

x^ = (x - mean) / sqrt(variance + 1e-5); y = x^ * gain + bias (Ba et al. 2016; Wu & He 2018). F keeps the mean and
1 / deviation.
"""

import math

from ringtmp.kernels.compilation import kernel

EPSILON = 1e-5


@kernel("sequences", (2, 1), (1,), (1,), (2, 1), (2, 2))
def layer_norm_forward(x, gain, bias, y, moments):
    """Layer norm of each row.

    Parameters
    ----------
    x : float[m, n]
        Input.
    gain, bias : float[n]
        Parameters.
    y : float[m, n]
        Receives the result.
    moments : float[m, 2]
        Receives each row's mean and 1 / deviation.
    """
    m, n = x.shape
    kind = x.dtype.type
    for i in range(m):
        total = kind(0)
        for j in range(n):
            total += x[i, j]
        mean = total / kind(n)
        square = kind(0)
        for j in range(n):
            square += (x[i, j] - mean) * (x[i, j] - mean)
        scale = kind(1) / kind(math.sqrt(square / kind(n) + kind(EPSILON)))
        moments[i, 0], moments[i, 1] = mean, scale
        for j in range(n):
            y[i, j] = (x[i, j] - mean) * scale * gain[j] + bias[j]


@kernel("sequences", (2, 1), (1,), (2, 2), (2, 1), (2, 1))
def layer_norm_backward_input(x, gain, moments, dy, dx):
    """Gradient at `x`.

    Parameters
    ----------
    x : float[m, n]
        Input of F.
    gain : float[n]
        Parameter.
    moments : float[m, 2]
        Kept by F.
    dy : float[m, n]
        Gradient at y; stays.
    dx : float[m, n]
        Receives the gradient at x.
    """
    m, n = x.shape
    kind = x.dtype.type
    for i in range(m):
        mean, scale = moments[i, 0], moments[i, 1]
        plain, along = kind(0), kind(0)
        for j in range(n):
            g = dy[i, j] * gain[j]
            plain += g
            along += g * (x[i, j] - mean)
        plain, along = plain / kind(n), along * scale * scale / kind(n)
        for j in range(n):
            dx[i, j] = scale * (dy[i, j] * gain[j] - plain - (x[i, j] - mean) * along)


@kernel("sequences", (2, 1), (2, 2), (2, 1), (1,), (1,), False)
def layer_norm_backward_weight(x, moments, dy, grad_gain, grad_bias, add):
    """Gradients of gain and bias, summed over rows in ascending order.

    Parameters
    ----------
    x : float[m, n]
        Input of F.
    moments : float[m, 2]
        Kept by F.
    dy : float[m, n]
        Gradient at y.
    grad_gain, grad_bias : float[n]
        Receive the gradients.
    add : bool
        Whether to add to the contents of both instead of replacing them.
    """
    m, n = x.shape
    if not add:
        grad_gain[:] = 0
        grad_bias[:] = 0
    for i in range(m):
        mean, scale = moments[i, 0], moments[i, 1]
        for j in range(n):
            grad_gain[j] += dy[i, j] * (x[i, j] - mean) * scale
        for j in range(n):
            grad_bias[j] += dy[i, j]


@kernel("images", (1, 2, 2, 1), (1, 1), (1, 1), (1, 2, 2, 1), (1, 2, 2))
def group_norm_forward(x, gain, bias, y, moments):
    """Group norm of each sample and group of channels.

    Parameters
    ----------
    x : float[m, pixels, groups, n]
        Input; n channels in each group.
    gain, bias : float[groups, n]
        Parameters.
    y : float[m, pixels, groups, n]
        Receives the result.
    moments : float[m, groups, 2]
        Receives each group's mean and 1 / deviation.
    """
    m, pixels, groups, n = x.shape
    kind = x.dtype.type
    count = kind(pixels * n)
    for i in range(m):
        for g in range(groups):
            total = kind(0)
            for p in range(pixels):
                for j in range(n):
                    total += x[i, p, g, j]
            mean = total / count
            square = kind(0)
            for p in range(pixels):
                for j in range(n):
                    square += (x[i, p, g, j] - mean) * (x[i, p, g, j] - mean)
            scale = kind(1) / kind(math.sqrt(square / count + kind(EPSILON)))
            moments[i, g, 0], moments[i, g, 1] = mean, scale
            for p in range(pixels):
                for j in range(n):
                    y[i, p, g, j] = (x[i, p, g, j] - mean) * scale * gain[g, j] + bias[g, j]


@kernel("images", (1, 2, 2, 1), (1, 1), (1, 2, 2), (1, 2, 2, 1), (1, 2, 2, 1))
def group_norm_backward_input(x, gain, moments, dy, dx):
    """Gradient at `x`.

    Parameters
    ----------
    x : float[m, pixels, groups, n]
        Input of F.
    gain : float[groups, n]
        Parameter.
    moments : float[m, groups, 2]
        Kept by F.
    dy : float[m, pixels, groups, n]
        Gradient at y; stays.
    dx : float[m, pixels, groups, n]
        Receives the gradient at x.
    """
    m, pixels, groups, n = x.shape
    kind = x.dtype.type
    count = kind(pixels * n)
    for i in range(m):
        for g in range(groups):
            mean, scale = moments[i, g, 0], moments[i, g, 1]
            plain, along = kind(0), kind(0)
            for p in range(pixels):
                for j in range(n):
                    d = dy[i, p, g, j] * gain[g, j]
                    plain += d
                    along += d * (x[i, p, g, j] - mean)
            plain, along = plain / count, along * scale * scale / count
            for p in range(pixels):
                for j in range(n):
                    centred = x[i, p, g, j] - mean
                    dx[i, p, g, j] = scale * (dy[i, p, g, j] * gain[g, j] - plain - centred * along)


@kernel("images", (1, 2, 2, 1), (1, 2, 2), (1, 2, 2, 1), (1, 1), (1, 1), False)
def group_norm_backward_weight(x, moments, dy, grad_gain, grad_bias, add):
    """Gradients of gain and bias, summed over samples and pixels in ascending order.

    Parameters
    ----------
    x : float[m, pixels, groups, n]
        Input of F.
    moments : float[m, groups, 2]
        Kept by F.
    dy : float[m, pixels, groups, n]
        Gradient at y.
    grad_gain, grad_bias : float[groups, n]
        Receive the gradients.
    add : bool
        Whether to add to the contents of both instead of replacing them.
    """
    m, pixels, groups, n = x.shape
    if not add:
        grad_gain[:] = 0
        grad_bias[:] = 0
    for i in range(m):
        for p in range(pixels):
            for g in range(groups):
                mean, scale = moments[i, g, 0], moments[i, g, 1]
                for j in range(n):
                    grad_gain[g, j] += dy[i, p, g, j] * (x[i, p, g, j] - mean) * scale
                    grad_bias[g, j] += dy[i, p, g, j]

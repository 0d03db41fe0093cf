"""Max and average pooling over square windows of images [m, height, width, channels].

There is no padding; pixels at the right and lower edge that fill no window are left out.
"""

from ringtmp.kernels.compilation import kernel


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), 1, 1)
def max_pool_forward(x, y, size, stride):
    """Largest value of each window and channel; NaN if the window holds one.

    Parameters
    ----------
    x : float[m, H, W, c]
        Input.
    y : float[m, h, w, c]
        Receives the result.
    size, stride : int
        Side of a window and distance between windows, in pixels, each 1 or more.
    """
    m, h, w, c = y.shape
    for i in range(m):
        for u in range(h):
            for v in range(w):
                for j in range(c):
                    y[i, u, v, j] = x[i, u * stride, v * stride, j]
                for a in range(size):
                    for b in range(size):
                        for j in range(c):
                            here, best = x[i, u * stride + a, v * stride + b, j], y[i, u, v, j]
                            y[i, u, v, j] = best if here <= best or best != best else here


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), (1, 2, 2, 1), (1, 2, 2, 1), 1, 1)
def max_pool_backward_input(x, y, dy, dx, size, stride):
    """Gradient at `x`: that of each window goes to the first pixel that holds the window's largest value.

    Parameters
    ----------
    x : float[m, H, W, c]
        Input of F.
    y : float[m, h, w, c]
        Result of F.
    dy : float[m, h, w, c]
        Gradient at y; overwritten.
    dx : float[m, H, W, c]
        Receives the gradient at x.
    size, stride : int
        Those of `max_pool_forward`.
    """
    m, h, w, c = y.shape
    zero = x.dtype.type(0)
    for i in range(m):
        dx[i] = 0
        for u in range(h):
            for v in range(w):
                for a in range(size):
                    for b in range(size):
                        for j in range(c):
                            hit = x[i, u * stride + a, v * stride + b, j] == y[i, u, v, j]
                            dx[i, u * stride + a, v * stride + b, j] += dy[i, u, v, j] if hit else zero
                            dy[i, u, v, j] = zero if hit else dy[i, u, v, j]


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), 1, 1)
def average_pool_forward(x, y, size, stride):
    """Mean of each window and channel.

    Parameters
    ----------
    x : float[m, H, W, c]
        Input.
    y : float[m, h, w, c]
        Receives the result.
    size, stride : int
        Side of a window and distance between windows, in pixels, each 1 or more.
    """
    m, h, w, c = y.shape
    share = x.dtype.type(1 / (size * size))
    for i in range(m):
        for u in range(h):
            for v in range(w):
                for j in range(c):
                    y[i, u, v, j] = 0
                for a in range(size):
                    for b in range(size):
                        for j in range(c):
                            y[i, u, v, j] += x[i, u * stride + a, v * stride + b, j] * share


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), 1, 1)
def average_pool_backward_input(dy, dx, size, stride):
    """Gradient at `x`: that of each window is spread evenly over its pixels.

    Parameters
    ----------
    dy : float[m, h, w, c]
        Gradient at y; stays.
    dx : float[m, H, W, c]
        Receives the gradient at x.
    size, stride : int
        Those of `average_pool_forward`.
    """
    m, h, w, c = dy.shape
    share = dy.dtype.type(1 / (size * size))
    for i in range(m):
        dx[i] = 0
        for u in range(h):
            for v in range(w):
                for a in range(size):
                    for b in range(size):
                        for j in range(c):
                            dx[i, u * stride + a, v * stride + b, j] += dy[i, u, v, j] * share

"""Max and average pooling over square windows of images [m, height, width, channels]: no padding, cut at the edge."""

from kernels.registry import kernel


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), 1, 1)
def max_pool_forward(x, y, size, stride):
    """y[m, h, w, c] = the largest of each window; a NaN in a window is the result."""
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
    """dx = dy at the first place of each window that holds its largest value, else 0. dy is used up."""
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
    """y[m, h, w, c] = the mean of each window."""
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
    """dx = dy spread evenly over each window."""
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

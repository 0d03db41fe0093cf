"""Kernels of a SwiGLU layer, y = silu(x gate) (x up), in plain loops."""

import math

from ringtmp.kernels.compilation import kernel


@kernel("swiglu", (2, 3), (3, 2), (3, 2), (2, 2), (2, 2), (2, 2))
def swiglu_forward(x, gate, up, y, a, b):
    """y[m, n] of x[m, k]; a[m, n] takes x gate, b[m, n] takes x up."""
    for i in range(x.shape[0]):
        a[i] = 0
        b[i] = 0
        for q in range(x.shape[1]):
            for j in range(y.shape[1]):
                a[i, j] += x[i, q] * gate[q, j]
                b[i, j] += x[i, q] * up[q, j]
        for j in range(y.shape[1]):
            y[i, j] = a[i, j] / (1 + math.exp(-a[i, j])) * b[i, j]


@kernel("swiglu", (3, 2), (3, 2), (2, 2), (2, 2), (2, 2), (2, 3))
def swiglu_backward_input(gate, up, dy, a, b, dx):
    """a and b become the gradients at x gate and x up; dx[m, k] follows (left out if of size 0)."""
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            s = 1 / (1 + math.exp(-a[i, j]))
            da = dy[i, j] * b[i, j] * s * (1 + a[i, j] * (1 - s))
            b[i, j] = dy[i, j] * a[i, j] * s
            a[i, j] = da
        if dx.size > 0:
            for q in range(dx.shape[1]):
                total = dx.dtype.type(0)
                for j in range(dy.shape[1]):
                    total += a[i, j] * gate[q, j] + b[i, j] * up[q, j]
                dx[i, q] = total


@kernel("swiglu", (2, 3), (2, 2), (2, 2), (3, 2), (3, 2), False)
def swiglu_backward_weight(x, a, b, grad_gate, grad_up, add):
    """Gradients of gate and up [k, n], rows in ascending order, added onto what they hold if `add`."""
    if not add:
        grad_gate[:] = 0
        grad_up[:] = 0
    for i in range(x.shape[0]):
        for q in range(x.shape[1]):
            for j in range(a.shape[1]):
                grad_gate[q, j] += x[i, q] * a[i, j]
                grad_up[q, j] += x[i, q] * b[i, j]

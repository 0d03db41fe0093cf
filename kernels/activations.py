"""Activations by code, as compiled code tells them apart: forward on a matrix in place, and the way back."""

from kernels.registry import kernel
from kernels.scalar import INV_SQRT_2PI, normal, tanh

ACTIVATIONS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3, "gelu": 4, "silu": 5}
LINEAR, RELU, TANH, SIGMOID, GELU, SILU = range(6)
SLOPED = ("gelu", "silu")  # their slope does not follow from their value: F keeps it


@kernel("base", (2, 2), (2, 2), 0, 2, 0)
def activate(y, slope, first, last, activation):
    """Rows `first`...`last` - 1 of y[m, n] become activation(y); slope[m, n] takes its derivative if `SLOPED`."""
    kind = y.dtype.type
    n = y.shape[1]
    one, half = kind(1), kind(0.5)
    for i in range(first, last):
        if activation == RELU:
            for j in range(n):
                y[i, j] = kind(0) if y[i, j] < 0 else y[i, j]  # NaN stays: the comparison is false for it
        elif activation == TANH:
            for j in range(n):
                y[i, j] = tanh(y[i, j])
        elif activation == SIGMOID:
            for j in range(n):
                y[i, j] = half + half * tanh(half * y[i, j])
        elif activation == GELU:
            for j in range(n):
                z = y[i, j]
                below, density = normal(z)
                slope[i, j] = below + z * kind(INV_SQRT_2PI) * density
                y[i, j] = z * below
        elif activation == SILU:
            for j in range(n):
                z = y[i, j]
                gate = half + half * tanh(half * z)
                slope[i, j] = gate * (one + z * (one - gate))
                y[i, j] = z * gate


@kernel("base", (2, 2), (2, 2), (2, 2), 0, 2, 0)
def deactivate(y, slope, dy, first, last, activation):
    """The gradient at y, in dy[m, n], becomes the gradient before the activation."""
    kind = y.dtype.type
    n = dy.shape[1]
    zero, one = kind(0), kind(1)
    for i in range(first, last):
        if activation == RELU:
            for j in range(n):
                dy[i, j] = zero if y[i, j] <= 0 else dy[i, j]
        elif activation == TANH:
            for j in range(n):
                dy[i, j] *= one - y[i, j] * y[i, j]
        elif activation == SIGMOID:
            for j in range(n):
                dy[i, j] *= y[i, j] * (one - y[i, j])
        elif activation >= GELU:
            for j in range(n):
                dy[i, j] *= slope[i, j]

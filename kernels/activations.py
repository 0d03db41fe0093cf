"""Activations by code, as compiled code tells them apart: forward on a matrix in place, and the way back."""

from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.scalar import INV_SQRT_2PI, normal, tanh

ACTIVATIONS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3, "gelu": 4, "silu": 5}
LINEAR, RELU, TANH, SIGMOID, GELU, SILU = range(6)
SLOPED = ("gelu", "silu")  # their slope does not follow from their value: F keeps it


@kernel("base", (2, 2), (2, 2), 0, 2, 0)
def activate(y, slope, first, last, activation):
    """Apply the activation to rows `first` to `last` - 1 of `y`, in place.

    Parameters
    ----------
    y : float[m, n]
        Values before the activation; replaced by those after it.
    slope : float[m, n]
        Receives the activation's derivative if the activation is in `SLOPED`; otherwise unused, of any size.
    first, last : int
        Range of rows, 0 <= first <= last <= m.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    """
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
    """Multiply rows `first` to `last` - 1 of `dy` by the activation's derivative, in place.

    Parameters
    ----------
    y : float[m, n]
        Values after the activation, from F.
    slope : float[m, n]
        Derivatives kept by `activate`, if the activation is in `SLOPED`; otherwise unused, of any size.
    dy : float[m, n]
        Gradient at y; becomes the gradient at the values before the activation.
    first, last : int
        Range of rows, 0 <= first <= last <= m.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    """
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

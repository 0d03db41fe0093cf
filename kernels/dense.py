"""The dense layer: y = activation(x @ weight + bias), forward, I and W apart, on the register tile.

Weights lie in panels (`ringtmp.kernels.gemm`), and beside them their transpose, made once per step. Element-wise work
is done on blocks of rows that are still in the cache.
"""

from ringtmp.kernels.activations import LINEAR, RELU, activate, deactivate
from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.gemm import across, along, column_sums, rows_to_panels

_ROWS = 64  # of a block that stays in the cache between product and activation


@kernel("base", (2, 2), (16,), (2,), (2, 2), (2, 2), 0)
def dense_forward(x, weight, bias, y, slope, activation):
    """Multiply, add the bias and apply the activation: y = activation(x @ weight + bias).

    Parameters
    ----------
    x : float[m, k]
        Input.
    weight : float[k * n]
        Matrix [k, n] in panels.
    bias : float[n]
        Added to each row; of size 0: no bias.
    y : float[m, n]
        Receives the result.
    slope : float[m, n]
        Receives the activation's derivative if the activation is in `SLOPED`; otherwise unused, of any size.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    """
    m, n = y.shape
    k = x.shape[1]
    a, c = x.reshape(x.size), y.reshape(y.size)
    start = 2 if bias.size > 0 else 0
    if activation == LINEAR or activation == RELU:  # noqa: SIM109 - compiled
        along(a, 0, k, weight, 0, 0, c, 0, n, m, n, k, start, activation == RELU, bias)
        return
    for first in range(0, m, _ROWS):
        last = min(m, first + _ROWS)
        along(a, first * k, k, weight, 0, 0, c, first * n, n, last - first, n, k, start, False, bias)
        activate(y, slope, first, last, activation)


@kernel("base", (2, 2), (2, 2), (2, 2), (16,), (2, 2), 0)
def dense_backward_input(y, slope, dy, transposed, dx, activation):
    """Gradients before the activation and at `x`: dx = dy @ weight.T.

    Parameters
    ----------
    y : float[m, n]
        Result of F.
    slope : float[m, n]
        Kept by F if the activation is in `SLOPED`; otherwise unused, of any size.
    dy : float[m, n]
        Gradient at y; becomes the gradient at x @ weight + bias, which W needs.
    transposed : float[n * k]
        weight.T, a matrix [n, k] in panels.
    dx : float[m, k]
        Receives the gradient at x; not computed if its size is 0.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    """
    m, n = dy.shape
    k = dx.shape[1]
    a, c = dy.reshape(dy.size), dx.reshape(dx.size)
    for first in range(0, m, _ROWS):
        last = min(m, first + _ROWS)
        if activation != LINEAR:
            deactivate(y, slope, dy, first, last, activation)
        if dx.size > 0:
            along(a, first * n, n, transposed, 0, 0, c, first * k, k, last - first, k, n, 0, False, a)


@kernel("base", (2, 2), (2, 2), (16,), 0, 2)
def dense_stack(x, delta, room, at, total):
    """Copy a micro-batch's rows into the panels that one product of W takes.

    Parameters
    ----------
    x : float[m, k]
        Input of F.
    delta : float[m, n]
        Gradient before the activation, from `dense_backward_input`.
    room : float[total * (k + n)]
        Receives two matrices in panels: inputs [total, k], then gradients [total, n].
    at, total : int
        First row that this micro-batch takes; rows of both matrices, at least at + m.
    """
    m, k = x.shape
    n = delta.shape[1]
    rows_to_panels(x.reshape(x.size), 0, k, m, k, room, 0, total, at)
    rows_to_panels(delta.reshape(delta.size), 0, n, m, n, room, total * k, total, at)


@kernel("base", (16,), 2, 2, 2, (4,), (2,), False)
def dense_backward_weight(room, total, k, n, grad_weight, grad_bias, add):
    """Gradients of weight and bias: x.T @ delta, and the column sums of delta.

    Parameters
    ----------
    room : float[total * (k + n)]
        Stacked inputs and gradients, from `dense_stack`.
    total, k, n : int
        Rows of both matrices; columns of the inputs; columns of the gradients.
    grad_weight : float[k * n]
        Receives the gradient of the weights, a matrix [k, n] in panels.
    grad_bias : float[n]
        Receives the gradient of the bias; of size 0: no bias.
    add : bool
        Whether to add to the contents of `grad_weight` and `grad_bias` instead of replacing them.
    """
    across(room, 0, 0, room, total * k, 0, grad_weight, 0, 0, k, n, total, add)
    if grad_bias.size > 0:
        column_sums(room, total * k, 0, total, n, grad_bias, add)

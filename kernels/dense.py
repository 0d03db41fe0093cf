"""The dense layer: y = activation(x @ weight + bias), forward, I and W apart, on the register tile.

Weights lie in panels (`kernels.gemm`), and beside them their transpose, made once per step. Element-wise work is done
on blocks of rows that are still in the cache.
"""

from kernels.activations import LINEAR, RELU, activate, deactivate
from kernels.gemm import across, along, column_sums, rows_to_panels
from kernels.registry import kernel

_ROWS = 64  # of a block that stays in the cache between product and activation


@kernel("base", (2, 2), (16,), (2,), (2, 2), (2, 2), 0)
def dense_forward(x, weight, bias, y, slope, activation):
    """y[m, n] = activation(x[m, k] @ weight + bias[n]); weight [k, n] in panels; bias of size 0: none.

    slope[m, n] takes the activation's derivative where y does not give it (`SLOPED`).
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
    """dy[m, n] becomes the gradient at x @ weight + bias; dx[m, k] = that @ weight.T (left out if dx has size 0).

    transposed: weight.T [n, k] in panels.
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
    """Rows x[m, k] and delta[m, n] become rows `at`... of `total` in panels, in room[total * (k + n)], for W."""
    m, k = x.shape
    n = delta.shape[1]
    rows_to_panels(x.reshape(x.size), 0, k, m, k, room, 0, total, at)
    rows_to_panels(delta.reshape(delta.size), 0, n, m, n, room, total * k, total, at)


@kernel("base", (16,), 2, 2, 2, (4,), (2,), False)
def dense_backward_weight(room, total, k, n, grad_weight, grad_bias, add):
    """grad_weight (in panels) and grad_bias[n] = x.T @ delta and the column sums of delta, from `dense_stack`.

    Added onto what is there if `add`.
    """
    across(room, 0, 0, room, total * k, 0, grad_weight, 0, 0, k, n, total, add)
    if grad_bias.size > 0:
        column_sums(room, total * k, 0, total, n, grad_bias, add)

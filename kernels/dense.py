"""The dense layer: y = activation(x @ weight + bias), forward, I and W apart.

The products are the BLAS's; everything element-wise is one pass over memory, fused with its neighbour.
"""

import math

from kernels._jit import jit
from kernels.activations import GELU, INV_SQRT_2PI, RELU, SIGMOID, SQRT_HALF, TANH
from kernels.blas import gemm


@jit
def dense_forward(x, weight, bias, y, slope, activation):  # noqa: ANN001, ANN201
    """y[m, n] = activation(x[m, k] @ weight[k, n] + bias[n]); bias of size 0: none; slope[m, n]: of gelu at z."""
    gemm(x, weight, y, False, False, 0.0)
    m, n = y.shape
    one = y.dtype.type(1)
    half = y.dtype.type(0.5)
    biased = bias.size > 0
    for i in range(m):
        if biased:
            for j in range(n):
                y[i, j] += bias[j]
        if activation == RELU:
            for j in range(n):
                # NaN stays NaN: the comparison is false for it.
                y[i, j] = y.dtype.type(0) if y[i, j] < 0 else y[i, j]
        elif activation == TANH:
            for j in range(n):
                y[i, j] = math.tanh(y[i, j])
        elif activation == SIGMOID:
            for j in range(n):
                y[i, j] = half + half * math.tanh(half * y[i, j])
        elif activation == GELU:
            for j in range(n):
                z = y[i, j]
                below = half * (one + math.erf(z * y.dtype.type(SQRT_HALF)))
                slope[i, j] = below + z * y.dtype.type(INV_SQRT_2PI) * math.exp(-half * z * z)
                y[i, j] = z * below


@jit
def dense_backward_input(y, slope, dy, weight, dx, activation):  # noqa: ANN001, ANN201
    """dy[m, n] becomes the gradient at x @ weight + bias; dx[m, k] = that @ weight.T (left out if dx has size 0)."""
    m, n = y.shape
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if activation == RELU:
        for i in range(m):
            for j in range(n):
                dy[i, j] = zero if y[i, j] <= 0 else dy[i, j]
    elif activation == TANH:
        for i in range(m):
            for j in range(n):
                dy[i, j] *= one - y[i, j] * y[i, j]
    elif activation == SIGMOID:
        for i in range(m):
            for j in range(n):
                dy[i, j] *= y[i, j] * (one - y[i, j])
    elif activation == GELU:
        for i in range(m):
            for j in range(n):
                dy[i, j] *= slope[i, j]
    if dx.size > 0:
        gemm(dy, weight, dx, False, True, 0.0)


@jit
def dense_backward_weight(x, delta, grad_weight, grad_bias, beta):  # noqa: ANN001, ANN201
    """grad_weight = x.T @ delta + beta * grad_weight by the product itself; grad_bias = row sum + beta * grad_bias."""
    gemm(x, delta, grad_weight, True, False, beta)
    if grad_bias.size > 0:
        if beta == 0:
            grad_bias[:] = 0
        for i in range(delta.shape[0]):
            for j in range(delta.shape[1]):
                grad_bias[j] += delta[i, j]

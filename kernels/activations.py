"""Activations by code, and their slopes."""

import math

from kernels._jit import inline

ACTIVATIONS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3, "gelu": 4}
LINEAR, RELU, TANH, SIGMOID, GELU = range(5)

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


@inline
def sigmoid(z):  # noqa: ANN001, ANN201
    """1 / (1 + exp(-z)), without overflow."""
    return 0.5 + 0.5 * math.tanh(0.5 * z)

"""Activations by code, as compiled code tells them apart, and constants of GELU."""

import math

ACTIVATIONS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3, "gelu": 4}
LINEAR, RELU, TANH, SIGMOID, GELU = range(5)

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)

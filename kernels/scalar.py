"""exp, tanh and the normal distribution for float32 in polynomials, which compilers turn into vectors; float64 by libm.

A call into libm stops a loop from becoming vectors, and no vector library comes with Numba. The polynomials are our own
fits (linear programming for the least maximum error, in float64); the error stands beside each.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic, overload

from ringtmp.kernels._jit import FAST, jit

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


@intrinsic
def _power_of_two(typingctx, n):
    """2^n in float32 for an int32 n from -126 to 127, by writing the exponent's bits."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        bits = b.shl(b.add(arguments[0], ir.Constant(ir.IntType(32), 127)), ir.Constant(ir.IntType(32), 23))
        return b.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), codegen


@jit
def _exp32(x):
    """Relative error 3e-7; 0 below -87.3 (where results would be denormal); the largest power above 88.3; NaN stays."""
    z = float32(88.3) if x > float32(88.3) else x
    z = float32(-87.3) if z < float32(-87.3) else z
    n = np.floor(z * float32(_LOG2E) + float32(0.5))
    r = z - n * float32(_LN2_HIGH) - n * float32(_LN2_LOW)
    p = float32(0.0013949471)
    p = p * r + float32(0.00837420158)
    p = p * r + float32(0.0416657228)
    p = p * r + float32(0.166664625)
    p = p * r + float32(0.500000069)
    p = p * r * r + r + float32(1)
    return float32(0) if x < float32(-87.3) else p * _power_of_two(types.int32(n))


@jit
def _tanh32(x):
    """Relative error 2e-7: a polynomial about 0, else by exp."""
    a = abs(x)
    s = x * x
    p = float32(-0.00581734143)
    p = p * s + float32(0.0207586785)
    p = p * s + float32(-0.0537846177)
    p = p * s + float32(0.133321467)
    p = p * s + float32(-0.333333222)
    near = x + x * s * p
    far = float32(1) - float32(2) / (_exp32(float32(2) * (float32(9.1) if a > float32(9.1) else a)) + float32(1))
    return near if a < float32(0.625) else (-far if x < 0 else far)


@jit
def _normal32(z):
    """Distribution and density of the standard normal at z, without the density's factor 1 / sqrt(2 pi).

    erfc(a) = t P(t) exp(-a^2) with t = 1 / (1 + 0.4 a), error 2.8e-8 (the form of Hastings 1955).
    """
    a = abs(z) * float32(SQRT_HALF)
    t = float32(1) / (float32(1) + float32(0.4) * a)
    p = float32(-0.200249232)
    p = p * t + float32(0.709107351)
    p = p * t + float32(-0.37084496)
    p = p * t + float32(0.468225363)
    p = p * t + float32(0.161842105)
    p = p * t + float32(0.231919346)
    density = _exp32(-a * a)
    tail = float32(0.5) * t * p * density
    return (tail if z < 0 else float32(1) - tail), density


def exp(x):
    """e^x of a number `x`, in the precision of x."""
    return math.exp(x) if x < 709 else math.inf


def tanh(x):
    """Hyperbolic tangent of a number `x`, in the precision of x."""
    return math.tanh(x)


def normal(z):
    """Distribution of the standard normal at a number `z`, and exp(-z^2 / 2), in the precision of z."""
    return 0.5 * (1 + math.erf(z * SQRT_HALF)), math.exp(-0.5 * z * z)


_OPTIONS: Any = {"fastmath": FAST, "error_model": "numpy"}


@overload(exp, jit_options=_OPTIONS)
def _(x):
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(tanh, jit_options=_OPTIONS)
def _(x):
    return (lambda x: _tanh32(x)) if x == types.float32 else (lambda x: math.tanh(x))


@overload(normal, jit_options=_OPTIONS)
def _(z):
    if z == types.float32:
        return lambda z: _normal32(z)
    return lambda z: (0.5 * (1.0 + math.erf(z * SQRT_HALF)), math.exp(-0.5 * z * z))

"""What one core of this machine can do: its peak and its bandwidth, measured."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from ringtmp.kernels._jit import jit
from ringtmp.kernels.gemm import along


def best(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Shortest time of a call, in seconds.

    Parameters
    ----------
    call : callable
        Called without arguments: once untimed, then timed until both limits are reached.
    seconds : float
        Least total time of the timed calls; there are at least five.
    """
    call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@jit
def _products(a, b, c, m, n, k, times):
    for _ in range(times):
        along(a, 0, k, b, 0, 0, c, 0, n, m, n, k, 0, False, c)


def peak_flops(dtype: DTypeLike) -> float:
    """Floating-point operations per second of one core, for products whose operands stay in its first-level cache.

    Parameters
    ----------
    dtype : numpy dtype
        float32 or float64.
    """
    m, n, k, times = 16, 32, 96, 2000
    a, b, c = np.ones(m * k, dtype), np.ones(k * n, dtype), np.ones(m * n, dtype)
    return times * 2.0 * m * n * k / best(lambda: _products(a, b, c, m, n, k, times))


def bandwidth(size: int = 1 << 28) -> float:
    """Bytes per second that one core reads and writes outside its caches (a copy; each byte counts twice).

    Parameters
    ----------
    size : int
        Bytes of the array that is copied; well above the last-level cache.
    """
    a, b = np.ones(size // 8), np.zeros(size // 8)
    return 2.0 * a.nbytes / best(lambda: np.copyto(b, a))

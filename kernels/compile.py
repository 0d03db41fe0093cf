"""Compiles every kernel once per machine, however many processes start at the same time."""

import fcntl
import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numpy.typing import DTypeLike

from kernels._jit import CACHE
from kernels.dense import dense_backward_input, dense_backward_weight, dense_forward
from kernels.losses import mean_squared_error, softmax_cross_entropy
from kernels.optimizers import adam, adamw, momentum, sgd


def compile_all(dtype: DTypeLike, log: Callable[[str], None] | None = None) -> float:
    """Make every kernel ready for `dtype` in this process; returns the seconds that took.

    Numba's cache breaks when processes fill it together. The first one to take a lock compiles, and leaves a stamp;
    the others wait for the lock, find the stamp, and only load. `log` gets a line before a real compilation.
    """
    began = time.perf_counter()
    stamp = CACHE / f"stamp-{_fingerprint(np.dtype(dtype))}"
    if stamp.exists():
        _call_each(dtype)
        return time.perf_counter() - began
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            if log:
                log(f"compiling the {np.dtype(dtype).name} kernels, once for this machine ...")
            _call_each(dtype)
            stamp.touch()
    _call_each(dtype)
    return time.perf_counter() - began


def _fingerprint(dtype: np.dtype) -> str:
    folder = Path(__file__).resolve().parent
    facts = [str(folder), numba.__version__, llvmlite.__version__, platform.python_version(), dtype.name,
             llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()]  # fmt: skip
    for source in sorted(folder.glob("*.py")):
        # Numba's own key is the file's time and size, so a touched file must give another stamp as well.
        facts.append(f"{source.name} {source.stat().st_mtime_ns} {source.read_text()}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


def _call_each(dtype: DTypeLike) -> None:
    """Call every kernel on tiny arrays; each has one signature per dtype."""
    a, v, labels = np.ones((2, 2), dtype), np.ones(2, dtype), np.zeros(2, np.int64)
    dense_forward(a, a, v, a, a, 0)
    dense_backward_input(a, a, a, a, a, 0)
    dense_backward_weight(a, a, a, v, 0.0)
    softmax_cross_entropy(a, labels, 1.0, a)
    mean_squared_error(a, a, 1.0, a)
    sgd(v, v, 0.0, 0.0)
    momentum(v, v, v, 0.0, 0.0, 0.0)
    adam(v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)
    adamw(v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)

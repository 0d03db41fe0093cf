"""Compilation of the kernels ahead of time: once per machine, by the first process.

    @kernel("images", (1, 2, 2, 1), 1)
    def some_kernel(x, stride): ...

compiles the function when it is called, and records the arguments of a small call, with which `prepare_kernels`
compiles it before training starts. Kernels come in families, so that a dense network does not wait for the compilation
of convolutions; a family is what the imported modules, here or outside, have declared for it.
"""

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
from numpy.typing import DTypeLike

from ringtmp.kernels._jit import CACHE, config, jit, stamp_of


class _Call(NamedTuple):
    """A compiled function and the arguments of a small call."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]


_FAMILIES: dict[str, list[_Call]] = {}


def kernel(family: str, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function with Numba and declare it as a kernel of `family`.

    Parameters
    ----------
    family : str
        Kernels that are needed together: a layer names the family that it needs (`Layer.family`).
    *arguments
        Arguments of one small call. A tuple of int stands for an array of ones of that shape and of the run's dtype;
        all else, named tuples included, is passed as it is. Kernels may overwrite their arguments.

    Returns
    -------
    callable
        The decorator; it returns the compiled function.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jit(function)
        declare(family, compiled, *arguments)
        return compiled

    return decorate


def declare(family: str, compiled: Callable[..., Any], *arguments: Any) -> None:
    """Let `prepare_kernels` make this call of a compiled function; declare one call for each signature of real calls.

    Parameters
    ----------
    family : str
        Family that the function is compiled with.
    compiled : callable
        Function compiled by `jit`.
    *arguments
        Arguments of the small call, in the form that `kernel` takes.
    """
    _FAMILIES.setdefault(family, []).append(_Call(compiled, arguments))


def prepare_kernels(
    dtype: DTypeLike, families: Iterable[str] = ("base",), log: Callable[[str], None] | None = None
) -> float:
    """Make the declared kernels of `families` ready for `dtype` in this process.

    Numba's cache breaks when processes fill it together. The first process to take a lock compiles, and leaves a stamp;
    the others wait for the lock, find the stamp, and only load. The stamp covers the kernels declared so far: a process
    that has imported more of them takes the lock again.

    Parameters
    ----------
    dtype : numpy dtype
        float32 or float64.
    families : iterable of str
        Names of the families.
    log : callable, optional
        Receives one line of text before a compilation that is not loaded from the cache.

    Returns
    -------
    float
        Seconds that compiling or loading took.

    Raises
    ------
    KeyError
        No imported module declares a kernel of a family.
    """
    began = time.perf_counter()
    dtype = np.dtype(dtype)
    for family in sorted(set(families)):
        stamp = CACHE / f"stamp-{family}-{_fingerprint(family, dtype)}"
        if not stamp.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with (CACHE / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not stamp.exists():
                    if log:
                        log(f"compiling the {family} kernels for {dtype.name}, once for this machine ...")
                    _call(family, dtype)
                    stamp.touch()
        _call(family, dtype)
    return time.perf_counter() - began


def _call(family: str, dtype: np.dtype) -> None:
    for run, arguments in _FAMILIES[family]:
        run(*(np.ones(each, dtype) if type(each) is tuple else each for each in arguments))


def _fingerprint(family: str, dtype: np.dtype) -> str:
    """Digest of the machine, the dtype and the sources of a family's kernels."""
    facts = [_machine(), dtype.name, str(config.CPU_NAME), str(config.CPU_FEATURES)]
    for run, _ in _FAMILIES[family]:
        function = getattr(run, "py_func", run)
        facts.append(f"{function.__module__} {function.__qualname__} {stamp_of(function)}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


@cache
def _machine() -> str:
    """Facts besides the sources that compiled code depends on; `CACHE` stands for the sources of this package."""
    folder = Path(__file__).absolute().parent  # as Numba's cache has it: with its links
    facts = [
        str(CACHE),
        str(folder),
        numba.__version__,
        llvmlite.__version__,
        platform.python_version(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    ]
    # Before 0.68, Numba's own key is a file's time and size, so a touched file must give another stamp as well.
    facts += [f"{path.name} {os.stat(path).st_mtime_ns}" for path in sorted(folder.rglob("*.py"))]
    return "\n".join(facts)

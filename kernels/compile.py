"""Compiles kernels once per machine, however many processes start at the same time.

Kernels come in families, so that a dense network does not wait for the compilation of convolutions.
"""

import fcntl
import hashlib
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numpy.typing import DTypeLike

from kernels._jit import CACHE, config
from kernels.activations import activate, deactivate
from kernels.attention import attention_backward_input, attention_forward
from kernels.conv import conv_backward_input, conv_backward_weight, conv_forward, conv_turn
from kernels.denormals import flush_denormals
from kernels.dense import dense_backward_input, dense_backward_weight, dense_forward, dense_stack
from kernels.elementwise import add_to, clip_value, dropout, scale_by, squared_norm
from kernels.embedding import embedding_backward_weight, embedding_forward
from kernels.gemm import panels_to_rows, rows_to_panels, transpose_panels
from kernels.losses import mean_squared_error, softmax_cross_entropy
from kernels.norm import (
    group_norm_backward_input,
    group_norm_backward_weight,
    group_norm_forward,
    layer_norm_backward_input,
    layer_norm_backward_weight,
    layer_norm_forward,
)
from kernels.optimizers import adam, adam_into, adamw, adamw_into, momentum, momentum_into, sgd, sgd_into
from kernels.pool import average_pool_backward_input, average_pool_forward, max_pool_backward_input, max_pool_forward
from kernels.serve import (
    BLOCK,
    from_half,
    scatter,
    served_adam,
    served_adamw,
    served_momentum,
    served_sgd,
    to_half,
    top_k,
)
from ringtmp.emulate.jitter import stretch
from ringtmp.simulate import data_parallel_clock as shares
from ringtmp.simulate import pipeline_clock as clock
from ringtmp.storage.checksum import checksum
from ringtmp.storage.fletcher import fletcher32


def compile_all(
    dtype: DTypeLike, families: Iterable[str] = ("base",), log: Callable[[str], None] | None = None
) -> float:
    """Make the kernels of some `FAMILIES` ready for `dtype` in this process; returns the seconds that took.

    Numba's cache breaks when processes fill it together. The first one to take a lock compiles, and leaves a stamp;
    the others wait for the lock, find the stamp, and only load. `log` gets a line before a real compilation.
    """
    began = time.perf_counter()
    for family in sorted(set(families)):
        stamp = CACHE / f"stamp-{family}-{_fingerprint(np.dtype(dtype))}"
        if not stamp.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with (CACHE / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not stamp.exists():
                    if log:
                        log(f"compiling the {family} kernels for {np.dtype(dtype).name}, once for this machine ...")
                    FAMILIES[family](np.dtype(dtype))
                    stamp.touch()
        FAMILIES[family](np.dtype(dtype))
    return time.perf_counter() - began


def _fingerprint(dtype: np.dtype) -> str:
    folder = Path(__file__).absolute().parent  # as Numba's cache has it: with its links
    facts = [
        str(folder),
        numba.__version__,
        llvmlite.__version__,
        platform.python_version(),
        dtype.name,
        str(config.CPU_NAME),
        str(config.CPU_FEATURES),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    ]
    for source in sorted(folder.glob("*.py")):
        # Numba's own key is the file's time and size, so a touched file must give another stamp as well.
        facts.append(f"{source.name} {source.stat().st_mtime_ns} {source.read_text()}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


def _base(dtype: np.dtype) -> None:
    """Each kernel on tiny arrays; each has one signature per dtype."""
    a, v, labels, room = np.ones((2, 2), dtype), np.ones(2, dtype), np.zeros(2, np.int64), np.ones(16, dtype)
    with flush_denormals():
        dense_forward(a, room, v, a, a, 0)
    dense_backward_input(a, a, a, room, a, 0)
    dense_stack(a, a, room, 0, 2)
    dense_backward_weight(room, 2, 2, 2, room[:4].copy(), v, False)
    rows_to_panels(room, 0, 2, 2, 2, room[4:], 0, 2, 0)
    panels_to_rows(room, 2, 2, a)
    transpose_panels(room, 2, 2, room[4:])
    activate(a, a, 0, 2, 0)
    deactivate(a, a, a, 0, 2, 0)
    softmax_cross_entropy(a, labels, 1.0)
    mean_squared_error(a, a.copy(), 1.0)
    add_to(v, v)
    dropout(a, a, 0.5, 0, 0, 0)
    clip_value(v, 1.0)
    squared_norm(v)
    scale_by(v, 1.0)
    fletcher32(np.zeros(2, np.uint16))
    sgd(v, v, 0.0, 0.0)
    momentum(v, v, v, 0.0, 0.0, 0.0)
    adam(v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)
    adamw(v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)


def _images(dtype: np.dtype) -> None:
    x, a, v, room = np.ones((1, 2, 2, 1), dtype), np.ones((4, 1), dtype), np.ones(1, dtype), np.ones(64, dtype)
    conv_forward(x, v, v, x, a, 1, 1, 0, 0, room)
    conv_turn(v, v, 1, 1, 1)
    conv_backward_input(x, a, x, v, x, 1, 1, 0, 0, room)
    conv_backward_weight(x, x, v, v, 1, 1, 0, False, room)
    max_pool_forward(x, x, 1, 1)
    max_pool_backward_input(x, x, x.copy(), x.copy(), 1, 1)
    average_pool_forward(x, x.copy(), 1, 1)
    average_pool_backward_input(x, x.copy(), 1, 1)
    g, moments = np.ones((1, 1), dtype), np.ones((1, 2, 2), dtype)
    group_norm_forward(x, g, g, x, moments)
    group_norm_backward_input(x, g, moments, x, x)
    group_norm_backward_weight(x, moments, x, g, g, False)


def _sequences(dtype: np.dtype) -> None:
    qkv, y, room = np.ones((1, 2, 3), dtype), np.ones((1, 2, 1), dtype), np.ones(512, dtype)
    attention_forward(qkv, y, np.ones((1, 1, 2), dtype), 1, room)
    attention_backward_input(qkv, y, np.ones((1, 1, 2), dtype), y, qkv, 1, room)
    tokens, table = np.zeros((1, 2), np.int64), np.ones((2, 1), dtype)
    embedding_forward(tokens, table, table, y)
    embedding_backward_weight(tokens, y, table, table, False)
    rows, gain, moments = np.ones((2, 1), dtype), np.ones(1, dtype), np.ones((2, 2), dtype)
    layer_norm_forward(rows, gain, gain, rows, moments)
    layer_norm_backward_input(rows, gain, moments, rows, rows)
    layer_norm_backward_weight(rows, moments, rows, gain, gain, False)


def _clock(dtype: np.dtype) -> None:
    """The simulator's event loop, on two micro-batches of two ranks."""
    none, numbers = np.zeros(0, np.int64), np.ones((2, 4))
    bounds = np.ones((2, 1), np.int64)
    stretch(0.5, 0, 0, 0, 0)
    clock.run(
        2,
        1,
        np.ones(2),
        1,
        numbers,
        np.ones(2),
        np.arange(1, 3),
        0.0,
        0.0,
        np.zeros((2, 2)),
        0.0,
        0,
        none,
        np.zeros(2, np.int64),
        bounds,
        bounds.copy(),
        1,
        0,
        0,
        1,
        np.zeros((0, 6)),
    )


def _shares(dtype: np.dtype) -> None:
    """The simulator of data-parallel training: one layer, one worker, one server."""
    one, number, layer = np.ones(1), np.ones(1, np.int64), np.ones((1, 4))
    shares.serve(1, 1, 1, 1, layer, one, np.arange(2), one, one, one, number - 1, 0.0, 0, True, 0.0, 0)
    shares.colocate(1, 1, 1, layer, one, one, 0.0, True, 0.0, 0)
    shares.all_reduce(1, 1, 1, layer, one, one, 0.0, 0.0, 0)


def _serve(dtype: np.dtype) -> None:
    """A parameter server's part: one number, one worker."""
    v, rows, which, room = np.ones(1, dtype), np.ones((1, 1), dtype), np.zeros(1, np.int64), np.ones(BLOCK, dtype)
    gradients = (rows, which, 1.0, np.inf, room)
    served_sgd(v, *gradients, 0.0, 0.0, 0, 1)
    served_momentum(v, *gradients, v, 0.0, 0.0, 0.0, 0, 1)
    served_adam(v, *gradients, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1, 0, 1)
    served_adamw(v, *gradients, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1, 0, 1)
    half, places = np.zeros(3, np.uint16), np.zeros(1, np.int32)
    to_half(v, half)
    from_half(half, v)
    top_k(v, 1, places, v.copy())
    scatter(places, v, v.copy())


def _keep(dtype: np.dtype) -> None:
    """What a stage needs that keeps two versions of its state: updates beside the old one, and checksums."""
    v, words = np.ones(1, dtype), np.ones(1, np.uint32)
    sgd_into(v, v, v, 0.0, 0.0)
    momentum_into(v, v, v, v, v, 0.0, 0.0, 0.0)
    adam_into(v, v, v, v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)
    adamw_into(v, v, v, v, v, v, v, 0.0, 0.9, 0.999, 1e-8, 0.0, 1)
    checksum(words)
    words.flags.writeable = False  # another type, as of what is mapped from a file
    checksum(words)


FAMILIES: dict[str, Callable[[np.dtype], None]] = {
    "base": _base,
    "images": _images,
    "sequences": _sequences,
    "serve": _serve,
    "clock": _clock,
    "shares": _shares,
    "keep": _keep,
}

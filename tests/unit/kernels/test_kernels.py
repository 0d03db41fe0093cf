"""Every kernel against its naive twin, over random shapes: ones, primes, and sizes that are no multiple of a vector."""

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest

from ringtmp.kernels import dense
from ringtmp.kernels.activations import ACTIVATIONS, SLOPED
from ringtmp.kernels.denormals import flush_denormals
from ringtmp.kernels.dense import dense_backward_input, dense_forward, dense_stack
from ringtmp.kernels.elementwise import add_to, clip_value, dropout, scale_by, squared_norm
from ringtmp.kernels.gemm import transpose_panels
from ringtmp.kernels.losses.cross_entropy import softmax_cross_entropy
from ringtmp.kernels.losses.mse import mean_squared_error
from ringtmp.kernels.registry import OPTIMIZERS
from ringtmp.kernels.tile import simd

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1, 1), (1, 7, 3), (2, 1, 5), (3, 5, 1), (7, 13, 11), (8, 16, 32), (17, 31, 29), (5, 64, 10)]


def close(got, want, dtype):
    scale = max(1.0, float(np.max(np.abs(want), initial=0)))
    np.testing.assert_allclose(got, want, atol=scale * (3e-5 if dtype == np.float32 else 1e-12), rtol=0)


def arrays(dtype, *shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def dense_backward_weight(x, delta, grad_weight, grad_bias, add):
    """W from natural arrays, in two stacks of rows if there are two rows."""
    room = np.full(len(x) * (x.shape[1] + delta.shape[1]), np.nan, x.dtype)
    half = (len(x) + 1) // 2
    dense_stack(x[:half], delta[:half], room, 0, len(x))
    if half < len(x):
        dense_stack(x[half:], delta[half:], room, half, len(x))
    dense.dense_backward_weight(room, len(x), x.shape[1], delta.shape[1], grad_weight, grad_bias, add)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_dense(dtype, shape, activation, bias):
    m, k, n = shape
    code = ACTIVATIONS[activation]
    x, weight, b, dy, old = arrays(dtype, (m, k), (k, n), (n,) if bias else (0,), (m, n), (k, n))
    y, dx = np.full((m, n), np.nan, dtype), np.full((m, k), np.nan, dtype)
    slope = np.full((m, n) if activation in SLOPED else (0, 0), np.nan, dtype)
    dense_forward(x, naive.panels(weight), b, y, slope, code)
    want, z = naive.dense_forward(x, weight, b, activation)
    close(y, want, dtype)
    want_dx, want_gw, want_gb, want_delta = naive.dense_backward(x, weight, z, dy, activation)
    delta, transposed = dy.copy(), np.full(k * n, np.nan, dtype)
    transpose_panels(naive.panels(weight), k, n, transposed)
    np.testing.assert_array_equal(transposed, naive.panels(weight.T))
    dense_backward_input(y, slope, delta, transposed, dx, code)
    close(delta, want_delta, dtype)
    close(dx, want_dx, dtype)
    gw, gb = np.full(k * n, np.nan, dtype), np.full(n if bias else 0, np.nan, dtype)
    dense_backward_weight(x, delta, gw, gb, False)  # what was there, NaN included, does not count
    close(naive.unpanel(gw, k, n), want_gw, dtype)
    if bias:
        close(gb, want_gb, dtype)
    gw, gb = naive.panels(old), np.ones_like(gb)
    dense_backward_weight(x, delta, gw, gb, True)
    close(naive.unpanel(gw, k, n), want_gw + old, dtype)
    if bias:
        close(gb, want_gb + 1, dtype)


def test_backward_input_without_dx():
    """The first layer of a model needs delta alone."""
    y, dy = arrays(np.float64, (3, 4), (3, 4))
    delta = dy.copy()
    dense_backward_input(y, np.empty((0, 0)), delta, dy[0], np.empty((0, 5)), ACTIVATIONS["relu"])
    np.testing.assert_array_equal(delta, np.where(y > 0, dy, 0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays(activation):
    x, weight, b = arrays(np.float32, (4, 3), (3, 5), (5,))
    x[2, 1] = np.nan
    y, slope = np.zeros((4, 5), np.float32), np.zeros((4, 5), np.float32)
    dense_forward(x, naive.panels(weight), b, y, slope, ACTIVATIONS[activation])
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[[0, 1, 3]]).all()
    loss, _ = softmax_cross_entropy(y, np.zeros(4, np.int64), 1.0)
    assert np.isnan(loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 10), (13, 7), (64, 33)])
def test_losses(dtype, shape):
    logits, target = arrays(dtype, shape, shape)
    labels = np.random.default_rng(1).integers(0, shape[1], shape[0])
    gradient = logits.copy()
    loss, correct = softmax_cross_entropy(gradient, labels, 0.25)
    want, hits, want_gradient = naive.softmax_cross_entropy(logits, labels, 0.25)
    close(loss, want, dtype)
    assert correct == hits
    close(gradient, want_gradient, dtype)
    before = logits.copy()
    close(softmax_cross_entropy(logits, labels, 0.0)[0], loss, dtype)
    gradient = logits.copy()
    loss, right = mean_squared_error(gradient, target, 0.25)
    assert mean_squared_error(logits, target, 0.0)[0] == loss
    assert np.isnan(right)
    np.testing.assert_array_equal(logits, before)  # scale 0 leaves them alone
    want, want_gradient = naive.mean_squared_error(logits, target, 0.25)
    close(loss, want, dtype)
    close(gradient, want_gradient, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype)
    loss, correct = softmax_cross_entropy(logits, np.array([1, 2]), 1.0)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(loss, 2e4 + np.log(3), rtol=1e-6)
    assert correct == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_optimizers(dtype, size):
    w, g, m = arrays(dtype, (size,), (size,), (size,))
    v = np.abs(arrays(dtype, (size,), seed=3)[0])
    wide = [a.astype(np.float64) for a in (w, g, m, v)]
    got = w.copy()
    OPTIMIZERS["sgd"].in_place(got, g, 0.1, 0.01)
    close(got, naive.sgd(wide[0], wide[1], 0.1, 0.01), dtype)
    got, velocity = w.copy(), m.copy()
    OPTIMIZERS["momentum"].in_place(got, g, velocity, 0.1, 0.9, 0.01)
    want, want_velocity = naive.momentum(wide[0], wide[1], wide[2], 0.1, 0.9, 0.01)
    close(got, want, dtype)
    close(velocity, want_velocity, dtype)
    for name, decoupled in (("adam", False), ("adamw", True)):
        got, got_m, got_v = w.copy(), m.copy(), v.copy()
        OPTIMIZERS[name].in_place(got, g, got_m, got_v, 0.01, 0.9, 0.999, 1e-8, 0.1, 3)
        want, want_m, want_v = naive.adam(*wide, 0.01, 0.9, 0.999, 1e-8, 0.1, 3, decoupled)
        close(got_m, want_m, dtype)
        close(got_v, want_v, dtype)
        close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(dtype):
    x, y = arrays(dtype, (37,), (37,))
    total = y.copy()
    add_to(total, x)
    np.testing.assert_array_equal(total, x + y)
    x[3] = np.nan
    clipped = x.copy()
    clip_value(clipped, 0.5)
    np.testing.assert_array_equal(clipped, np.clip(x, -0.5, 0.5))
    assert np.isclose(squared_norm(y), (y.astype(np.float64) ** 2).sum(), rtol=1e-14)
    half = y.copy()
    scale_by(half, 0.5)
    np.testing.assert_array_equal(half, y * dtype(0.5))


def drop(x, rate=0.3, key=1, step=2, sample=0):
    y = np.full_like(x, np.nan)
    dropout(x, y, rate, key, step, sample)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(dtype):
    """Kept numbers are scaled; the share is right; samples have their own masks, whatever the micro-batch."""
    x = np.ones((400, 100), dtype)
    y = drop(x)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / 0.7, rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 0.01
    assert np.abs(kept.mean(axis=0) - 0.7).max() < 0.12
    assert np.abs(kept.mean(axis=1) - 0.7).max() < 0.22
    np.testing.assert_array_equal(drop(x[:150], sample=250), y[250:])
    for other in (drop(x, key=7), drop(x, step=3), drop(x, sample=1)):
        assert abs(((other != 0) == kept).mean() - (0.7**2 + 0.3**2)) < 0.02
    np.testing.assert_array_equal(drop(x, rate=0.0), x)


def test_denormals_count_as_zero_within():
    """AdamW keeps no denormal slot within, keeps them outside, and the setting is given back, also after an error."""

    def slot() -> float:
        w, g, m, v = (np.full(20, value, np.float32) for value in (1, 1e-21, 0, 1e-40))
        OPTIMIZERS["adamw"].in_place(w, g, m, v, 0.1, 0.9, 0.999, 1e-8, 0.0, 3)
        return float(v.max())

    assert slot() > 0
    with pytest.raises(KeyError), flush_denormals():
        assert slot() == 0 or os.uname().machine not in ("x86_64", "AMD64")
        raise KeyError
    assert slot() > 0


def test_simd():
    facts = simd()
    assert facts["vector_bits"] in (128, 256, 512)
    assert "x" in facts["tile"]


@pytest.mark.parametrize("given", [True, False])
def test_cache_folder_without_a_home(tmp_path, given):
    """NUMBA_CACHE_DIR is used as it is; without it and without a home a folder of one's own in the temporary one."""
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"HOME": "/nowhere/at/all"}
    env |= {"NUMBA_CACHE_DIR": str(tmp_path), "TMPDIR": "/nowhere"} if given else {"TMPDIR": str(tmp_path)}
    if os.geteuid() == 0:
        env["HOME"] = "/proc/1"  # where root cannot make a folder either
    done = subprocess.run(
        [sys.executable, "-c", "from ringtmp.kernels._jit import CACHE; print(CACHE)"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


COMPILE = """
import numpy as np
from ringtmp.kernels.dense import dense_forward
from ringtmp.kernels.compilation import _FAMILIES, prepare_kernels
lines = []
prepare_kernels(np.float32, ["base"], lines.append)
misses = sum(sum(f.stats.cache_misses.values()) for f in {call.run for call in _FAMILIES["base"]})
x = np.eye(3, dtype=np.float32); y = np.empty_like(x)
dense_forward(x, 2 * x.ravel(), x[0], y, x[:0], 1)
print(misses, len(lines), y.sum())
"""


@pytest.mark.long
def test_compiled_once_by_many_processes(tmp_path):
    """Four processes start on an empty cache: one compiles, all compute; a later one compiles nothing."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    start = [sys.executable, "-c", COMPILE]
    jobs = [subprocess.Popen(start, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    first = [job.communicate(timeout=120)[0].split() for job in jobs]
    assert all(job.returncode == 0 for job in jobs)
    assert sorted(int(misses) > 0 for misses, _, _ in first) == [False, False, False, True]
    assert sum(int(lines) for _, lines, _ in first) == 1
    assert {total for _, _, total in first} == {"9.0"}
    later = subprocess.run(start, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert later == ["0", "0", "9.0"]

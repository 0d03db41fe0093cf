"""The register tile and the products on it: every shape of edge, and the promise that no grouping changes a bit."""

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT

from ringtmp.kernels import gemm
from ringtmp.kernels._jit import CACHE
from ringtmp.kernels.gemm import panels_to_rows, rows_to_panels
from ringtmp.kernels.scalar import exp, normal, tanh
from ringtmp.kernels.tile import cpu_features

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1, 1), (5, 7, 3), (13, 20, 33), (12, 64, 64), (25, 3, 70), (8, 1, 32), (17, 33, 31), (40, 5, 97)]
RNG = np.random.default_rng(0)


def normals(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def close(got, want):
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, atol=scale * (3e-5 if got.dtype == np.float32 else 1e-12), rtol=0)


def along(x, w, start=0, relu=False, bias=None, c=None, packed=True):
    (m, k), n = x.shape, w.shape[1]
    c = np.full((m, n), np.nan, x.dtype) if c is None else c
    b = naive.panels(w) if packed else w.ravel()
    bias = np.empty(0, x.dtype) if bias is None else bias
    gemm.along(x.ravel(), 0, k, b, 0, 0 if packed else n, c.ravel(), 0, n, m, n, k, start, relu, bias)
    return c


def across(x, d, c=None, add=False, packed=True):
    (k, m), n = x.shape, d.shape[1]
    c = np.full(m * n, np.nan, x.dtype) if c is None else c
    a, b = (naive.panels(x), naive.panels(d)) if packed else (x.ravel(), d.ravel())
    gemm.across(a, 0, 0 if packed else m, b, 0, 0 if packed else n, c, 0, 0, m, n, k, add)
    return c


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_products(dtype, shape, packed):
    m, k, n = shape
    x, w, bias, d = (normals(*s, dtype=dtype) for s in ((m, k), (k, n), (n,), (m, n)))
    want = naive.matmul(x, w)
    close(along(x, w, packed=packed), want)
    close(along(x, w, 2, True, bias, packed=packed), np.maximum(want + bias, 0))
    close(along(x, w, 1, c=d.copy(), packed=packed), want + d)
    want = naive.panels(naive.matmul(x.T, d))
    close(across(x, d, packed=packed), want)
    close(across(x, d, np.ones(k * n, dtype), add=True, packed=packed), want + 1)
    back = np.full((k, n), np.nan, dtype)
    panels_to_rows(naive.panels(w), k, n, back)
    np.testing.assert_array_equal(back, w)
    flat = np.full(k * n, np.nan, dtype)
    rows_to_panels(w.ravel(), 0, n, k, n, flat, 0, k, 0)
    np.testing.assert_array_equal(flat, naive.panels(w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beside_the_result_is_touched(dtype):
    """Cut tiles at the edge write their own numbers alone."""
    for m, n in ((3, 5), (9, 33), (8, 31)):
        x, w = normals(m, 4, dtype=dtype), normals(4, n, dtype=dtype)
        room = np.full((m + 2) * (n + 3), 7, dtype)
        gemm.along(x.ravel(), 0, 4, naive.panels(w), 0, 0, room, n + 4, n + 3, m, n, 4, 0, False, room[:0])
        whole = room.reshape(m + 2, n + 3)
        close(whole[1 : m + 1, 1 : n + 1], naive.matmul(x, w))
        whole[1 : m + 1, 1 : n + 1] = 7
        assert (whole == 7).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.data(), st.sampled_from(DTYPES))
def test_bits_do_not_depend_on_the_cut(m, k, n, data, dtype):
    """Rows in any groups; the contraction interrupted anywhere; samples of W in any groups: the same bits."""
    x, w, d = normals(m, k, dtype=dtype), normals(k, n, dtype=dtype), normals(m, n, dtype=dtype)
    whole, grad = along(x, w), across(x, d)
    cut = data.draw(st.integers(0, m))
    parts = [along(part, w) for part in (x[:cut], x[cut:]) if len(part)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    if 0 < cut < m:
        np.testing.assert_array_equal(across(x[cut:], d[cut:], across(x[:cut], d[:cut]), add=True), grad)
    stop = data.draw(st.integers(0, k))
    if 0 < stop < k:
        first = along(np.ascontiguousarray(x[:, :stop]), w[:stop])
        np.testing.assert_array_equal(along(np.ascontiguousarray(x[:, stop:]), w[stop:], 1, c=first), whole)


def test_sums_are_chains_in_ascending_order():
    """What the bits are: one multiply-add after the other over k, as `math.fma` would do it, or rounded twice."""
    x, w = normals(9, 50), normals(50, 35)
    got = along(x, w)
    fused, rounded = np.zeros_like(got), np.zeros_like(got)
    for j in range(50):
        exact = x[:, j : j + 1].astype(np.float64) * w[j : j + 1].astype(np.float64)
        fused = (fused + exact).astype(np.float32)  # a float64 holds a product of float32 exactly
        rounded = rounded + exact.astype(np.float32)
    assert np.mean(got == fused) > 0.99 or (got == rounded).all()  # the double rounding of the first sum may show


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions(dtype):
    """exp, tanh and the normal distribution to the last place or two, over the whole range; NaN and infinity stay."""
    from math import erf

    from ringtmp.kernels._jit import jit

    @jit
    def each(x, e, t, below, density):
        for i in range(x.size):
            e[i], t[i] = exp(x[i]), tanh(x[i])
            below[i], density[i] = normal(x[i])

    x = np.concatenate([np.linspace(-86, 86, 4001), np.linspace(-1, 1, 4001)]).astype(dtype)
    e, t, below, density = (np.empty_like(x) for _ in range(4))
    each(x, e, t, below, density)
    wide = x.astype(np.float64)
    limit = 3e-7 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(e, np.exp(wide), rtol=limit)
    np.testing.assert_allclose(t, np.tanh(wide), rtol=limit, atol=1e-30)
    np.testing.assert_allclose(below, [0.5 * (1 + erf(z / 2**0.5)) for z in wide], atol=limit)
    np.testing.assert_allclose(density, np.exp(-wide * wide / 2), rtol=limit * 400, atol=1e-37)
    odd = np.array([np.nan, -np.inf, np.inf, -1000, 1000], dtype)
    e, t, below, density = (np.empty_like(odd) for _ in range(4))
    each(odd, e, t, below, density)
    assert all(np.isnan(a[0]) and np.isfinite(a[[1, 3, 4]]).any() for a in (e, t, below, density))
    assert (e[[1, 3]] == 0).all()
    assert e[[2, 4]].min() > 1e38
    assert (t[1:] == [-1, 1, -1, 1]).all()
    assert (below[1:] == [0, 1, 0, 1]).all()
    assert (density[1:] == 0).all()


DIGEST = """
import hashlib, numpy as np, naive, sys
from ringtmp.kernels.gemm import across, along
from ringtmp.kernels.tile import simd
from pathlib import Path
rng = np.random.default_rng(5)
found = hashlib.sha256()
for dtype in (np.float32, np.float64):
    for m, k, n in ((5, 7, 3), (13, 20, 33), (40, 33, 70)):
        x, w, d = (rng.standard_normal(s).astype(dtype) for s in ((m, k), (k, n), (m, n)))
        y, g = np.zeros((m, n), dtype), np.zeros(k * n, dtype)
        along(x.ravel(), 0, k, naive.panels(w), 0, 0, y.ravel(), 0, n, m, n, k, 0, True, d[0])
        across(naive.panels(x), 0, 0, naive.panels(d), 0, 0, g, 0, 0, k, n, m, False)
        np.testing.assert_allclose(y, np.maximum(x @ w, 0), atol=1e-4)
        np.testing.assert_allclose(g, naive.panels(x.T @ d), atol=1e-4)
        found.update(y.data)
        found.update(g.data)
print(simd()["tile"], found.hexdigest())
"""


def digest(tmp_path, features):
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(naive.__file__).parent)}
    if features:
        env |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(" x ")[0], done.stdout.split()[-1]


@pytest.mark.skipif(
    not {"avx2", "fma"} <= cpu_features(),
    reason="needs a processor with AVX2 and FMA",
)
@pytest.mark.long
def test_every_tile_gives_the_same_bits(tmp_path):
    """AVX2's tile and that of this machine; the one of SSE2 alone has no fused multiply-add: correct, other bits."""
    own = digest(CACHE.parent, "")
    avx2, sse = digest(tmp_path, "+sse,+sse2,+avx,+avx2,+fma"), digest(tmp_path, "+sse,+sse2")
    assert avx2[0] == "6"
    assert sse[0] == "3"
    assert own[1] == avx2[1]


@pytest.mark.long
def test_without_compilation():
    """NUMBA_DISABLE_JIT=1: the same kernels in plain Python, tile included, against the same twins."""
    env = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    tests = "test_products and (shape0 or shape1 or shape2) or test_dense and shape4 or test_networks and small"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            tests,
            "tests/unit/kernels/test_gemm.py",
            "tests/unit/kernels/test_kernels.py",
            "tests/unit/kernels/test_network_kernels.py",
        ],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1].strip("(,")) >= 40


@pytest.mark.long
def test_the_tile_for_neon(monkeypatch):
    """Compiled for another processor than this one: all multiply-adds in registers, nothing on the stack."""
    import re

    import llvmlite.binding as llvm
    from llvmlite import ir

    from ringtmp.kernels import tile

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError as error:
        pytest.skip(f"this llvmlite does not compile for ARM: {error}")
    for item in (4, 8):
        monkeypatch.setitem(tile.SHAPES, item, tile.Shape(16 // item, 6, 4))
        module = ir.Module("neon")
        for across in (False, True):
            tile._Code(module, item, across).function().linkage = "external"
        compiled = llvm.parse_assembly(str(module))
        machine = target.create_target_machine(cpu="neoverse-n1", features="+neon", opt=3)
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
        builder.getModulePassManager().run(compiled, builder)
        blocks = machine.emit_assembly(compiled).split("\n.LBB")
        widest = [block for block in blocks if len(re.findall(r"\tfmla\t", block)) >= 24]
        assert len(widest) >= 2
        assert not any("[sp" in block for block in widest)

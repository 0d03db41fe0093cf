"""A parameter server's kernels: sums in order and the plain rules' bits, NumPy's float16, the exact largest numbers."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.kernels.compression import from_half, scatter, to_half, top_k
from ringtmp.kernels.denormals import flush_denormals
from ringtmp.kernels.registry import OPTIMIZERS
from ringtmp.kernels.update import BLOCK

DTYPES = [np.float32, np.float64]
SIZES = [1, 7, 33, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5]
RULES = {  # slots, and arguments from the rate on
    "sgd": (0, (0.1, 0.01)),
    "momentum": (1, (0.1, 0.9, 0.01)),
    "adam": (2, (0.01, 0.9, 0.999, 1e-8, 0.1, 3)),
    "adamw": (2, (0.01, 0.9, 0.999, 1e-8, 0.1, 3)),
}
COUNTS = st.sampled_from(SIZES) | st.integers(1, 3 * BLOCK)


def start(rng, dtype, name, n):
    """w and the rule's slots."""
    w, m, v = rng.standard_normal((3, n)).astype(dtype)
    return [w, m, np.abs(v)][: 1 + RULES[name][0]]


def serve(name, arrays, rows, which, scale=1.0, clip=np.inf, first=0, last=None):
    """The arrays after one served update."""
    arrays = [a.copy() for a in arrays]
    room = np.full(BLOCK, np.nan, rows.dtype)
    w, *slots = arrays
    OPTIMIZERS[name].served(
        w, rows, np.array(which), scale, clip, room, *slots, *RULES[name][1], first, len(w) if last is None else last
    )
    return arrays


def plain(name, arrays, g):
    """The same by the plain rule."""
    w, *slots = (a.copy() for a in arrays)
    OPTIMIZERS[name].in_place(w, g, *slots, *RULES[name][1])
    return [w, *slots]


def assert_same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def in_order(rows, which, scale=1.0, clip=np.inf):
    """NumPy's sum, one row after the other."""
    g = rows[which[0]].copy()
    for worker in which[1:]:
        g += rows[worker]
    return g if scale == 1.0 and clip == np.inf else np.clip(g * g.dtype.type(scale), -clip, clip, dtype=g.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_served(dtype, name, data):
    """Any rows, blocks and split: the bits of the plain rule on the sum in order; the numbers of the naive twins."""
    n, workers = data.draw(COUNTS), data.draw(st.integers(1, 9))
    which = data.draw(st.lists(st.integers(0, workers - 1), min_size=1, max_size=workers, unique=True))
    scale, clip = data.draw(st.sampled_from([1.0, 1 / 7])), data.draw(st.sampled_from([np.inf, 0.5]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = (rng.standard_normal((workers, n)) * 10.0 ** rng.integers(-6, 2, (workers, n))).astype(dtype)
    arrays = start(rng, dtype, name, n)
    got = serve(name, arrays, rows, which, scale, clip)
    assert_same_bits(got, plain(name, arrays, in_order(rows, which, scale, clip)))
    cut = data.draw(st.integers(0, n))
    parts = serve(name, arrays, rows, which, scale, clip, last=cut)
    assert_same_bits([a[cut:] for a in parts], [a[cut:] for a in arrays])
    assert_same_bits(serve(name, parts, rows, which, scale, clip, first=cut), got)

    few = slice(max(0, n - 40), n)
    w, *slots = (a[few].astype(np.float64) for a in arrays)
    g = naive.served_gradient(rows[:, few], which, scale, clip)
    decoupled = (name == "adamw",) if RULES[name][0] == 2 else ()
    want = getattr(naive, name.rstrip("w"))(w, g, *slots, *RULES[name][1], *decoupled)
    for a, b in zip(got, want if slots else [want], strict=True):
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(a[few], b, atol=tolerance * max(1.0, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", SIZES)
def test_one_worker_is_the_plain_rule(dtype, name, n):
    rng = np.random.default_rng(n)
    rows, arrays = rng.standard_normal((3, n)).astype(dtype), start(rng, dtype, name, n)
    assert_same_bits(serve(name, arrays, rows, [1]), plain(name, arrays, rows[1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_goes_in_the_order_given(dtype):
    """Bit for bit NumPy's sum, row after row, which other orders change."""
    rows = (np.random.default_rng(0).standard_normal((9, BLOCK + 77)) * 10.0 ** np.arange(9)[:, None]).astype(dtype)
    results = []
    for which in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 7]):
        w = np.zeros(rows.shape[1], dtype)
        OPTIMIZERS["sgd"].served(w, rows, np.array(which), 1.0, np.inf, np.empty(BLOCK, dtype), -1.0, 0.0, 0, len(w))
        assert_same_bits([w], [in_order(rows, which)])
        results.append(w)
    assert (results[0] != results[1]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_of_a_worker_stays(dtype):
    rows = np.ones((3, BLOCK + 9), dtype)
    rows[1, BLOCK + 3], rows[2, 5] = np.nan, np.inf
    (w,) = serve("sgd", [np.zeros(BLOCK + 9, dtype)], rows, [0, 1, 2], 0.5, 2.0)
    assert np.flatnonzero(np.isnan(w)).tolist() == [BLOCK + 3]
    np.testing.assert_allclose(w[[4, 5]], [-0.15, -0.2], rtol=1e-6)  # infinity is bounded too
    (w,) = serve("sgd", [np.zeros(BLOCK + 9, dtype)], rows, [0, 2])
    assert np.flatnonzero(np.isinf(w)).tolist() == [5]


def pack(source):
    half = np.full(len(source) + 2, 7, np.uint16)
    to_half(source, half)
    return half[:2].view(np.float32)[0], half[2:].view(np.float16), half


def unpack(half, dtype):
    target = np.full(len(half) - 2, np.nan, dtype)
    from_half(half, target)
    return target


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_half(dtype):
    """All 65536 there and back. The infinities among them keep the scale at 1."""
    every = np.arange(1 << 16, dtype=np.uint16)
    half = np.concatenate([np.float32([1]).view(np.uint16), every])
    numbers = unpack(half, dtype)
    np.testing.assert_array_equal(numbers, every.view(np.float16).astype(dtype))
    np.testing.assert_array_equal(np.signbit(numbers), every >= 1 << 15)
    scale, back, _ = pack(numbers)
    assert scale == 1
    nan = np.isnan(numbers)
    np.testing.assert_array_equal(back.view(np.uint16)[~nan], every[~nan])
    assert np.isnan(back[nan]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_rounds_as_numpy(dtype):
    """Halfway between any two halves, a bit below and a bit above; and numbers of any size."""
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
    ties = np.append((every[1:] + every[:-1]) / 2, dtype(65520))
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        some = (rng.standard_normal(20000) * 2.0 ** rng.integers(-160, 140, 20000)).astype(dtype)
    source = np.concatenate([ties, np.nextafter(ties, dtype(0)), np.nextafter(ties, dtype(np.inf)), some, [np.inf]])
    source = np.concatenate([source, -source]).astype(dtype)
    scale, got, _ = pack(source)
    assert scale == 1  # because of infinity
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.view(np.uint16), source.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 5, 16, 31, 1000])
@pytest.mark.parametrize("factor", [0.0, 1e-44, 1e-39, 1e-20, 1.0, 1e30, 1e37, 1e300])
def test_half_with_its_scale(dtype, size, factor):
    with np.errstate(over="ignore"):
        source = (np.random.default_rng(size).standard_normal(size) * factor).astype(dtype)
    scale, half, both = pack(source)
    want_scale, want = naive.to_half(source)
    assert scale == want_scale
    np.testing.assert_array_equal(half.view(np.uint16), want.view(np.uint16))
    back = unpack(both, dtype)
    np.testing.assert_array_equal(back, half.astype(dtype) * dtype(scale))
    if np.isfinite(back).all() and scale > 1e-37:
        assert np.abs(back - source).max(initial=0) <= scale * 2.0**-11


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
def test_half_hides_no_divergence(dtype, wrong):
    source = np.linspace(-3, 3, 50).astype(dtype)
    source[17] = wrong
    back = unpack(pack(source)[2], dtype)
    np.testing.assert_array_equal(back[17], wrong)
    assert np.isfinite(np.delete(back, 17)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_where_denormals_count_as_zero(dtype):
    """No division by a scale that counts as zero."""
    source = np.full(20, 2.0**-130, dtype)  # denormal as a float32
    with flush_denormals():
        _, _, half = pack(source)
    np.testing.assert_array_equal(unpack(half, dtype), 0)


def special(rng, dtype, n):
    """NaN of several bits, infinities, zeros of both signs, denormals, and much that is equal."""
    bits = np.dtype(f"i{np.dtype(dtype).itemsize}")
    nans = np.array([np.nan, -np.nan], dtype).view(bits) + np.array([[0], [1], [77]], bits)
    some = [np.inf, -np.inf, 0, -0.0, np.finfo(dtype).smallest_subnormal, 1, -1, 1 + np.finfo(dtype).eps, -2, 1e-20]
    return rng.choice(np.concatenate([nans.view(dtype).ravel(), np.array(some, dtype)]), n)


KINDS = {
    "normal": lambda rng, dtype, n: rng.standard_normal(n).astype(dtype),
    "close": lambda rng, dtype, n: (1 + rng.integers(0, 5, n) * np.finfo(dtype).eps).astype(dtype),
    "ties": lambda rng, dtype, n: rng.integers(-3, 4, n).astype(dtype),
    "equal": lambda rng, dtype, n: np.full(n, -2, dtype),
    "zero": lambda rng, dtype, n: np.zeros(n, dtype),
    "wide": lambda rng, dtype, n: (rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n)).astype(dtype),
    "special": special,
}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 400),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    kind=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 99),
)
def test_top_k(dtype, n, share, kind, seed):
    """The twin's choice, bit for bit; nothing is lost between what is sent and what is left."""
    residual = KINDS[kind](np.random.default_rng(seed), dtype, n)
    before, k = residual.copy(), max(1, int(share * n))
    indices, values = np.full(k, -1, np.int32), np.full(k, 9, dtype)
    top_k(residual, k, indices, values)
    want, want_values, left = naive.top_k(before, k)
    np.testing.assert_array_equal(indices, want)
    assert_same_bits([values, residual], [want_values, left])
    row = np.full(n, np.nan, dtype)
    scatter(indices, values, row)
    assert_same_bits([np.where(np.isin(np.arange(n), indices), row, left)], [before])
    assert not row[np.setdiff1d(np.arange(n), indices)].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_of_many(dtype):
    """Against NumPy's sort, on part of a longer array."""
    whole = np.random.default_rng(0).standard_normal(100_003).astype(dtype)
    residual, k = whole[1:-2], 1000
    want = np.sort(np.argsort(-np.abs(residual), kind="stable")[:k])
    numbers = residual[want]
    indices, values = np.zeros(k, np.int32), np.zeros(k, dtype)
    top_k(residual, k, indices, values)
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_array_equal(values, numbers)
    assert np.count_nonzero(whole) == 100_003 - k


def test_all_signatures_are_compiled_ahead():
    """`prepare_kernels` on the family calls every kernel with the types that real calls have."""
    for dtype in DTYPES:
        prepare_kernels(dtype, ["serve"])
    made = [*(OPTIMIZERS[name].served for name in RULES), to_half, from_half, top_k, scatter]
    assert [len(kernel.signatures) for kernel in made] == [2] * len(made)

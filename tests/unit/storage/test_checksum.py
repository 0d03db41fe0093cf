"""The checksum against its naive twin, and that whatever a kill or a stray store does to arrays changes it."""

import itertools
import sys

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.storage.checksum import checksum

COUNTS = st.integers(0, 5000) | st.sampled_from([0, 1, 2, 1023, 1024, 1025, 2048, 3073])


def some(n, seed, kind="any"):
    rng = np.random.default_rng(seed)
    if kind == "zero":
        return np.zeros(n, np.uint32)
    if kind == "largest":
        return np.full(n, 2**32 - 1, np.uint32)
    return rng.integers(0, 2**32, n, dtype=np.uint32) if kind == "any" else rng.integers(0, 3, n, dtype=np.uint32)


@settings(max_examples=100, deadline=None)
@given(
    n=COUNTS,
    seed=st.integers(0, 99),
    kind=st.sampled_from(["any", "few", "zero", "largest"]),
    start=st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
)
def test_checksum(n, seed, kind, start):
    words = some(n, seed, kind)
    assert checksum(words, start) == naive.checksum(words, start)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), seed=st.integers(0, 99), kind=st.sampled_from(["any", "few", "zero"]), data=st.data())
def test_what_goes_wrong_shows(n, seed, kind, data):
    words = some(n, seed, kind)
    place = st.integers(0, n - 1)
    i, j, length = data.draw(place), data.draw(place), data.draw(st.integers(1, n))
    bit = data.draw(st.integers(0, 31))
    flipped, swapped, zeroed, old = words.copy(), words.copy(), words.copy(), words.copy()
    flipped[i] ^= np.uint32(1 << bit)
    swapped[[i, j]] = words[[j, i]]
    zeroed[i : i + length] = 0
    old[i : i + length] = some(n, seed + 1)[i : i + length]  # a write that did not get so far
    moved = np.roll(words, length)
    wrong = [flipped, swapped, zeroed, old, moved, words[length:], words[:-length], np.append(words, np.uint32(0))]
    wrong += [words ^ np.uint32(1 << bit), words[::-1].copy()]
    for other in wrong:
        assert (checksum(other) != checksum(words)) == (not np.array_equal(other, words))


def test_every_bit_and_every_pair():
    """In a small array without exception, and in the last block of a larger one."""
    words = np.append(some(1024, 0), some(37, 1))
    seen = {checksum(words)}
    for i, bit in itertools.product(range(1024, 1061), range(32)):
        words[i] ^= np.uint32(1 << bit)
        seen.add(checksum(words))
        words[i] ^= np.uint32(1 << bit)
    for i, j in itertools.combinations(range(1024, 1061), 2):
        words[[i, j]] = words[[j, i]]
        seen.add(checksum(words))
        words[[i, j]] = words[[j, i]]
    assert len(seen) == 1 + 37 * 32 + 37 * 36 // 2


def test_pairs_that_cancel():
    """A B B A and B A A B, which sums with evenly growing weights take for each other; also from page to page."""
    for apart in (1, 2, 16, 1024):
        words = np.zeros(4 * apart, np.uint32)
        other = words.copy()
        words[[0, 3 * apart]] = other[[apart, 2 * apart]] = np.float32(-1).view(np.uint32)
        assert checksum(words) != checksum(other)


def test_the_same_everywhere():
    """Odd weights and no two alike, which the promises rest on; the same with any NumPy."""
    weights = sys.modules["ringtmp.storage.checksum"]._WEIGHTS
    assert len(set(weights.tolist())) == len(weights)
    assert (weights % 2 == 1).all()
    assert weights.max() < 2**32
    assert checksum(np.arange(5000, dtype=np.uint32)) == 0x35A5288ECDC1328


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_arrays_in_order(dtype):
    """One sum of many: in another order, cut elsewhere, or with one left out, another."""
    a, b, c = (np.random.default_rng(i).standard_normal(100 * i).astype(dtype).view(np.uint32) for i in range(3))

    def chain(*arrays):
        total = 0
        for array in arrays:
            total = checksum(array, total)
        return total

    joined = np.concatenate([a, b, c])
    sums = {chain(*each) for each in [*itertools.permutations([a, b, c]), [a, b], [b, c], [b], [joined], [a], []]}
    assert len(sums) == 12
    assert isinstance(chain(a, b), int)


def test_no_kernel_is_compiled_later():
    """Any start, and words that may be written or not."""
    prepare_kernels(np.float32, ["keep"])
    compiled = sys.modules["ringtmp.storage.checksum"]._checksum
    before = len(compiled.signatures)
    words = some(100, 0)
    frozen = np.frombuffer(words.tobytes(), np.uint32)
    mapped = np.zeros(100, np.float32)[10:20].view(np.uint32)
    for array, start in itertools.product((words, frozen, mapped), (0, 5, 2**40, 2**64 - 1, np.uint64(7))):
        checksum(array, start)
    assert checksum(words) == checksum(frozen)
    assert len(compiled.signatures) == before

"""Compression of what travels between workers and servers: float16, and the largest numbers of a gradient."""

import numpy as np
from numba import types
from numba.extending import overload

from ringtmp.kernels._jit import jit
from ringtmp.kernels.compilation import kernel

_BINS = 11  # bits of a number that one pass of the selection sorts by


def _words(x):
    """Flat x as integers of the same bits; without the sign they are in the order of magnitude, NaN on top."""
    return x.view(np.int32 if x.itemsize == 4 else np.int64)


@overload(_words)
def _(x):
    kind = np.int32 if x.dtype == types.float32 else np.int64
    return lambda x: x.view(kind)


# Numba widens 32-bit integers to 64 bits in every operation; `_int` converts them back, which doubles the speed.
_int = np.int32
_SUBNORMAL, _OVERFLOW, _INFINITY = _int(0x38800000), _int(0x47800000), _int(0x7F800000)  # 2^-14, 2^16 as float32
_REBIAS, _HALF, _SMALLEST = _int(0x37FFF001), np.float32(0.5), np.float32(2.0**-126)


@jit
def _bits(x):
    return np.float32(x).view(np.int32)


@jit
def _number(bits):
    return np.int32(bits).view(np.float32)


@jit
def _to_half(x):
    """Bits of x as float16, rounded to the nearest, ties to even. In integers: not every processor converts.

    Where float32 cannot represent a float64 exactly, the last bit records it, so that nothing is rounded twice.
    """
    near = np.float32(x)
    word = _bits(near)
    size = _int(_int(word & 0x7FFFFFFF) - (abs(np.float64(near)) > abs(np.float64(x))))  # towards 0
    size = _int(size | (np.float64(near) != np.float64(x)))
    subnormal = _int(_bits(_number(size) + _HALF) - _bits(_HALF))  # the addition rounds at 2^-24
    normal = _int(_int(size - _REBIAS + _int((size >> 13) & 1)) >> 13)  # other bias, and just under half of 2^13
    half = subnormal if size < _SUBNORMAL else normal
    half = half if size < _OVERFLOW else _int(0x7C00)
    half = half if size <= _INFINITY else _int(0x7E00)
    return np.uint16(_int(_int(word >> 16) & 0x8000) | half)


@jit
def _from_half(half):
    """float32 of the bits of a float16."""
    size = _int(_int(half & 0x7FFF) << 13)
    subnormal = _number(size + _SUBNORMAL) - _number(_SUBNORMAL)
    normal = _number(size + _int(0x38000000))
    x = subnormal if size < _int(0x00800000) else normal
    x = _number(size + _int(0x70000000)) if size >= _int(0x0F800000) else x  # infinity, NaN
    return -x if half & 0x8000 else x


@kernel("serve", (1,), np.zeros(3, np.uint16))
def to_half(source, half):
    """Pack numbers as one scale and float16: the scale is their largest magnitude, and each number is divided by it.

    If a number is infinite or NaN the scale is 1, and such numbers keep their values: a run that diverges must not
    continue unnoticed. The scale is 1 too if all numbers are 0 or below float32's normal numbers: some ranks flush
    those to 0 and would divide by it, and LLVM, which does not know of flushing, makes an integer's comparison of
    `scale > 0`.

    Parameters
    ----------
    source : float[n]
        Numbers to pack; stay.
    half : uint16[n + 2]
        Receives the scale's bits as float32 in the first two words (low half first), then the n numbers as float16.
    """
    words, top = _words(source), np.zeros(1, source.dtype)
    kind = words.dtype.type
    mask, largest = np.iinfo(words.dtype).max, kind(0)
    for i in range(words.size):
        largest = max(largest, kind(words[i] & mask))
    _words(top)[0] = largest
    scale = np.float32(top[0])
    if not _SMALLEST <= scale < np.inf:
        scale = np.float32(1)
    half[0], half[1] = _bits(scale) & 0xFFFF, _bits(scale) >> 16
    for i in range(source.size):
        half[i + 2] = _to_half(source[i] / scale)


@kernel("serve", np.zeros(3, np.uint16), (1,))
def from_half(half, target):
    """Unpack the numbers that `to_half` packed.

    Parameters
    ----------
    half : uint16[n + 2]
        Result of `to_half`.
    target : float[n]
        Receives the numbers.
    """
    scale = target.dtype.type(_number(np.int32(half[0]) | np.int32(half[1]) << 16))
    for i in range(target.size):
        target[i] = _from_half(half[i + 2]) * scale


@jit
def _find(count, left):
    """Bin that holds the number of rank `left` from the top, and that number's rank from the top within the bin."""
    place = count.size - 1
    while count[place] < left:
        left -= count[place]
        place -= 1
    return place, left


@kernel("serve", (1,), 1, np.zeros(1, np.int32), (1,))
def top_k(residual, k, indices, values):
    """Move the k numbers of largest magnitude out of `residual`; the rest stays for the next step (error feedback).

    The choice is exact: NaN counts as largest, and of equal magnitudes at the threshold the first places are taken.

    A radix selection on the bits of |x|: one pass counts the numbers by their top bits, one notes the places of those
    that may be chosen; the threshold's other bits are found among those that share its top bits, fewer with each pass.
    Nothing branches on a number, so that time does not depend on their order.

    Parameters
    ----------
    residual : float[n]
        Numbers to choose from; 0 afterwards at the chosen places.
    k : int
        Numbers to choose, 1 to n.
    indices : int32[k]
        Receives the places of the chosen numbers, ascending.
    values : float[k]
        Receives the chosen numbers, in the order of `indices`.
    """
    words = _words(residual)
    mask = np.iinfo(words.dtype).max
    nan = 0x7F800001 if residual.itemsize == 4 else 0x7FF0000000000001  # every NaN is the same
    shift = 8 * residual.itemsize - 1 - _BINS
    count = np.zeros(1 << _BINS, np.int64)
    for i in range(words.size):
        count[min(words[i] & mask, nan) >> shift] += 1
    threshold, left = _find(count, k)

    # Each place is stored before the comparison, so the array holds one more.
    places = np.empty(count[threshold:].sum() + 1, np.int32)
    size, low = 0, threshold << shift
    for i in range(words.size):
        places[size] = i
        size += (words[i] & mask) >= low
    keys = np.empty(count[threshold] + 1, np.int64)
    same = 0
    for i in places[:size]:
        keys[same] = min(words[i] & mask, nan)
        same += keys[same] >> shift == threshold

    while shift > 0:
        bits = min(_BINS, shift)
        shift -= bits
        count[:] = 0
        for key in keys[:same]:
            count[(key >> shift) & ((1 << bits) - 1)] += 1
        place, left = _find(count, left)
        threshold = threshold << bits | place
        before, same = same, 0
        for key in keys[:before]:
            keys[same] = key
            same += key >> shift == threshold

    at = j = 0
    while at < k:
        i = places[j]
        key = min(words[i] & mask, nan)
        chosen = (key > threshold) | ((key == threshold) & (left > 0))
        left -= key == threshold
        indices[at], values[at] = i, residual[i]
        residual[i] = 0 if chosen else residual[i]
        at += chosen
        j += 1


@kernel("serve", np.zeros(1, np.int32), (1,), (1,))
def scatter(indices, values, row):
    """Write the numbers that `top_k` chose to their places in a row, and 0 everywhere else.

    Parameters
    ----------
    indices : int32[k]
        Places, each 0 to n - 1, from `top_k`.
    values : float[k]
        Numbers, from `top_k`.
    row : float[n]
        Receives the numbers.
    """
    row[:] = 0
    for i in range(indices.size):
        row[indices[i]] = values[i]

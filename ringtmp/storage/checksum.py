"""A checksum that shows whether arrays still hold what was written, after a kill during a write or a stray store."""

import numpy as np
from numpy.typing import NDArray

from ringtmp.kernels._jit import jit
from ringtmp.kernels.compilation import declare

BLOCK = 1024  # words

# Odd, so that every bit of a word counts; none twice, so that no two words of a block may change places. Raw bits of a
# generator, which NumPy promises never to change. They come from memory: multiples of a number, made as the loop goes,
# were slower (47 instead of 55 GB/s, AMD EPYC, Zen 4), and let words A B B A become B A A B at every second place.
_WEIGHTS = np.random.PCG64(0).random_raw(BLOCK) >> np.uint64(32) | np.uint64(1)
_MULTIPLY, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@jit
def _checksum(words, state):
    """Integers may wrap around. A product of 32-bit numbers in 64 bits is one instruction of every vector unit."""
    for a in range(0, words.size, BLOCK):
        block, total = words[a : a + BLOCK], np.uint64(0)
        for i in range(block.size):
            total += np.uint64(block[i]) * _WEIGHTS[i]
        state = (state ^ (state >> _HALF)) * _MULTIPLY + total
    return (state ^ (state >> _HALF)) * _MULTIPLY + np.uint64(words.size + 1)  # zeros count as well


_WORDS = np.ones(1, np.uint32)
declare("keep", _checksum, _WORDS, np.uint64(0))
_READ_ONLY = np.frombuffer(bytes(4), np.uint32)  # another type, as of an array that is mapped from a file
declare("keep", _checksum, _READ_ONLY, np.uint64(0))


def checksum(words: NDArray[np.uint32], start: int = 0) -> int:
    """64 bits that depend on every bit of `words`, on their places and on their number.

    A change within one word, or of two words of a block of 1024 for each other, always shows; any other is missed by
    chance alone. It does not protect against intent.

    Parameters
    ----------
    words : uint32 array [n]
        C-contiguous; a view of any array whose bytes are a multiple of 4.
    start : int
        Checksum of the words before these, so that several arrays have one checksum in their order.
    """
    return _checksum(words, np.uint64(start))

"""The sum of several workers' gradients, on which a parameter server updates.

Gradients of all workers lie in rows, one worker each. An update goes over them in blocks that stay in the first-level
cache, so that sum, factor, bound and rule (`kernels.update`) cost one pass over memory.
"""

import numpy as np

from kernels._jit import jit
from kernels.elementwise import add_to, clip_value, scale_by

BLOCK = 2048  # numbers of a block, and at least of the room; a whole number of vectors


@jit
def summed(rows, which, scale, clip, room, a, b):
    """Sum of numbers a to b - 1 of some rows' gradients, times a factor, within a bound.

    Equal bits rest on one pass for each row: between passes the sums stand in memory, so no compiler may regroup them.
    A factor of 1 and an infinite bound are passed over, and leave every bit as it is.

    Parameters
    ----------
    rows : array [workers, n]
        Gradients, C-contiguous.
    which : int64 array [k]
        Rows that count, at least one; they are summed in this order.
    scale, clip : float
        Factor of the sum (1: none); bound of the absolute value of each number of it (inf: none). NaN stays.
    room : array [BLOCK or more]
        Takes the sum where it is no row by itself; each thread has its own.
    a, b : int
        Range, of at most BLOCK numbers.

    Returns
    -------
    array [b - a]
        Part of `room`, or of the only row.
    """
    if which.size == 1 and scale == 1.0 and clip == np.inf:
        return rows[which[0], a:b]
    g, start = room[: b - a], rows[which[0], a:b]
    for i in range(g.size):  # as `g[:] = start`, which Numba makes four times as slow
        g[i] = start[i]
    for i in range(1, which.size):
        add_to(g, rows[which[i], a:b])
    if scale != 1.0:
        scale_by(g, scale)
    if clip != np.inf:
        clip_value(g, clip)
    return g

"""Causal multi-head self-attention without parameters: y = softmax(q k.T / sqrt(d)) v.

A query attends to its own position and those before it. Queries are taken in blocks, so that of the T x T matrix of a
head only `BLOCK` rows exist at a time; the backward pass recomputes them from the logarithm of each row's sum (Dao et
al. 2022, "FlashAttention", algorithms 1 and 4).
"""

import math

from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.gemm import across, along, transpose
from ringtmp.kernels.scalar import exp

BLOCK = 32  # queries


@kernel("sequences", (1, 2, 3), (1, 2, 1), (1, 1, 2), 1, (512,))
def attention_forward(qkv, y, logsum, heads, room):
    """Attention of each sequence and head.

    Parameters
    ----------
    qkv : float[m, T, 3 n]
        Queries, keys and values side by side; within each, the heads side by side, d = n / heads numbers each.
    y : float[m, T, n]
        Receives the result, the heads side by side.
    logsum : float[m, heads, T]
        Receives the logarithm of each row's sum of exponentials, which I needs.
    heads : int
        Number of heads; divides n.
    room : float[(d + BLOCK) T or more]
        Scratch.
    """
    m, steps, n = y.shape
    d, wide = n // heads, 3 * n
    kind = y.dtype.type
    scale = kind(1 / math.sqrt(d))
    a, c = qkv.reshape(qkv.size), y.reshape(y.size)
    scores = d * steps  # place in the room; the transposed keys lie before it
    for i in range(m):
        for head in range(heads):
            q = i * steps * wide + head * d
            transpose(a, q + n, wide, steps, d, room, 0, steps)
            for first in range(0, steps, BLOCK):
                rows = min(BLOCK, steps - first)
                keys = first + rows
                along(a, q + first * wide, wide, room, 0, steps, room, scores, steps, rows, keys, d, 0, False, a)
                for r in range(rows):
                    row = room[scores + r * steps : scores + r * steps + keys]
                    seen = first + r + 1
                    top = row[0]
                    for t in range(1, seen):
                        top = row[t] if row[t] > top else top
                    total = kind(0)
                    for t in range(seen):
                        row[t] = exp((row[t] - top) * scale)
                        total += row[t]
                    share = kind(1) / total
                    for t in range(seen):
                        row[t] *= share
                    for t in range(seen, keys):
                        row[t] = 0
                    logsum[i, head, first + r] = top * scale + kind(math.log(total))
                along(
                    room,
                    scores,
                    steps,
                    a,
                    q + 2 * n,
                    wide,
                    c,
                    (i * steps + first) * n + head * d,
                    n,
                    rows,
                    d,
                    keys,
                    0,
                    False,
                    a,
                )


@kernel("sequences", (1, 2, 3), (1, 2, 1), (1, 1, 2), (1, 2, 1), (1, 2, 3), 1, (512,))
def attention_backward_input(qkv, y, logsum, dy, dqkv, heads, room):
    """Gradient at `qkv`, from the gradient at `y`.

    Parameters
    ----------
    qkv : float[m, T, 3 n]
        Input of F.
    y : float[m, T, n]
        Result of F.
    logsum : float[m, heads, T]
        Kept by F.
    dy : float[m, T, n]
        Gradient at y; stays.
    dqkv : float[m, T, 3 n]
        Receives the gradient at qkv.
    heads : int
        Number of heads; divides n; d = n / heads.
    room : float[2 (d + BLOCK) T or more]
        Scratch.
    """
    m, steps, n = y.shape
    d, wide = n // heads, 3 * n
    kind = y.dtype.type
    scale = kind(1 / math.sqrt(d))
    a, g, out = qkv.reshape(qkv.size), dy.reshape(dy.size), dqkv.reshape(dqkv.size)
    values, scores = d * steps, 2 * d * steps
    slopes = scores + BLOCK * steps
    for i in range(m):
        dqkv[i, :, n:] = 0
        for head in range(heads):
            q = i * steps * wide + head * d
            at = i * steps * n + head * d
            transpose(a, q + n, wide, steps, d, room, 0, steps)
            transpose(a, q + 2 * n, wide, steps, d, room, values, steps)
            for first in range(0, steps, BLOCK):
                rows = min(BLOCK, steps - first)
                keys = first + rows
                along(a, q + first * wide, wide, room, 0, steps, room, scores, steps, rows, keys, d, 0, False, a)
                along(g, at + first * n, n, room, values, steps, room, slopes, steps, rows, keys, d, 0, False, a)
                for r in range(rows):
                    t0 = first + r
                    inner = kind(0)
                    for j in range(d):
                        inner += dy[i, t0, head * d + j] * y[i, t0, head * d + j]
                    p = room[scores + r * steps : scores + r * steps + keys]
                    s = room[slopes + r * steps : slopes + r * steps + keys]
                    level = logsum[i, head, t0]
                    for t in range(t0 + 1):
                        p[t] = exp(p[t] * scale - level)
                        s[t] = p[t] * (s[t] - inner) * scale
                    for t in range(t0 + 1, keys):
                        p[t] = 0
                        s[t] = 0
                along(room, slopes, steps, a, q + n, wide, out, q + first * wide, wide, rows, d, keys, 0, False, a)
                across(room, slopes, steps, a, q + first * wide, wide, out, q + n, wide, keys, d, rows, True)
                across(room, scores, steps, g, at + first * n, n, out, q + 2 * n, wide, keys, d, rows, True)

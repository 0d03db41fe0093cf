"""Token and position embedding: y[i, t] = table[token[i, t]] + position[t]."""

import numpy as np

from kernels.registry import kernel


@kernel("sequences", np.zeros((1, 2), np.int64), (2, 1), (2, 1), (1, 2, 1))
def embedding_forward(tokens, table, position, y):
    """y[m, T, n] for tokens[m, T] (int64, in range)."""
    m, steps, n = y.shape
    for i in range(m):
        for t in range(steps):
            token = tokens[i, t]
            for j in range(n):
                y[i, t, j] = table[token, j] + position[t, j]


@kernel("sequences", np.zeros((1, 2), np.int64), (1, 2, 1), (2, 1), (2, 1), False)
def embedding_backward_weight(tokens, dy, grad_table, grad_position, add):
    """Gradients of table [tokens, n] and position [T, n], in ascending order of samples and places."""
    m, steps, n = dy.shape
    if not add:
        grad_table[:] = 0
        grad_position[:] = 0
    for i in range(m):
        for t in range(steps):
            token = tokens[i, t]
            for j in range(n):
                grad_table[token, j] += dy[i, t, j]
            for j in range(n):
                grad_position[t, j] += dy[i, t, j]

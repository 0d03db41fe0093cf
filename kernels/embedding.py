"""Token and position embedding: y[i, t] = table[token[i, t]] + position[t]."""

import numpy as np

from ringtmp.kernels.compilation import kernel


@kernel("sequences", np.zeros((1, 2), np.int64), (2, 1), (2, 1), (1, 2, 1))
def embedding_forward(tokens, table, position, y):
    """Look up the tokens and add their positions.

    Parameters
    ----------
    tokens : int64[m, T]
        Tokens, each 0 to V - 1.
    table : float[V, n]
        One row for each token.
    position : float[T, n]
        One row for each position.
    y : float[m, T, n]
        Receives the result.
    """
    m, steps, n = y.shape
    for i in range(m):
        for t in range(steps):
            token = tokens[i, t]
            for j in range(n):
                y[i, t, j] = table[token, j] + position[t, j]


@kernel("sequences", np.zeros((1, 2), np.int64), (1, 2, 1), (2, 1), (2, 1), False)
def embedding_backward_weight(tokens, dy, grad_table, grad_position, add):
    """Gradients of table and positions, summed over samples and positions in ascending order.

    Parameters
    ----------
    tokens : int64[m, T]
        Input of F.
    dy : float[m, T, n]
        Gradient at y; stays.
    grad_table : float[V, n]
        Receives the gradient of `table`.
    grad_position : float[T, n]
        Receives the gradient of `position`.
    add : bool
        Whether to add to the contents of both instead of replacing them.
    """
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

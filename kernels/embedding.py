"""Token and position embedding: y[i, t] = table[token[i, t]] + position[t]."""

from kernels._jit import jit


@jit
def embedding_forward(tokens, table, position, y):
    """y[m, T, n] for tokens[m, T] (int64, in range)."""
    m, steps, n = y.shape
    for i in range(m):
        for t in range(steps):
            token = tokens[i, t]
            for j in range(n):
                y[i, t, j] = table[token, j] + position[t, j]


@jit
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

"""Optimizer updates: one fused pass over flat arrays. PyTorch's definitions; steps count from 1.

Each rule stands once, from old arrays to new ones. `sgd`, `momentum`, `adam` and `adamw` update in place; `..._into`
writes beside the old arrays and leaves them alone. Both give the same bits. Constants arrive as float64 and are cast
first, so that float32 arrays are updated in float32 vectors.

A rule becomes part of each kernel, so that LLVM sees whether old and new are one array. One kernel for both lost: given
one array as old and new, the check at run time that they do not overlap fails, and a loop number by number is left (2.3
instead of 0.33 ns for a number of AdamW; AMD EPYC, Zen 4). Beside the old arrays an update takes what it takes to copy
them; stores that bypass the caches lost there, at every size (1.3 instead of 0.9 ns from memory, 1.0 instead of 0.34 ns
in the second-level cache).

All of a number is read before any of it is written. With the new m written before v was read, AdamW took 0.49 instead
of 0.30 ns: large arrays start at the same place of a page, and such a read is held up by the write.
"""

import math

from kernels._jit import inlined, jit


@inlined
def sgd_rule(w, g, w_new, lr, weight_decay):
    """w -= lr * (g + weight_decay * w)."""
    kind = w.dtype.type
    rate, decay = kind(lr), kind(weight_decay)
    for i in range(w.size):
        w_new[i] = w[i] - rate * (g[i] + decay * w[i])


@inlined
def momentum_rule(w, g, velocity, w_new, velocity_new, lr, mu, weight_decay):
    """velocity = mu * velocity + g + weight_decay * w; w -= lr * velocity."""
    kind = w.dtype.type
    rate, decay, keep = kind(lr), kind(weight_decay), kind(mu)
    for i in range(w.size):
        change = keep * velocity[i] + g[i] + decay * w[i]
        w_new[i] = w[i] - rate * change
        velocity_new[i] = change


@inlined
def adam_rule(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step):
    """Adam with L2 in the gradient (Kingma & Ba 2015)."""
    kind = w.dtype.type
    b1, b2, eps, decay = kind(beta1), kind(beta2), kind(epsilon), kind(weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    for i in range(w.size):
        gradient = g[i] + decay * w[i]
        mean = b1 * m[i] + c1 * gradient
        square = b2 * v[i] + c2 * gradient * gradient
        w_new[i] = w[i] - rate * mean / (math.sqrt(square) * unbias + eps)
        m_new[i] = mean
        v_new[i] = square


@inlined
def adamw_rule(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    kind = w.dtype.type
    b1, b2, eps, keep = kind(beta1), kind(beta2), kind(epsilon), kind(1 - lr * weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    for i in range(w.size):
        mean = b1 * m[i] + c1 * g[i]
        square = b2 * v[i] + c2 * g[i] * g[i]
        w_new[i] = keep * w[i] - rate * mean / (math.sqrt(square) * unbias + eps)
        m_new[i] = mean
        v_new[i] = square


@jit
def sgd(w, g, lr, weight_decay):
    """`sgd_rule` in place."""
    sgd_rule(w, g, w, lr, weight_decay)


@jit
def sgd_into(w, g, w_new, lr, weight_decay):
    """`sgd_rule` from w into w_new."""
    sgd_rule(w, g, w_new, lr, weight_decay)


@jit
def momentum(w, g, velocity, lr, mu, weight_decay):
    """`momentum_rule` in place."""
    momentum_rule(w, g, velocity, w, velocity, lr, mu, weight_decay)


@jit
def momentum_into(w, g, velocity, w_new, velocity_new, lr, mu, weight_decay):
    """`momentum_rule` from w and its slot into w_new and its own."""
    momentum_rule(w, g, velocity, w_new, velocity_new, lr, mu, weight_decay)


@jit
def adam(w, g, m, v, lr, beta1, beta2, epsilon, weight_decay, step):
    """`adam_rule` in place."""
    adam_rule(w, g, m, v, w, m, v, lr, beta1, beta2, epsilon, weight_decay, step)


@jit
def adam_into(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step):
    """`adam_rule` from w and its slots into w_new and its own."""
    adam_rule(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step)


@jit
def adamw(w, g, m, v, lr, beta1, beta2, epsilon, weight_decay, step):
    """`adamw_rule` in place."""
    adamw_rule(w, g, m, v, w, m, v, lr, beta1, beta2, epsilon, weight_decay, step)


@jit
def adamw_into(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step):
    """`adamw_rule` from w and its slots into w_new and its own."""
    adamw_rule(w, g, m, v, w_new, m_new, v_new, lr, beta1, beta2, epsilon, weight_decay, step)

"""Optimizer updates: one fused pass over flat arrays, in place. PyTorch's definitions; steps count from 1.

Constants arrive as float64 and are cast first, so that float32 arrays are updated in float32 vectors.
"""

import math

from kernels._jit import jit


@jit
def sgd(w, g, lr, weight_decay):  # noqa: ANN001, ANN201
    """w -= lr * (g + weight_decay * w)."""
    kind = w.dtype.type
    rate, decay = kind(lr), kind(weight_decay)
    for i in range(w.size):
        w[i] -= rate * (g[i] + decay * w[i])


@jit
def momentum(w, g, velocity, lr, mu, weight_decay):  # noqa: ANN001, ANN201
    """velocity = mu * velocity + g + weight_decay * w; w -= lr * velocity."""
    kind = w.dtype.type
    rate, decay, keep = kind(lr), kind(weight_decay), kind(mu)
    for i in range(w.size):
        v = keep * velocity[i] + g[i] + decay * w[i]
        velocity[i] = v
        w[i] -= rate * v


@jit
def adam(w, g, m, v, lr, beta1, beta2, epsilon, weight_decay, step):  # noqa: ANN001, ANN201
    """Adam with L2 in the gradient (Kingma & Ba 2015)."""
    kind = w.dtype.type
    b1, b2, eps, decay = kind(beta1), kind(beta2), kind(epsilon), kind(weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    for i in range(w.size):
        gradient = g[i] + decay * w[i]
        m[i] = b1 * m[i] + c1 * gradient
        v[i] = b2 * v[i] + c2 * gradient * gradient
        w[i] -= rate * m[i] / (math.sqrt(v[i]) * unbias + eps)


@jit
def adamw(w, g, m, v, lr, beta1, beta2, epsilon, weight_decay, step):  # noqa: ANN001, ANN201
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    kind = w.dtype.type
    b1, b2, eps, keep = kind(beta1), kind(beta2), kind(epsilon), kind(1 - lr * weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    for i in range(w.size):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        w[i] = keep * w[i] - rate * m[i] / (math.sqrt(v[i]) * unbias + eps)

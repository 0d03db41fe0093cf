"""Slow, obvious twins of the kernels, in float64 loops and plain formulas. The kernels are compared with these."""

import math

import numpy as np


def activate(z: float, activation: str) -> float:
    if activation == "relu":
        return max(z, 0.0)
    if activation == "tanh":
        return math.tanh(z)
    if activation == "sigmoid":
        return 1 / (1 + math.exp(-z))
    if activation == "gelu":
        return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return z


def slope(z: float, activation: str) -> float:
    if activation == "relu":
        return 1.0 if z > 0 else 0.0
    if activation == "tanh":
        return 1 - math.tanh(z) ** 2
    if activation == "sigmoid":
        s = 1 / (1 + math.exp(-z))
        return s * (1 - s)
    if activation == "gelu":
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + math.erf(z / math.sqrt(2))) + z * density
    return 1.0


def matmul(a, b):
    result = np.zeros((len(a), b.shape[1]))
    for i in range(len(a)):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                result[i, j] += float(a[i, k]) * float(b[k, j])
    return result


def dense_forward(x, weight, bias, activation):
    """y and z = x @ weight + bias."""
    z = matmul(x, weight)
    if len(bias):
        z = z + bias.astype(np.float64)
    return np.array([[activate(value, activation) for value in row] for row in z]).reshape(z.shape), z


def dense_backward(x, weight, z, dy, activation):
    """dx, gradient of weight, gradient of bias, delta."""
    delta = np.array([[dy[i, j] * slope(z[i, j], activation) for j in range(z.shape[1])] for i in range(len(z))])
    delta = delta.reshape(z.shape)
    return matmul(delta, weight.T), matmul(x.T, delta), delta.sum(axis=0), delta


def softmax_cross_entropy(logits, labels, scale):
    loss, correct, gradient = 0.0, 0, np.zeros(logits.shape)
    for i, row in enumerate(logits.astype(np.float64)):
        top = max(row)
        powers = [math.exp(value - top) for value in row]
        loss += math.log(sum(powers)) + top - row[labels[i]]
        correct += int(np.argmax(row) == labels[i])
        for j, power in enumerate(powers):
            gradient[i, j] = (power / sum(powers) - (j == labels[i])) * scale
    return loss, correct, gradient


def mean_squared_error(prediction, target, scale):
    error = prediction.astype(np.float64) - target.astype(np.float64)
    return (error**2).mean(axis=1).sum(), 2 * error / error.shape[1] * scale


def sgd(w, g, lr, wd):
    return w - lr * (g + wd * w)


def momentum(w, g, v, lr, mu, wd):
    v = mu * v + g + wd * w
    return w - lr * v, v


def adam(w, g, m, v, lr, b1, b2, eps, wd, step, decoupled):
    if decoupled:
        w = w * (1 - lr * wd)
    else:
        g = g + wd * w
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return w - lr * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps), m, v

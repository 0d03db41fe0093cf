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
    if activation == "silu":
        return z / (1 + math.exp(-z))
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
    if activation == "silu":
        s = 1 / (1 + math.exp(-z))
        return s + z * s * (1 - s)
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


def panels(matrix):
    """A matrix cut into panels of 32 columns, each contiguous, as one flat array."""
    return np.concatenate([matrix[:, j : j + 32].ravel() for j in range(0, matrix.shape[1], 32)])


def unpanel(flat, rows, columns):
    result = np.empty((rows, columns), flat.dtype)
    for j in range(0, columns, 32):
        width = min(32, columns - j)
        result[:, j : j + width] = flat[j * rows : j * rows + rows * width].reshape(rows, width)
    return result


def conv(x, weight, bias, stride, pad):
    """y[m, h, w, o] of x[m, H, W, c] and weight[k, k, c, o]."""
    m, high, wide, c = x.shape
    k, o = weight.shape[0], weight.shape[3]
    h, w = (high + 2 * pad - k) // stride + 1, (wide + 2 * pad - k) // stride + 1
    y = np.zeros((m, h, w, o))
    for i in range(m):
        for u in range(h):
            for v in range(w):
                for a in range(k):
                    for b in range(k):
                        row, column = u * stride + a - pad, v * stride + b - pad
                        if 0 <= row < high and 0 <= column < wide:
                            y[i, u, v] += x[i, row, column].astype(np.float64) @ weight[a, b]
    return y + bias


def conv_backward(x, weight, dy, stride, pad):
    """dx, gradient of weight, gradient of bias."""
    _, high, wide, _ = x.shape
    k = weight.shape[0]
    dx, grad = np.zeros(x.shape), np.zeros(weight.shape)
    for i, u, v in np.ndindex(dy.shape[:3]):
        for a in range(k):
            for b in range(k):
                row, column = u * stride + a - pad, v * stride + b - pad
                if 0 <= row < high and 0 <= column < wide:
                    dx[i, row, column] += weight[a, b].astype(np.float64) @ dy[i, u, v]
                    grad[a, b] += np.outer(x[i, row, column], dy[i, u, v].astype(np.float64))
    return dx, grad, dy.sum(axis=(0, 1, 2))


def pool(x, size, stride, choose):
    """y of windows of x[m, H, W, c]; `choose`: np.max or np.mean."""
    m, high, wide, c = x.shape
    y = np.zeros((m, (high - size) // stride + 1, (wide - size) // stride + 1, c))
    for i, u, v, j in np.ndindex(y.shape):
        y[i, u, v, j] = choose(x[i, u * stride : u * stride + size, v * stride : v * stride + size, j])
    return y


def max_pool_backward(x, dy, size, stride):
    dx = np.zeros(x.shape)
    for i, u, v, j in np.ndindex(dy.shape):
        window = x[i, u * stride : u * stride + size, v * stride : v * stride + size, j]
        a, b = divmod(int(np.argmax(window)), size)
        dx[i, u * stride + a, v * stride + b, j] += dy[i, u, v, j]
    return dx


def average_pool_backward(shape, dy, size, stride):
    dx = np.zeros(shape)
    for i, u, v, j in np.ndindex(dy.shape):
        dx[i, u * stride : u * stride + size, v * stride : v * stride + size, j] += dy[i, u, v, j] / size**2
    return dx


def normalise(x, gain, bias):
    """Layer norm of each row of x[m, n] in float64."""
    x = x.astype(np.float64)
    hat = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return hat * gain + bias


def normalise_backward(x, gain, dy):
    """dx, gradient of gain, gradient of bias."""
    x = x.astype(np.float64)
    scale = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    hat = (x - x.mean(axis=1, keepdims=True)) * scale
    g = dy * gain
    dx = scale * (g - g.mean(axis=1, keepdims=True) - hat * (g * hat).mean(axis=1, keepdims=True))
    return dx, (dy * hat).sum(axis=0), dy.sum(axis=0)


def attention(qkv, heads):
    """y[m, T, n] of qkv[m, T, 3 n], and the attention of each head."""
    m, steps, triple = qkv.shape
    n = triple // 3
    d = n // heads
    y, weights = np.zeros((m, steps, n)), np.zeros((m, heads, steps, steps))
    for i in range(m):
        for h in range(heads):
            q, k, v = (qkv[i, :, part * n + h * d : part * n + h * d + d].astype(np.float64) for part in range(3))
            for t in range(steps):
                scores = [float(q[t] @ k[s]) / math.sqrt(d) for s in range(t + 1)]
                powers = [math.exp(score - max(scores)) for score in scores]
                for s in range(t + 1):
                    weights[i, h, t, s] = powers[s] / sum(powers)
                    y[i, t, h * d : h * d + d] += weights[i, h, t, s] * v[s]
    return y, weights


def attention_backward(qkv, dy, heads):
    """dqkv."""
    _, weights = attention(qkv, heads)
    m, _, triple = qkv.shape
    n = triple // 3
    d = n // heads
    dqkv = np.zeros(qkv.shape)
    for i in range(m):
        for h in range(heads):
            part = [slice(p * n + h * d, p * n + h * d + d) for p in range(3)]
            q, k, v = (qkv[i, :, each].astype(np.float64) for each in part)
            p, g = weights[i, h], dy[i, :, h * d : h * d + d].astype(np.float64)
            dp = g @ v.T
            ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) / math.sqrt(d)
            dqkv[i, :, part[0]], dqkv[i, :, part[1]], dqkv[i, :, part[2]] = ds @ k, ds.T @ q, p.T @ g
    return dqkv


def served_gradient(rows, which, scale, clip):
    """The sum of some workers' gradients, number by number; times a factor, within a bound."""
    result = np.zeros(rows.shape[1])
    for i in range(rows.shape[1]):
        for worker in which:
            result[i] += float(rows[worker, i])
        result[i] *= scale
        if abs(result[i]) > clip:
            result[i] = math.copysign(clip, result[i])
    return result


def to_half(source):
    """The scale, and source / scale as float16."""
    with np.errstate(over="ignore"):
        scale = np.float32(max((abs(x) for x in source.tolist()), default=0.0))
        if not (np.isfinite(source).all() and 2.0**-126 <= scale < np.inf):
            scale = np.float32(1)
        return scale, (source / source.dtype.type(scale)).astype(np.float16)


def top_k(residual, k):
    """Places of the k numbers of largest magnitude, NaN before all others, then by place; the numbers; what is left."""
    order = sorted(range(len(residual)), key=lambda i: (not np.isnan(residual[i]), -abs(np.nan_to_num(residual[i])), i))
    indices = np.array(sorted(order[:k]))
    left = residual.copy()
    left[indices] = 0
    return indices, residual[indices], left


def checksum(words, start=0):
    """Words times weights in blocks of 1024, one block after the other, then how many; in whole numbers."""
    weights = [int(raw) >> 32 | 1 for raw in np.random.PCG64(0).random_raw(1024)]
    blocks = [words[first : first + 1024] for first in range(0, len(words), 1024)]
    terms = [sum(int(word) * weight for word, weight in zip(block, weights, strict=False)) for block in blocks]
    for term in (*terms, len(words) + 1):
        start = ((start ^ start >> 32) * 0x9E3779B97F4A7C15 + term) % 2**64
    return start


def fletcher32(data: bytes) -> int:
    """As in HDF5's H5checksum.c, for an even number of bytes."""
    one = two = 0
    for start in range(0, len(data), 720):
        for i in range(start, min(start + 720, len(data)), 2):
            one += data[i] << 8 | data[i + 1]
            two += one
        one, two = (one & 0xFFFF) + (one >> 16), (two & 0xFFFF) + (two >> 16)
    one, two = (one & 0xFFFF) + (one >> 16), (two & 0xFFFF) + (two >> 16)
    return two << 16 | one

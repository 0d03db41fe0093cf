"""2-D convolution of images [m, height, width, channels], on the register tile, with nothing unrolled in memory.

A row of `size` pixels with all their channels lies contiguous, so for each row of the kernel the products of a whole
row of outputs are one product of matrices whose left one is the image itself, with rows `stride` pixels apart (implicit
im2col). Weights are `size` matrices [size * channels, outputs] in panels, one for each row of the kernel.
"""

from numba import uintp

from kernels._jit import jit
from kernels.activations import LINEAR, RELU, activate, deactivate
from kernels.gemm import across, along, column_sums
from kernels.registry import kernel
from kernels.tile import PANEL


@jit
def _spread(x, x0, h, w, c, room, high, wide, top, apart):
    """An image [h, w, c] into a room [high, wide, c] of zeros, `top` from its edges, pixels `apart` from each other."""
    for j in range(high * wide * c):
        room[uintp(j)] = 0
    for u in range(h):
        if 0 <= top + u * apart < high:
            for v in range(w):
                if 0 <= top + v * apart < wide:
                    place, source = ((top + u * apart) * wide + top + v * apart) * c, x0 + (u * w + v) * c
                    for j in range(c):
                        room[uintp(place + j)] = x[uintp(source + j)]


@jit
def _padded(x, x0, high, wide, c, pad, room):
    """An image with `pad` zeros round it: the array that it lies in, and its place there."""
    if not pad:
        return x, x0
    _spread(x, x0, high, wide, c, room, high + 2 * pad, wide + 2 * pad, pad, 1)
    return room, 0


@kernel("images", (1, 2, 2, 1), (1,), (1,), (1, 2, 2, 1), (4, 1), 1, 1, 0, 0, (64,))
def conv_forward(x, weight, bias, y, slope, size, stride, pad, activation, room):
    """y[m, h, w, o] = activation(conv(x[m, H, W, c]) + bias[o]); slope[m * h * w, o] if the activation is `SLOPED`.

    room: (H + 2 pad) (W + 2 pad) c numbers.
    """
    m, high, wide, c = x.shape
    _, h, w, o = y.shape
    a, out = x.reshape(x.size), y.reshape(y.size)
    flat = y.reshape((m * h * w, o))
    full = wide + 2 * pad
    for i in range(m):
        image, at = _padded(a, i * high * wide * c, high, wide, c, pad, room)
        for u in range(h):
            for row in range(size):
                along(
                    image,
                    at + (u * stride + row) * full * c,
                    stride * c,
                    weight,
                    row * size * c * o,
                    0,
                    out,
                    (i * h + u) * w * o,
                    o,
                    w,
                    o,
                    size * c,
                    1 if row else (2 if bias.size > 0 else 0),
                    activation == RELU and row == size - 1,
                    bias,
                )
        if activation != LINEAR and activation != RELU:
            activate(flat, slope, i * h * w, (i + 1) * h * w, activation)


@kernel("images", (1,), (1,), 1, 1, 1)
def conv_turn(weight, turned, size, c, o):
    """The weights that I needs: rows and columns of the kernel backwards, channels and outputs exchanged."""
    for row in range(size):
        for column in range(size):
            for j in range(c):
                for n in range(o):
                    panel = n // PANEL * PANEL
                    source = row * size * c * o + panel * size * c
                    source += (column * c + j) * min(PANEL, o - panel) + n - panel
                    strip = j // PANEL * PANEL
                    target = (size - 1 - row) * size * o * c + strip * size * o
                    target += ((size - 1 - column) * o + n) * min(PANEL, c - strip) + j - strip
                    turned[uintp(target)] = weight[uintp(source)]


@kernel("images", (1, 2, 2, 1), (4, 1), (1, 2, 2, 1), (1,), (1, 2, 2, 1), 1, 1, 0, 0, (64,))
def conv_backward_input(y, slope, dy, turned, dx, size, stride, pad, activation, room):
    """dy[m, h, w, o] becomes the gradient before the activation; dx[m, H, W, c] follows (left out if of size 0).

    The gradient, its pixels `stride` apart among zeros, is convolved with the turned kernel (`conv_turn`).
    room: (H + size - 1) (W + size - 1) o numbers.
    """
    m, h, w, o = dy.shape
    _, high, wide, c = dx.shape
    g, out = dy.reshape(dy.size), dx.reshape(dx.size)
    rows, delta = y.reshape((m * h * w, o)), dy.reshape((m * h * w, o))
    full, top = wide + size - 1, size - 1 - pad
    for i in range(m):
        if activation != LINEAR:
            deactivate(rows, slope, delta, i * h * w, (i + 1) * h * w, activation)
        if dx.size == 0:
            continue
        _spread(g, i * h * w * o, h, w, o, room, high + size - 1, full, top, stride)
        for u in range(high):
            begun = 0
            for row in range(size):
                inside = u + row - top
                if inside % stride == 0 and 0 <= inside < h * stride:  # other rows hold zeros
                    along(
                        room,
                        (u + row) * full * o,
                        o,
                        turned,
                        row * size * o * c,
                        0,
                        out,
                        (i * high + u) * wide * c,
                        c,
                        wide,
                        c,
                        size * o,
                        begun,
                        False,
                        room,
                    )
                    begun = 1
            if not begun:
                dx[i, u] = 0


@kernel("images", (1, 2, 2, 1), (1, 2, 2, 1), (1,), (1,), 1, 1, 0, False, (64,))
def conv_backward_weight(x, delta, grad_weight, grad_bias, size, stride, pad, add, room):
    """Gradients of weight and bias from x[m, H, W, c] and delta[m, h, w, o], samples and rows in ascending order.

    Added onto what is there if `add`. room as in `conv_forward`.
    """
    m, high, wide, c = x.shape
    _, h, w, o = delta.shape
    a, g = x.reshape(x.size), delta.reshape(delta.size)
    full = wide + 2 * pad
    for i in range(m):
        image, at = _padded(a, i * high * wide * c, high, wide, c, pad, room)
        for u in range(h):
            later = add or i > 0 or u > 0
            for row in range(size):
                across(
                    image,
                    at + (u * stride + row) * full * c,
                    stride * c,
                    g,
                    (i * h + u) * w * o,
                    o,
                    grad_weight,
                    row * size * c * o,
                    0,
                    size * c,
                    o,
                    w,
                    later,
                )
            if grad_bias.size > 0:
                column_sums(g, (i * h + u) * w * o, o, w, o, grad_bias, later)

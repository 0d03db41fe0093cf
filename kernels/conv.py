"""2-D convolution of images [m, height, width, channels], on the register tile, with nothing unrolled in memory.

A row of `size` pixels with all their channels lies contiguous, so for each row of the kernel the products of a whole
row of outputs are one product of matrices whose left one is the image itself, with rows `stride` pixels apart (implicit
im2col). Weights are `size` matrices [size * channels, outputs] in panels, one for each row of the kernel.
"""

from numba import uintp

from ringtmp.kernels._jit import jit
from ringtmp.kernels.activations import LINEAR, RELU, activate, deactivate
from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.gemm import across, along, column_sums
from ringtmp.kernels.tile import PANEL


@jit
def _spread(x, x0, h, w, c, room, high, wide, top, apart):
    """Copy an image [h, w, c] into zeros [high, wide, c] from (`top`, `top`) on, pixels `apart` from each other."""
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
    """Array and offset of an image surrounded by `pad` zeros: `room`, or `x` itself without padding."""
    if not pad:
        return x, x0
    _spread(x, x0, high, wide, c, room, high + 2 * pad, wide + 2 * pad, pad, 1)
    return room, 0


@kernel("images", (1, 2, 2, 1), (1,), (1,), (1, 2, 2, 1), (4, 1), 1, 1, 0, 0, (64,))
def conv_forward(x, weight, bias, y, slope, size, stride, pad, activation, room):
    """Convolve, add the bias and apply the activation: y = activation(conv(x, weight) + bias).

    Parameters
    ----------
    x : float[m, H, W, c]
        Input.
    weight : float[size * size * c * o]
        `size` matrices [size * c, o] in panels, one for each row of the kernel.
    bias : float[o]
        Added to each pixel; of size 0: no bias.
    y : float[m, h, w, o]
        Receives the result.
    slope : float[m * h * w, o]
        Receives the activation's derivative if the activation is in `SLOPED`; otherwise unused, of any size.
    size, stride, pad : int
        Side of the kernel, 1 or more; step between windows, 1 or more; zeros added at each edge, 0 or more. In pixels.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    room : float[(H + 2 pad) (W + 2 pad) c or more]
        Scratch; unused if `pad` is 0.
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
    """Make the weights that I needs: kernel rows and columns reversed, channels and outputs exchanged.

    Parameters
    ----------
    weight : float[size * size * c * o]
        Weights as `conv_forward` takes them.
    turned : float[size * size * o * c]
        Receives `size` matrices [size * o, c] in panels.
    size, c, o : int
        Side of the kernel; channels; outputs.
    """
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
    """Gradients before the activation and at `x`.

    The gradient, its pixels `stride` apart among zeros, is convolved with the turned kernel (`conv_turn`).

    Parameters
    ----------
    y : float[m, h, w, o]
        Result of F.
    slope : float[m * h * w, o]
        Kept by F if the activation is in `SLOPED`; otherwise unused, of any size.
    dy : float[m, h, w, o]
        Gradient at y; becomes the gradient before the activation, which W needs.
    turned : float[size * size * o * c]
        Result of `conv_turn`.
    dx : float[m, H, W, c]
        Receives the gradient at x; not computed if its size is 0.
    size, stride, pad : int
        Those of `conv_forward`.
    activation : int
        Code of the activation, a value of `ACTIVATIONS`.
    room : float[(H + size - 1) (W + size - 1) o or more]
        Scratch.
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
    """Gradients of weight and bias, summed over samples and rows of pixels in ascending order.

    Parameters
    ----------
    x : float[m, H, W, c]
        Input of F.
    delta : float[m, h, w, o]
        Gradient before the activation, from `conv_backward_input`.
    grad_weight : float[size * size * c * o]
        Receives the gradient of the weights, in their layout.
    grad_bias : float[o]
        Receives the gradient of the bias; of size 0: no bias.
    size, stride, pad : int
        Those of `conv_forward`.
    add : bool
        Whether to add to the contents of `grad_weight` and `grad_bias` instead of replacing them.
    room : float[(H + 2 pad) (W + 2 pad) c or more]
        Scratch; unused if `pad` is 0.
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

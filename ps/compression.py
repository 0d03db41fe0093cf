"""Compression of gradients and weights in messages: none, half precision, or only the largest numbers."""

import numpy as np

from ringtmp.kernels.compression import from_half, scatter, to_half, top_k
from ringtmp.kernels.elementwise import add_to
from ringtmp.nn.layer import Array, aligned


class Compressor:
    """No compression: messages carry the numbers themselves. Base class of the others.

    Attributes
    ----------
    compresses_gradients, compresses_weights : bool
        Whether messages differ from the numbers themselves. If not, the numbers are sent from their own arrays, and
        none of the methods is called.

    Parameters
    ----------
    dtype : numpy dtype
        Dtype of gradients and weights: float32 or float64.
    """

    compresses_gradients = compresses_weights = False

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)

    def gradient_buffer(self, size: int) -> Array:
        """A new buffer for the message that carries a gradient of `size` numbers."""
        return aligned(size, self.dtype)

    def weights_buffer(self, size: int) -> Array:
        """A new buffer for the message that carries `size` weights."""
        return aligned(size, self.dtype)

    def compress_gradient(self, number: int, gradient: Array, message: Array) -> None:
        """Write a gradient into a message (on the worker).

        Parameters
        ----------
        number : int
            Number of the key range.
        gradient : array [size]
            The gradient; stays.
        message : array
            Receives it; from `gradient_buffer`.
        """
        message[...] = gradient

    def decompress_gradient(self, message: Array, gradient: Array) -> None:
        """Overwrite `gradient`, array [size], with the contents of `message` (on the server)."""
        gradient[...] = message

    def compress_weights(self, weights: Array, message: Array) -> None:
        """Write `weights`, array [size], into `message`, from `weights_buffer` (on the server)."""
        message[...] = weights

    def decompress_weights(self, message: Array, weights: Array) -> None:
        """Overwrite `weights`, array [size], with the contents of `message` (on the worker)."""
        weights[...] = message


class HalfPrecision(Compressor):
    """Gradients and weights in float16, each message scaled by its largest absolute number."""

    compresses_gradients = compresses_weights = True

    def gradient_buffer(self, size: int) -> Array:
        return aligned(size + 2, np.uint16)  # the scale, a float32, comes first

    def weights_buffer(self, size: int) -> Array:
        return self.gradient_buffer(size)

    def compress_gradient(self, number: int, gradient: Array, message: Array) -> None:
        to_half(gradient, message)

    def decompress_gradient(self, message: Array, gradient: Array) -> None:
        from_half(message, gradient)

    def compress_weights(self, weights: Array, message: Array) -> None:
        to_half(weights, message)

    def decompress_weights(self, message: Array, weights: Array) -> None:
        from_half(message, weights)


class TopK(Compressor):
    """The largest numbers of a gradient; the others are kept and added to the next one (Stich et al. 2018).

    A message holds values, then their indices as int32. Weights are not compressed.

    Parameters
    ----------
    dtype : numpy dtype
        Dtype of gradients and weights: float32 or float64.
    share : float
        Share of a gradient's numbers that is sent, in (0, 1].
    """

    compresses_gradients = True

    def __init__(self, dtype: np.dtype, share: float) -> None:
        super().__init__(dtype)
        self.share = share
        self.residual: dict[int, Array] = {}  # by key range: what has not been sent

    def count(self, size: int) -> int:
        """Number of values sent of a gradient of `size` numbers: at least 1."""
        return max(1, round(self.share * size))

    def gradient_buffer(self, size: int) -> Array:
        return aligned(self.count(size) * (self.dtype.itemsize + 4), np.uint8)

    def compress_gradient(self, number: int, gradient: Array, message: Array) -> None:
        if number not in self.residual:
            self.residual[number] = aligned(gradient.size, self.dtype)
        residual = self.residual[number]
        add_to(residual, gradient)
        values, indices = self._parts(message)
        top_k(residual, len(indices), indices, values)

    def decompress_gradient(self, message: Array, gradient: Array) -> None:
        values, indices = self._parts(message)
        scatter(indices, values, gradient)

    def _parts(self, message: Array) -> tuple[Array, Array]:
        """Views of the values and of the indices in `message`."""
        count = len(message) // (self.dtype.itemsize + 4)
        split = count * self.dtype.itemsize
        return message[:split].view(self.dtype), message[split:].view(np.int32)


def make_compressor(name: str, dtype: np.dtype, share: float) -> Compressor:
    """The compressor that `--compression` names.

    Parameters
    ----------
    name : {"none", "float16", "topk"}
        Value of `--compression`.
    dtype : numpy dtype
        Dtype of gradients and weights: float32 or float64.
    share : float
        For "topk": the share of a gradient's numbers that is sent, in (0, 1].
    """
    if name == "topk":
        return TopK(dtype, share)
    return {"none": Compressor, "float16": HalfPrecision}[name](dtype)

"""What travels in place of gradients and weights: themselves, half precision, or only the largest numbers."""

import numpy as np

from kernels.compression import from_half, scatter, to_half, top_k
from kernels.elementwise import add_to
from ringtmp.nn.layer import Array, aligned


class Filter:
    """No filter: the numbers themselves. `pushes` and `pulls`: whether gradients and weights are recoded on the way."""

    pushes = pulls = False

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)

    def wire(self, size: int) -> Array:
        """A buffer in which a gradient of `size` numbers travels."""
        return aligned(size, self.dtype)

    def answer(self, size: int) -> Array:
        """A buffer in which weights travel."""
        return aligned(size, self.dtype)

    def pack(self, number: int, gradient: Array, wire: Array) -> None:
        """Recode a gradient of key range `number`."""
        wire[...] = gradient

    def unpack(self, wire: Array, row: Array) -> None:
        """The reverse, on the server."""
        row[...] = wire

    def pack_weights(self, weights: Array, wire: Array) -> None:
        """Recode weights."""
        wire[...] = weights

    def unpack_weights(self, wire: Array, weights: Array) -> None:
        """The reverse, on the worker."""
        weights[...] = wire


class Half(Filter):
    """Both in float16, each message scaled by its largest number."""

    pushes = pulls = True

    def wire(self, size: int) -> Array:
        return aligned(size + 2, np.uint16)

    def answer(self, size: int) -> Array:
        return self.wire(size)

    def pack(self, number: int, gradient: Array, wire: Array) -> None:
        to_half(gradient, wire)

    def unpack(self, wire: Array, row: Array) -> None:
        from_half(wire, row)

    def pack_weights(self, weights: Array, wire: Array) -> None:
        to_half(weights, wire)

    def unpack_weights(self, wire: Array, weights: Array) -> None:
        from_half(wire, weights)


class TopK(Filter):
    """Of a gradient the largest numbers; the rest is kept and added to the next one (Stich et al. 2018).

    A message holds values, then places as int32.
    """

    pushes = True

    def __init__(self, dtype: np.dtype, share: float) -> None:
        super().__init__(dtype)
        self.share = share
        self.rest: dict[int, Array] = {}  # by key range: what has not been sent

    def count(self, size: int) -> int:
        """How many numbers of `size` are sent."""
        return max(1, round(self.share * size))

    def wire(self, size: int) -> Array:
        return aligned(self.count(size) * (self.dtype.itemsize + 4), np.uint8)

    def pack(self, number: int, gradient: Array, wire: Array) -> None:
        if number not in self.rest:
            self.rest[number] = aligned(gradient.size, self.dtype)
        rest = self.rest[number]
        add_to(rest, gradient)
        values, places = self._parts(wire)
        top_k(rest, len(places), places, values)

    def unpack(self, wire: Array, row: Array) -> None:
        values, places = self._parts(wire)
        scatter(places, values, row)

    def _parts(self, wire: Array) -> tuple[Array, Array]:
        count = len(wire) // (self.dtype.itemsize + 4)
        split = count * self.dtype.itemsize
        return wire[:split].view(self.dtype), wire[split:].view(np.int32)


def make_filter(name: str, dtype: np.dtype, share: float) -> Filter:
    """The filter of that name (`none`, `float16`, `topk`)."""
    return {"none": Filter, "float16": Half}[name](dtype) if name != "topk" else TopK(dtype, share)

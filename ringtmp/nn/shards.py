"""How parameters are cut into ranges of keys, and the ranges dealt to servers.

A key is the place of a number in the parameters of all layers, one after the other. The parameter server (`ps`), the
all-reduce beside it, and the simulator of both use the same ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ringtmp.nn.layer import pieces


class Segment(NamedTuple):
    """A part of a key range that lies in one layer.

    Attributes
    ----------
    layer : int
        Number of the layer.
    start, stop : int
        The part is numbers `start` to `stop` - 1 of the layer's flat parameters.
    at : int
        Place of its first number in the key range.
    """

    layer: int
    start: int
    stop: int
    at: int


@dataclass(frozen=True)
class KeyRange:
    """Keys that travel as one message and are kept by one server.

    Attributes
    ----------
    number : int
        Number of the range, in the order of the forward.
    segments : tuple of Segment
        Its parts in the layers.
    server : int
        Number of the server.
    """

    number: int
    segments: tuple[Segment, ...]
    server: int

    @property
    def size(self) -> int:
        """Number of its keys."""
        return sum(segment.stop - segment.start for segment in self.segments)


def grouped(sizes: Sequence[float], least: float) -> list[int]:
    """First layer of each group: layers are joined from the last one backwards until a group has `least`.

    Parameters
    ----------
    sizes : sequence of float
        Size of each layer, such as its parameters.
    least : float
        Least size of a group; the first group may be smaller.
    """
    starts, size = [], 0.0
    for layer in range(len(sizes) - 1, -1, -1):
        size += sizes[layer]
        if size >= least or layer == 0:
            starts.append(layer)
            size = 0.0
    starts.reverse()
    return starts


def dealt(sizes: Sequence[float], servers: int) -> list[int]:
    """Server of each size: each goes to the server with the least so far.

    Parameters
    ----------
    sizes : sequence of float
        Sizes, in the order in which they are dealt.
    servers : int
        Number of servers.
    """
    loads, owners = [0.0] * servers, []
    for size in sizes:
        owners.append(loads.index(min(loads)))
        loads[owners[-1]] += size
    return owners


def key_ranges(counts: Sequence[int], most: int, servers: int, finely: bool = False) -> list[KeyRange]:
    """Cut layers into ranges of at most `most` keys, and deal them to servers.

    Layers of less than a quarter of `most` are joined with those before them. With several servers no range is larger
    than a server's part of all parameters.

    Parameters
    ----------
    counts : sequence of int
        Parameters of each layer, in the order of the forward.
    most : int
        Most keys of a range.
    servers : int
        Number of servers.
    finely : bool
        Whether to deal each layer evenly over all servers (used where all ranks serve).
    """
    if servers > 1:
        most = max(1, min(most, -(-sum(counts) // servers)))
    starts = grouped(counts, most / 4)
    cuts: list[tuple[Segment, ...]] = []
    for first, last in zip(starts, [*starts[1:], len(counts)], strict=True):
        total = sum(counts[first:last])
        number = -(-total // most)
        if finely:
            number = min(total, -(-number // servers) * servers)
        place = 0
        for size in pieces(total, number) if total else ():
            cuts.append(_segments(counts, first, place, place + size))
            place += size
    owners = dealt([sum(s.stop - s.start for s in cut) for cut in cuts], servers)
    return [KeyRange(n, cut, owner) for n, (cut, owner) in enumerate(zip(cuts, owners, strict=True))]


def _segments(counts: Sequence[int], layer: int, start: int, stop: int) -> tuple[Segment, ...]:
    """Parts, in their layers, of keys `start` to `stop` - 1, counted from the first key of `layer`."""
    found, at = [], 0
    while start < stop:
        count = counts[layer]
        if start < count:
            end = min(stop, count)
            found.append(Segment(layer, start, end, at))
            at += end - start
            start = end
        start, stop, layer = start - count, stop - count, layer + 1
    return tuple(found)

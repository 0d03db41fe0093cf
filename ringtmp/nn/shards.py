"""How parameters are cut into ranges of keys, and the ranges dealt to servers.

A key is the place of a number in the parameters of all layers, one after the other. The same cut serves the parameter
server (`ps`), the all-reduce beside it, and the simulator of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ringtmp.nn.layer import pieces


class Segment(NamedTuple):
    """The numbers `start`...`stop` - 1 of a layer's flat parameters, which begin at place `at` of their range."""

    layer: int
    start: int
    stop: int
    at: int


@dataclass(frozen=True)
class KeyRange:
    """What travels as one message: numbered in the order of the forward, and kept by one server."""

    number: int
    segments: tuple[Segment, ...]
    server: int

    @property
    def size(self) -> int:
        """Count of its numbers."""
        return sum(segment.stop - segment.start for segment in self.segments)


def grouped(sizes: Sequence[float], least: float) -> list[int]:
    """First layers of groups: from the last layer backwards, until each has `least` or nothing is left."""
    starts, size = [], 0.0
    for layer in range(len(sizes) - 1, -1, -1):
        size += sizes[layer]
        if size >= least or layer == 0:
            starts.append(layer)
            size = 0.0
    starts.reverse()
    return starts


def dealt(sizes: Sequence[float], servers: int) -> list[int]:
    """A server for each size, one after the other the one with the least so far."""
    loads, owners = [0.0] * servers, []
    for size in sizes:
        owners.append(loads.index(min(loads)))
        loads[owners[-1]] += size
    return owners


def key_ranges(counts: Sequence[int], most: int, servers: int, finely: bool = False) -> list[KeyRange]:
    """Cut layers of `counts` parameters into ranges of at most `most` keys.

    Layers of less than a quarter of `most` go together with those before them. Where there are several servers no range
    is larger than a server's part of all parameters.

    Parameters
    ----------
    counts : sequence of int
        Parameters of each layer, in the order of the forward.
    most : int
    servers : int
    finely : bool
        Deal each layer over all servers, so that each gets as much of it (where all ranks serve).
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
    """Keys `start`...`stop` - 1, counted from the first one of `layer`."""
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

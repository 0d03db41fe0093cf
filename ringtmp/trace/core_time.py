"""Where the time of the ranks of one host went, given the cores that they share.

A rank's own trace cannot tell a slow action from one whose rank waited for a core: the operating system takes the core
away without a word. What the ranks of a host did at the same time can: at each instant the active ranks (those that do
not wait) share the cores. The rule, with A active ranks and room for c of them:

- A <= c: each active rank has a core. A > c: each has c / A of one, and waits for a core for the rest of the instant.
- A rank that waits while A < c waits for a neighbour: a core was free for it. While A >= c it waits for a core: even
  with work at hand it would have had to share one.

The parts of a rank sum to the window. The rule assumes that active ranks share the cores equally, and that no other
process uses them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ringtmp.trace.events import PARTS

CORE_PARTS = ("compute", "transfer", "neighbour", "core", "checkpoint", "other")

_WAIT, _OTHER = PARTS.index("wait"), PARTS.index("other")
_NEIGHBOUR, _CORE = CORE_PARTS.index("neighbour"), CORE_PARTS.index("core")
_COLUMN = np.array([CORE_PARTS.index("neighbour" if part == "wait" else part) for part in PARTS])


class Intervals(NamedTuple):
    """What one rank did, as intervals in any order.

    What no interval covers is `other`. Of two that overlap, the one that began first counts up to its end.

    Attributes
    ----------
    start, end : array of int64 [intervals]
        Nanoseconds of the host's clock, the same for all ranks of the host.
    part : array of int [intervals]
        Index into `ringtmp.trace.events.PARTS`.
    """

    start: np.ndarray
    end: np.ndarray
    part: np.ndarray


def core_time(
    intervals_by_rank: Sequence[Intervals], cores: float, *, threads: int = 1, window: tuple[int, int] | None = None
) -> np.ndarray:
    """Divide the time of the ranks of one host into parts, waits for a core among them; see the module for the rule.

    Parameters
    ----------
    intervals_by_rank : sequence of Intervals
        All ranks of the host that were active in the window.
    cores : float
        Cores that the ranks may use, above 0; a fraction where a limit of the host says so.
    threads : int
        Threads of each rank: an active rank occupies that many cores.
    window : (int, int) or None
        Nanoseconds between which the time is divided; None: from when all ranks have an interval to when the first has
        its last.

    Returns
    -------
    array of float64 [ranks, parts]
        Seconds by `CORE_PARTS`. Each row sums to the length of the window.
    """
    if not intervals_by_rank:
        return np.zeros((0, len(CORE_PARTS)))
    if window is None:
        window = common_window(intervals_by_rank)
    begin, end = window
    filled = [_fill(intervals, begin, end) for intervals in intervals_by_rank]
    room = cores / threads

    # Put the begins of all segments in order, and count the active ranks from each to the next.
    starts = np.concatenate([start for start, _, _ in filled])
    order = np.argsort(starts, kind="stable")  # each rank's are in order, so this merges
    change = np.concatenate([np.diff((part != _WAIT).astype(np.int64), prepend=0) for _, _, part in filled])
    active = np.cumsum(change[order])

    # Sum up from the begin of the window: what an active rank gets, and when a waiting rank waits for a core.
    length = np.diff(starts[order], append=end)
    granted = np.concatenate([[0.0], np.cumsum(length * np.minimum(1.0, room / np.maximum(active, 1)))])
    crowded = np.concatenate([[0.0], np.cumsum(length * (active >= room))])

    # Divide each segment by the growth of these sums until the rank's next segment.
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    table = np.zeros((len(filled), len(CORE_PARTS)))
    first = 0
    for row, (start, stop, part) in zip(table, filled, strict=True):
        at = np.append(place[first : first + len(start)], len(order))
        first += len(start)
        span = (stop - start).astype(float)
        own = np.where(part == _WAIT, span - np.diff(crowded[at]), np.diff(granted[at]))
        row += np.bincount(_COLUMN[part], own, len(CORE_PARTS))
        row[_CORE] += (span - own).sum()
    return table / 1e9


def common_window(intervals_by_rank: Sequence[Intervals]) -> tuple[int, int]:
    """The longest time in which every rank has intervals, in nanoseconds; (0, 0) if there is none.

    Parameters
    ----------
    intervals_by_rank : sequence of Intervals
        As in `core_time`.
    """
    if not intervals_by_rank or any(not len(each.start) for each in intervals_by_rank):
        return 0, 0
    begin = max(int(each.start.min()) for each in intervals_by_rank)
    end = min(int(each.end.max()) for each in intervals_by_rank)
    return (begin, end) if begin < end else (0, 0)


def _fill(intervals: Intervals, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end and part of segments that cover the window without gap or overlap; `other` fills the gaps."""
    order = np.argsort(intervals.start, kind="stable")
    start = np.clip(intervals.start[order], begin, end).astype(np.int64)
    stop = np.clip(intervals.end[order], begin, end).astype(np.int64)

    # Let no interval begin before the end of those before it.
    reached = np.concatenate([[begin], np.maximum.accumulate(stop)]) if len(stop) else np.array([begin])
    start = np.maximum(start, reached[:-1])
    stop = np.maximum(start, stop)

    # Alternate: gap, interval, gap, ..., gap.
    count = len(start)
    starts = np.empty(2 * count + 1, dtype=np.int64)
    stops, parts = np.empty_like(starts), np.full(2 * count + 1, _OTHER)
    starts[0::2], starts[1::2] = np.concatenate([[begin], stop]), start
    stops[0::2], stops[1::2] = np.concatenate([start, [end]]), stop
    parts[1::2] = np.asarray(intervals.part)[order]
    return starts, stops, parts

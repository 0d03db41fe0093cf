"""A sign of life of each rank, for whoever watches: where its time has gone so far, twice a second, in a small file.

One file for each rank, so that hosts that share a file system never write into the same page of it.
"""

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PARTS = ("compute", "transfer", "wait", "checkpoint", "other")
_LAYOUT = struct.Struct("<8sdqd5d")
_MAGIC = b"RINGPLS1"


class RankStatus(NamedTuple):
    """What a rank has last said of itself.

    Attributes
    ----------
    time : float
        Seconds since the epoch.
    step : int
        Steps that it has done; 0 of a rank that only serves.
    wall : float
        Seconds since its first step began.
    parts : tuple of float
        Seconds of `wall` by `PARTS`.
    """

    time: float
    step: int
    wall: float
    parts: tuple[float, ...]


def write_status(path: Path, step: int, wall: int, parts: Iterable[int]) -> None:
    """Put a beat in the place of the last one; times in nanoseconds. Raises `OSError`.

    Opened for each beat: over NFS others see a file once it has been closed.
    """
    row = _LAYOUT.pack(_MAGIC, time.time(), step, wall / 1e9, *(part / 1e9 for part in parts))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, row, 0)
    finally:
        os.close(handle)


def live_status(trace: Path) -> Path:
    """Where the rank with this trace writes its beats."""
    return trace.with_name(trace.name.replace("rank-", "pulse-")).with_suffix(".bin")


def read_status(path: Path) -> RankStatus | None:
    """The last beat; None if there is none yet."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != _LAYOUT.size or content[:8] != _MAGIC:
        return None
    _, moment, step, wall, *parts = _LAYOUT.unpack(content)
    return RankStatus(moment, step, wall, tuple(parts))

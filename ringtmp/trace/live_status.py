"""The live status of each rank: its step and its time by part, written twice a second to a small file.

Each rank has its own file, so that hosts on a shared file system never write to the same page.
"""

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_LAYOUT = struct.Struct("<8sdqd5d")
_MAGIC = b"RINGSTA1"


class RankStatus(NamedTuple):
    """The last status that a rank has written.

    Attributes
    ----------
    time : float
        Seconds since the epoch.
    step : int
        Steps done; 0 on a rank that only serves.
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
    """Overwrite the status file. Raises `OSError`.

    The file is opened for each write: over NFS other hosts see its contents only after a close.

    Parameters
    ----------
    path : Path
        From `status_path`.
    step : int
        Steps done.
    wall : int
        Nanoseconds since the first step began.
    parts : iterable of int
        Nanoseconds of `wall` by `PARTS`.
    """
    row = _LAYOUT.pack(_MAGIC, time.time(), step, wall / 1e9, *(part / 1e9 for part in parts))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, row, 0)
    finally:
        os.close(handle)


def status_path(trace: Path) -> Path:
    """The status file of the rank that writes `trace`."""
    return trace.with_name(trace.name.replace("rank-", "status-")).with_suffix(".bin")


def read_status(path: Path) -> RankStatus | None:
    """The last status in the file `path`; None if none has been written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != _LAYOUT.size or content[:8] != _MAGIC:
        return None
    _, moment, step, wall, *parts = _LAYOUT.unpack(content)
    return RankStatus(moment, step, wall, tuple(parts))

"""Where this rank's time went in a launch, given the cores of its host: waits for a neighbour and for a core apart.

The ranks of a host send their newest intervals to the first of them, which divides the time (`core_time`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.point_to_point import TAG_INTERVALS
from ringtmp.run.hosts import gather_hosts
from ringtmp.trace.core_time import CORE_PARTS, Intervals, common_window, core_time
from ringtmp.trace.events import PARTS
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_EVENTS = 1_000_000  # most events of a host that are looked at: a second of work
_OF_A_RANK = 50_000  # most of them from one rank


def time_given_cores(comm: "Intracomm", recorder: Recorder, threads: int) -> dict[str, float] | None:
    """This rank's wall time in seconds by `CORE_PARTS`; None if a rank of its host keeps no events. Collective.

    The time of each part is that of the whole launch; the newest events say how it is divided into the rank's own and
    the wait for a core.

    Parameters
    ----------
    comm : Intracomm
        All ranks that have trained to the end: some may have been lost since the start.
    recorder : Recorder
        This rank's recorder.
    threads : int
        Threads of a rank.
    """
    host = next(host for host in gather_hosts(comm) if comm.rank in host.ranks)
    mine = recorder.newest(min(_OF_A_RANK, _EVENTS // len(host.ranks)))
    if comm.rank != host.ranks[0]:
        comm.send(mine, host.ranks[0], TAG_INTERVALS)
        found = comm.recv(source=host.ranks[0], tag=TAG_INTERVALS)
    else:
        rest = [comm.recv(source=rank, tag=TAG_INTERVALS) for rank in host.ranks[1:]]
        tables = _divide([mine, *rest], host.cores, threads)
        for rank, table in zip(host.ranks[1:], tables[1:], strict=True):
            comm.send(table, rank, TAG_INTERVALS)
        found = tables[0]
    return None if found is None else extrapolate(recorder.parts(), *found)


def _divide(
    ranks: Sequence[Intervals | None], cores: float, threads: int
) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
    """For each rank its seconds by `CORE_PARTS`, given the cores and given a core for each; None: unknown."""
    known = [each for each in ranks if each is not None]
    window = common_window(known)
    if len(known) < len(ranks) or window[0] == window[1]:
        return [None] * len(ranks)
    given = core_time(known, cores, threads=threads, window=window)
    alone = core_time(known, float(len(known)) + 1, window=window)
    return list(zip(given, alone, strict=True))


def extrapolate(parts: Mapping[str, int], given: np.ndarray, alone: np.ndarray) -> dict[str, float]:
    """Divide the parts of a whole launch as those of a window are divided.

    Parameters
    ----------
    parts : mapping
        Nanoseconds of the launch by `ringtmp.trace.events.PARTS`.
    given, alone : array of float64 [parts]
        Seconds of the window by `CORE_PARTS`: given the cores of the host, and given a core for each rank.

    Returns
    -------
    dict
        Seconds by `CORE_PARTS`; their sum is that of `parts`.
    """
    core = CORE_PARTS.index("core")
    active = [n for n, part in enumerate(CORE_PARTS) if part not in ("core", "neighbour")]
    mean = given[active].sum() / alone[active].sum() if alone[active].sum() else 1.0
    divided = dict.fromkeys(CORE_PARTS, 0.0)
    for part in PARTS:
        name = "neighbour" if part == "wait" else part
        at = CORE_PARTS.index(name)
        own = given[at] / alone[at] if alone[at] else 1.0 if part == "wait" else mean
        divided[name] = parts[part] / 1e9 * own
        divided[CORE_PARTS[core]] += parts[part] / 1e9 * (1 - own)
    return divided

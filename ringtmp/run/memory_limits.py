"""The memory that this rank may take: by --memory-limit, the process's limits, its cgroup, SLURM and the node."""

import os
import resource
from pathlib import Path
from typing import NamedTuple

from ringtmp.config.units import parse_bytes
from ringtmp.trace.machine import CGROUPS, MINE, group_files, usable_cpus

_UNUSED = {
    "RLIMIT_DATA": 56 << 20,
    "RLIMIT_AS": 256 << 20,
}  # bytes that threads' stacks and heaps reserve and do not use


class Limit(NamedTuple):
    """A limit of memory.

    Attributes
    ----------
    size : int
        Bytes that this rank may take in all.
    whose : str
        Origin of the limit, for a message.
    """

    size: int
    whose: str


def tightest(given: str | None, ranks_here: int) -> Limit:
    """Find the smallest limit that holds for this rank.

    Parameters
    ----------
    given : str or None
        The setting `memory_limit`: a size, or "off" for no limit.
    ranks_here : int
        Ranks on this host, which share the host's limits evenly.

    Raises
    ------
    UserError
        `given` is no size.
    """
    return Limit(1 << 62, "none") if given == "off" else min(limits(given, ranks_here))


def limits(given: str | None, ranks_here: int) -> list[Limit]:
    """All limits that hold for this rank.

    Parameters
    ----------
    given : str or None
        The setting `memory_limit`, a size.
    ranks_here : int
        Ranks on this host, which share the host's limits evenly.

    Raises
    ------
    UserError
        `given` is no size.
    """
    found = []
    if given:
        found.append(Limit(parse_bytes(given, "memory_limit"), "--memory-limit"))
    for name, what in (("RLIMIT_DATA", "ulimit -d"), ("RLIMIT_AS", "ulimit -v")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            # The process's limit counts memory that is reserved, used or not; `size` counts memory that is used.
            found.append(Limit(soft - (reserved(name) - used()) - _UNUSED[name], f"{name} ({what})"))
    if (size := _cgroup()) is not None:
        found.append(Limit(size // ranks_here, f"the cgroup's memory.max over {ranks_here} ranks"))
    if (size := _slurm()) is not None:
        found.append(Limit(size // ranks_here, f"SLURM's memory of the job on this node over {ranks_here} ranks"))
    if (size := available()) is not None:
        found.append(Limit(size // ranks_here + used(), f"what is free on this node over {ranks_here} ranks"))
    return found


def used() -> int:
    """Resident bytes of this process."""
    return _status("VmRSS")


def reserved(name: str) -> int:
    """Bytes of this process that count against its limit `name` (RLIMIT_DATA or RLIMIT_AS)."""
    return _status("VmData" if name == "RLIMIT_DATA" else "VmSize")


def _status(key: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def available() -> int | None:
    """Free bytes of the node; None: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup(root: Path = CGROUPS, mine: Path = MINE) -> int | None:
    """The smallest memory limit from this process's control group (version 2 or 1) up to the root; None: none."""
    # Version 1 writes a huge number for no limit, version 2 a word.
    texts = group_files("memory", "memory.limit_in_bytes", "memory.max", root, mine)
    found = [int(text) for text in texts if text.isdigit() and int(text) < 1 << 60]
    return min(found, default=None)


def _slurm() -> int | None:
    """Bytes that SLURM grants the job on this node; None: unknown or no limit."""
    try:
        if "SLURM_MEM_PER_NODE" in os.environ:
            return int(os.environ["SLURM_MEM_PER_NODE"]) << 20 or None  # 0: all of the node
        if "SLURM_MEM_PER_CPU" in os.environ:
            cpus = os.environ.get("SLURM_CPUS_ON_NODE") or str(len(usable_cpus()))
            return int(os.environ["SLURM_MEM_PER_CPU"]) * int(cpus) << 20 or None
    except ValueError:
        pass
    return None

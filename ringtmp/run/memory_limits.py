"""How much memory this rank may take: what was asked for, the process's own limits, its cgroup, SLURM, the node."""

import os
import resource
from pathlib import Path
from typing import NamedTuple

from ringtmp.config.units import parse_bytes

_CGROUPS = Path("/sys/fs/cgroup")
_UNUSED = {"RLIMIT_DATA": 56 << 20, "RLIMIT_AS": 256 << 20}  # what threads' stacks and heaps reserve and do not use


class Limit(NamedTuple):
    """Bytes that this rank may take in all, and who says so."""

    size: int
    whose: str


def tightest(given: str | None, ranks_here: int) -> Limit:
    """The least of all limits that hold for this rank; those of a node are shared evenly by the ranks on it.

    `off`: none of them is heeded.
    """
    return Limit(1 << 62, "none") if given == "off" else min(limits(given, ranks_here))


def limits(given: str | None, ranks_here: int) -> list[Limit]:
    """All limits that hold for this rank. Raises `UserError` for a size that is none."""
    found = []
    if given:
        found.append(Limit(parse_bytes(given, "memory_limit"), "--memory-limit"))
    for name, what in (("RLIMIT_DATA", "ulimit -d"), ("RLIMIT_AS", "ulimit -v")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            # It counts what is reserved, used or not; what counts here is what is used.
            found.append(Limit(soft - (reserved(name) - used()) - _UNUSED[name], f"{name} ({what})"))
    if (size := _cgroup()) is not None:
        found.append(Limit(size // ranks_here, f"the cgroup's memory.max over {ranks_here} ranks"))
    if (size := _slurm()) is not None:
        found.append(Limit(size // ranks_here, f"SLURM's memory of the job on this node over {ranks_here} ranks"))
    if (size := available()) is not None:
        found.append(Limit(size // ranks_here + used(), f"what is free on this node over {ranks_here} ranks"))
    return found


def used() -> int:
    """Bytes that this process has in memory now."""
    return _status("VmRSS")


def reserved(name: str) -> int:
    """Bytes that count against a limit of the process now."""
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
    """Bytes that the node can still give."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup(root: Path = _CGROUPS, mine: Path = Path("/proc/self/cgroup")) -> int | None:
    """The tightest memory limit from this process's control group (version 2 or 1) up to the root."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        folder = top / path.lstrip("/")
        while True:
            try:
                text = (folder / file).read_text().strip()
                if text.isdigit() and int(text) < 1 << 60:  # version 1 writes a huge number for none
                    found.append(int(text))
            except OSError:
                pass
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    return min(found, default=None)


def _slurm() -> int | None:
    """Bytes that SLURM gives the job on this node, where it says so."""
    try:
        if "SLURM_MEM_PER_NODE" in os.environ:
            return int(os.environ["SLURM_MEM_PER_NODE"]) << 20 or None  # 0: all
        if "SLURM_MEM_PER_CPU" in os.environ:
            cpus = os.environ.get("SLURM_CPUS_ON_NODE") or str(len(os.sched_getaffinity(0)))
            return int(os.environ["SLURM_MEM_PER_CPU"]) * int(cpus) << 20 or None
    except ValueError:
        pass
    return None

"""What this machine lets the process use: its processors, and limits of its control groups."""

import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # where control groups are mounted
MINE = Path("/proc/self/cgroup")  # states the groups of this process


def usable_cpus() -> frozenset[int]:
    """Numbers of the processors on which the operating system may run this process."""
    return frozenset(os.sched_getaffinity(0))


def core_limit(root: Path = CGROUPS, mine: Path = MINE) -> float | None:
    """Cores' worth of time that the control groups of this process grant; None: no limit.

    Parameters
    ----------
    root : Path
        Where control groups are mounted.
    mine : Path
        File that states the groups of this process.
    """
    quotas = group_files("cpu", "cpu.cfs_quota_us", "cpu.max", root, mine)
    periods = group_files("cpu", "cpu.cfs_period_us", "cpu.max", root, mine)
    found = [_quota(*pair) for pair in zip(quotas, periods, strict=False)]
    return min((limit for limit in found if limit), default=None)


def _quota(quota: str, period: str) -> float | None:
    """Cores of one group; None: no limit. Version 2 has both numbers in one file, such as "150000 100000"."""
    try:
        microseconds, whole = int(quota.split()[0]), int(period.split()[-1])
        return microseconds / whole if microseconds > 0 else None
    except (ValueError, IndexError, ZeroDivisionError):
        return None  # "max": no limit


def group_files(controller: str, first: str, second: str, root: Path = CGROUPS, mine: Path = MINE) -> list[str]:
    """Contents of a file in each control group of this process, from its own up to the root.

    Parameters
    ----------
    controller : str
        Name of the controller, such as "memory".
    first, second : str
        Name of the file in version 1 and in version 2 of control groups.
    root : Path
        Where control groups are mounted.
    mine : Path
        File that states the groups of this process.
    """
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, file = (root / controller, first) if controllers else (root, second)
        folder = top / path.lstrip("/")
        while True:
            with suppress(OSError):
                found.append((folder / file).read_text().strip())
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    return found

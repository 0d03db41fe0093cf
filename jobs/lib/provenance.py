"""Origin of numbers: date, commit, machine, versions, links and pace, for every file of results."""

import os
import re
import subprocess
import time
from typing import Any

from ringtmp.jobs.lib.launch import MPIRUN, ROOT
from ringtmp.trace.recorder import environment


def provenance(*, links: str = "shared memory", pace: str = "none", **facts: Any) -> dict[str, Any]:
    """Date, machine, versions and commit of a file of numbers.

    Parameters
    ----------
    links : str
        What messages travel over: "shared memory", "simulated", or the rate of a link.
    pace : str
        GFLOP/s of emulated nodes, "simulated" or "none".
    **facts
        More entries.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        **environment(),
        "mpi": mpi(),
        "links": links,
        "pace": pace,
        "load": os.getloadavg()[0],
        **facts,
    }


def mpi() -> str:
    """Name and version of the MPI whose mpirun starts runs."""
    said = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    mpich = re.search(r"Version:\s*(\S+)", said)
    return f"MPICH {mpich[1]}" if mpich else said.splitlines()[0] if said else "unknown"

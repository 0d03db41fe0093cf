"""Processes that have loaded everything and wait to be needed: a lost job goes on without waiting for imports.

A supervisor starts them beside the job with RINGTMP_STANDBY naming a file that is not there yet. Once it is, it says
what this launch is for, and the process starts MPI and goes on like any other. A file `alive` beside it is touched as
long as the supervisor is there.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ringtmp.errors import UserError

STANDBY = "RINGTMP_STANDBY"  # environment variable: the file to wait for
_LOOK = 0.003  # seconds between two looks for it
_LOST = 60.0  # seconds after which a supervisor that gives no sign of life is gone


def wait(from_file: dict[str, Any], flags: dict[str, Any], asked: Callable[[], int]) -> None:
    """Load what a launch will need, and wait for it; ends the process if nobody can need it any more.

    Parameters
    ----------
    from_file, flags : dict
        What the command line says.
    asked : callable
        Number of the signal that asks for an end, or 0.
    """
    from ringtmp.run.job import rehearse

    order = Path(os.environ.pop(STANDBY))
    with suppress(UserError):  # whatever is wrong is told when it is needed
        rehearse(from_file, flags, _rank() == 0)
    seen, since = 0.0, time.monotonic()
    while not order.exists():
        touched = _touched(order.parent)
        if touched != seen:
            seen, since = touched, time.monotonic()
        if asked() or not touched or time.monotonic() - since > _LOST:
            sys.exit(0)
        time.sleep(_LOOK)
    os.environ.update(json.loads(order.read_text()))


def _touched(folder: Path) -> float:
    try:
        return (folder / "alive").stat().st_mtime
    except OSError:
        return 0.0


def _rank() -> int:
    """The rank that this process will be, as far as launchers say."""
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def live(folder: Path) -> None:
    """The supervisor is alive."""
    folder.mkdir(exist_ok=True)
    (folder / "alive").touch()


def give(order: Path, env: Mapping[str, str]) -> None:
    """Have those who wait for this file go on, with these environment variables."""
    temporary = order.with_suffix(".new")
    temporary.write_text(json.dumps(dict(env)))
    temporary.rename(order)

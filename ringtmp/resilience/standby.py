"""Processes in stand-by: they have loaded everything, so that a lost job continues without waiting for imports.

A supervisor starts them beside the job with RINGTMP_STANDBY naming an *order*: a file that does not exist yet. Once it
does, it holds the environment of the launch, and the process starts MPI and continues like any other. The supervisor
touches a file `alive` beside the order for as long as it runs.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ringtmp.comm.launcher import RANK_VARIABLES

STANDBY = "RINGTMP_STANDBY"  # environment variable: path of the order
_LOOK = 0.003  # seconds between two looks for the order
_LOST = 60.0  # seconds after which a supervisor that gives no sign of life is taken for ended


def wait(stop_request: Callable[[], int]) -> None:
    """Wait for the order, and adopt its environment variables; end the process if no order can arrive any more.

    Parameters
    ----------
    stop_request : callable
        Returns the number of the signal that asks for an end, or 0.
    """
    order = Path(os.environ.pop(STANDBY))
    seen, since = 0.0, time.monotonic()
    while not order.exists():
        touched = _touched(order.parent)
        if touched != seen:
            seen, since = touched, time.monotonic()
        if stop_request() or not touched or time.monotonic() - since > _LOST:
            sys.exit(0)
        time.sleep(_LOOK)
    os.environ.update(json.loads(order.read_text()))


def _touched(folder: Path) -> float:
    """When the supervisor last gave a sign of life (seconds since the epoch); 0: never."""
    try:
        return (folder / "alive").stat().st_mtime
    except OSError:
        return 0.0


def future_rank() -> int:
    """The rank that this process will have once MPI is started, as far as launchers state it."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)


def give_sign_of_life(folder: Path) -> None:
    """Show processes in stand-by whose order is in `folder` that the supervisor runs."""
    folder.mkdir(exist_ok=True)
    (folder / "alive").touch()


def give_order(order: Path, env: Mapping[str, str]) -> None:
    """Let the processes that wait for the file `order` continue, with the environment variables `env`."""
    temporary = order.with_suffix(".new")
    temporary.write_text(json.dumps(dict(env)))
    temporary.rename(order)

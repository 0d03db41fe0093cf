"""A rank's report of its present action, for a fault injector that acts at that moment (and for `ringtmp top`).

RINGTMP_PROBE names a file of int64 [ranks, 8] that the fault injector has made. A rank writes its action into its row.
It halts where the row orders it, and does what the row orders: wait to be killed or stopped from outside, exit, raise,
or read from address 0. Without the variable no probe is made, and the engine calls none.
"""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

# rebalance, handed, housed: before layers move, when they have, and when the node's memory has room for them
PHASES = ("F", "I", "W", "U", "B", "E", "replicate", "checkpoint", "rebalance", "handed", "housed", "restore")
PID, STEP, PHASE, COUNT, HOLD_STEP, HOLD_PHASE, ACT, HELD = range(8)  # columns
NOTHING, WAIT, EXIT, RAISE, SEGFAULT = range(5)  # values of ACT

FIELDS = 8


def table(path: Path, ranks: int | None = None) -> np.ndarray:
    """The table in the file `path`; with `ranks` the file is made for that number of ranks."""
    if ranks is not None:
        path.write_bytes(bytes(8 * FIELDS * ranks))
    return np.memmap(path, np.int64, "r+").reshape(-1, FIELDS)


class FaultProbe:
    """The row of one rank.

    Parameters
    ----------
    path : Path
        File of the table.
    rank : int
        Rank whose row it is.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.row = table(path)[rank]
        self.row[PID] = os.getpid()

    def at(self, phase: str, step: int) -> None:
        """Report that this rank is about to do, or is doing, phase `phase` of step `step`; act as ordered."""
        row, code = self.row, PHASES.index(phase)
        row[STEP], row[PHASE] = step, code
        row[COUNT] += 1
        if row[ACT] and row[HOLD_PHASE] == code and step >= row[HOLD_STEP]:
            self._act(int(row[ACT]))

    def _act(self, act: int) -> None:
        self.row[HELD] = 1
        if act == EXIT:
            os._exit(1)
        if act == RAISE:
            self.row[ACT] = NOTHING
            raise RuntimeError("raised on purpose by the fault injector")
        if act == SEGFAULT:
            ctypes.string_at(0)
        while self.row[ACT] == WAIT:
            time.sleep(0.0005)
        self.row[HELD] = 0


def probe_from_environment() -> FaultProbe | None:
    """The probe of this process, in the row of its rank in the world; None if RINGTMP_PROBE is not set."""
    path = os.environ.get("RINGTMP_PROBE")
    if not path:
        return None
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    return FaultProbe(Path(path), rank) if rank < len(table(Path(path))) else None

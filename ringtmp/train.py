"""``mpirun -n 8 python -m ringtmp.train``: train a network whose layers are dealt over the ranks."""

import os
import sys
from typing import TYPE_CHECKING, Any

from ringtmp.run.mpi import StopRequest, from_rank_0, run_main

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_ABOUT = (
    "Train a neural network whose layers are dealt over the ranks of a ring. Micro-batches go round\n"
    "as activations, their gradients come back, and every rank updates its own layers."
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Parse, train, and return the exit status.

    0, 128 + the signal that stopped the run, or 1 if its last weights could not be saved.
    """
    from ringtmp.run.cli import parse

    def read_flags() -> tuple[dict[str, Any], dict[str, Any], int]:
        try:
            from_file, flags = parse(sys.argv[1:], "ringtmp.train", _ABOUT)
        except SystemExit:  # --help has been printed
            return {}, {}, 0
        return from_file, flags, _threads({**from_file, **flags}.get("threads", 1))

    from_file, flags, threads = from_rank_0(comm, read_flags)
    if not threads:
        return 0
    # Before NumPy and Numba are imported: they read these once.
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    from ringtmp.ring.trainer import run

    result = run(comm, from_file, flags, stop_request=lambda: stop.signal)
    if result.signal:
        return 128 + result.signal
    return 0 if result.saved else 1


def _threads(value: Any) -> int:
    """The thread count, or 1 where it is not a number (the whole configuration is checked later)."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1


if __name__ == "__main__":
    run_main(main)

"""What `python -m ringtmp.train` and `python -m ps.train` share: flags, thread counts, training, the exit status."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringtmp.comm.mpi import StopRequest, from_rank_0
from ringtmp.resilience.standby import STANDBY, wait

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ringtmp.run.launch import Launch

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS")


def program(
    name: str, about: str, others: str, trainer: "Callable[[], type[Launch]]"
) -> "tuple[Callable[[Intracomm, StopRequest], int], Callable[[StopRequest], None]]":
    """What `run_main` is to call of a trainer: `main`, and before MPI is started `stand_by`.

    `main` parses, trains, and returns the exit status: 0, 128 + the signal that stopped the run, or 1 if its last
    weights could not be saved.

    Parameters
    ----------
    name, about : str
        Of the module, and what its help says first.
    others : str
        Group of settings that only another trainer heeds: no flags of this one.
    trainer : callable
        Imports and returns the trainer.
    """

    def read_flags() -> tuple[dict[str, Any], dict[str, Any], int]:
        from ringtmp.config.command_line import parse

        try:
            from_file, flags = parse(sys.argv[1:], name, about, others)
        except SystemExit:  # --help has been printed
            return {}, {}, 0
        return from_file, flags, _threads({**from_file, **flags}.get("threads", 1))

    def stand_by(stop: StopRequest) -> None:
        """Wait to be needed, where a supervisor has started this process for that."""
        if STANDBY in os.environ:
            from_file, flags, threads = read_flags()
            _before_numerics(threads)
            trainer()
            wait(from_file, flags, lambda: stop.signal)

    def main(comm: "Intracomm", stop: StopRequest) -> int:
        from_file, flags, threads = from_rank_0(comm, read_flags)
        if not threads:
            return 0
        _before_numerics(threads)
        from ringtmp.run.modes import launch

        result = launch(trainer(), comm, from_file, flags, stop_request=lambda: stop.signal)
        if result.signal:
            return 128 + result.signal
        return 0 if result.saved else 1

    return main, stand_by


def _before_numerics(threads: int) -> None:
    """What NumPy and Numba look at once, when they are imported.

    Numba looks for a BLAS, of which no kernel here makes use, and finds it by importing all of scipy.linalg: 0.2 of
    the 1.3 seconds that a rank takes to start. In a program of our own it finds none.
    """
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    import kernels._jit  # noqa: F401 - says where compiled code is kept

    there = sys.modules.get("scipy")
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        if there:
            sys.modules["scipy"] = there
        else:
            del sys.modules["scipy"]


def _threads(value: Any) -> int:
    """The thread count, or 1 where it is not a number (the whole configuration is checked later)."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1

"""The program of a trainer on its ranks: settings, thread counts, stand-by, training."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ringtmp.comm.mpi import StopRequest, from_rank_0, run_main
from ringtmp.errors import UserError
from ringtmp.resilience.standby import STANDBY, future_rank, wait

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Program(NamedTuple):
    """A trainer as a program that a launcher starts on every rank.

    Attributes
    ----------
    name : str
        The program as typed after `python -m`.
    about : str
        First text of its help page.
    without : str
        Group of settings that this trainer does not use: it has no flags for them.
    module, trainer : str
        Import name of the trainer's module, and the name of its class there.
    """

    name: str
    about: str
    without: str
    module: str
    trainer: str


class Settings(NamedTuple):
    """Settings of a command line, not validated yet.

    Attributes
    ----------
    from_file, flags : dict
        Values by the names of `RunConfig`'s fields, from the configuration file and from the flags.
    threads : int
        Threads of a rank, from 1.
    """

    from_file: dict[str, Any]
    flags: dict[str, Any]
    threads: int


def run_program(program: Program, words: list[str]) -> NoReturn:
    """Train on every rank that a launcher has started, and exit.

    Parameters
    ----------
    program : Program
        The trainer.
    words : list of str
        The command line, without the program.
    """
    read = partial(read_settings, program, words)

    def main(comm: "Intracomm", stop: StopRequest) -> int:
        settings = from_rank_0(comm, read)
        if settings is None:  # --help has been printed
            return 0
        set_threads(settings.threads)

        # Import what uses NumPy only now: it reads the thread counts when it is imported.
        trainer = getattr(import_module(program.module), program.trainer)
        from ringtmp.run.launch import launch

        result = launch(trainer, comm, settings.from_file, settings.flags, stop_request=lambda: stop.signal)
        return result.exit_status

    run_main(main, partial(stand_by, read=read, import_trainer=partial(import_module, program.module)))


def read_settings(program: Program, words: list[str]) -> Settings | None:
    """Parse the command line; None if it only asked for help, which has been printed.

    Parameters
    ----------
    program : Program
        The trainer.
    words : list of str
        The command line, without the program.

    Raises
    ------
    UserError
        An unknown flag or key, or a file that cannot be read.
    """
    from ringtmp.config.command_line import parse

    try:
        from_file, flags = parse(words, program.name, program.about, program.without)
    except SystemExit:
        return None
    return Settings(from_file, flags, _threads({**from_file, **flags}.get("threads", 1)))


def _threads(value: Any) -> int:
    """The thread count, or 1 if it is not a number (the whole configuration is checked later)."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1


def set_threads(threads: int) -> None:
    """Set the number of threads of NumPy and Numba to `threads`; they read it once, when they are imported.

    Numba looks for a BLAS, which no kernel here uses, and finds it by importing all of scipy.linalg: 0.2 of the 1.3
    seconds that a rank takes to start. Here it is made to find none.
    """
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    import ringtmp.kernels._jit  # noqa: F401 - sets where compiled code is kept

    scipy = sys.modules.get("scipy")
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        if scipy:
            sys.modules["scipy"] = scipy
        else:
            del sys.modules["scipy"]


def stand_by(stop: StopRequest, read: Callable[[], Settings | None], import_trainer: Callable[[], object]) -> None:
    """Load everything and wait until this process is needed, if a supervisor has started it for that.

    Parameters
    ----------
    stop : StopRequest
        Holds a received signal.
    read : callable
        Reads the settings.
    import_trainer : callable
        Imports the trainer's module.
    """
    if STANDBY not in os.environ:
        return
    settings = read()
    if settings is None:
        return
    set_threads(settings.threads)
    import_trainer()
    from ringtmp.run.prepare import preload

    with suppress(UserError):  # errors are reported once this process is needed
        preload(settings.from_file, settings.flags, reads_data=future_rank() == 0)
    wait(lambda: stop.signal)

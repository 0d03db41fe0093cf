"""MPI start, errors agreed on by all ranks, and an exit that never hangs. The one module that uses `MPI.COMM_WORLD`."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from ringtmp import errors
from ringtmp.comm import ulfm
from ringtmp.comm.launcher import LAUNCHERS
from ringtmp.errors import RunFailure, UserError, print_line

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def world() -> "Intracomm":
    """Start MPI and return the world's communicator.

    Raises
    ------
    UserError
        The world has size 1 although a launcher started more processes: each would train alone, unnoticed.
    """
    import mpi4py

    mpi4py.rc.thread_level = "funneled"  # only the main thread calls MPI; THREAD_MULTIPLE takes a lock in every call
    from mpi4py import MPI

    for size, rank, who in LAUNCHERS:
        if size not in os.environ:
            continue
        if MPI.COMM_WORLD.size == 1 and int(os.environ[size]) > 1:
            if int(os.environ.get(rank, 0)) > 0:
                quiet_exit(2)  # each process is alone; only the first one prints the reason
            library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
            raise UserError(
                f"{who} started {os.environ[size]} processes ({size}) but MPI sees only this one: the program uses "
                f"{library}. Start it with that library's own mpirun (for the wheel: .venv/bin/mpirun), or, under "
                "SLURM, with the matching srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)"
            )
        break
    return MPI.COMM_WORLD


def quiet_exit(status: int) -> NoReturn:
    """Finalize MPI and exit with `status`, without a message. Collective over the world if MPI has started.

    Calls `exit`, not `_exit`: MPICH tells its launcher in an `exit` handler. If a rank ends without it, the launcher
    kills the others, and the job's status becomes that of the kill (9).
    """
    for stream in ("stdout", "stderr"):
        try:
            getattr(sys, stream).flush()
        except OSError:  # on a full disk Python would flush again at exit and set another status
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    from mpi4py import MPI

    if _degraded:
        survivors, before_exit = _degraded[-1]
        with suppress(Exception):  # another rank may be lost just now
            survivors.Barrier()  # the first exit ends the other ranks too: all must have printed by then
        time.sleep(0.5)  # the launcher needs time to read the output
        before_exit()
        os._exit(status)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Barrier()  # all ranks print before the first one exits
        MPI.Finalize()
    sys.exit(status)


def sleeping_barrier(comm: "Intracomm") -> None:
    """Wait for all ranks of `comm`, sleeping, so that a rank that reads data or compiles has the cores. Collective."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


@contextmanager
def raise_on_all(comm: "Intracomm") -> Iterator[None]:
    """Run a block that succeeds on every rank or raises `UserError` on every rank. Collective over `comm`.

    The message is that of the lowest rank that raised. Any other exception passes through and ends the job.
    """
    message: str | None = None
    try:
        yield
    except UserError as error:
        message = str(error)
    sleeping_barrier(comm)
    first = next((text for text in comm.allgather(message) if text is not None), None)
    if first is not None:
        raise UserError(first)


def from_rank_0(comm: "Intracomm", make: Callable[[], Any]) -> Any:
    """Call `make` on rank 0 and return its result, or raise its `UserError`, on every rank. Collective over `comm`."""
    value = None
    with raise_on_all(comm):
        if comm.rank == 0:
            value = make()
    return comm.bcast(value)


def tell_from_rank_0(comm: "Intracomm", make: Callable[[], str]) -> int:
    """Print the text that `make` returns on rank 0 (nothing after --help); return 0. Collective over `comm`."""

    def made() -> str:
        try:
            return make()
        except SystemExit:
            return ""

    text = from_rank_0(comm, made)
    if comm.rank == 0 and text:
        print(text)
    return 0


def runs(pid: int) -> bool:
    """Whether process `pid` of this host exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


_degraded: list[tuple["Intracomm", Callable[[], None]]] = []


def mark_degraded(survivors: "Intracomm", before_exit: Callable[[], None]) -> None:
    """Note that a process of the world is lost, so that collective calls over it would hang.

    Parameters
    ----------
    survivors : Intracomm
        The surviving ranks; at the exit they synchronise over it instead of the world.
    before_exit : callable
        Called last, before the process exits.
    """
    _degraded.append((survivors, before_exit))


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1, so that training can stop between two steps; a second signal kills as usual.

    SIGUSR1 announces that a node is about to be taken away: a supervisor then starts the job again without it.
    """

    def __init__(self) -> None:
        self.signal = 0

    def listen(self) -> "StopRequest":
        """Install the handlers (main thread only)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def run_main(
    main: "Callable[[Intracomm, StopRequest], int]", before: Callable[[StopRequest], None] = lambda stop: None
) -> NoReturn:
    """Run a program on every rank and exit on every rank.

    A `UserError`, raised on every rank, becomes one line and status 2. Any other exception on any rank is printed with
    its rank and host and ends the whole job with status 1. Otherwise the status is what `main` returns.

    Parameters
    ----------
    main : callable
        Takes the world's communicator and the stop request; returns the exit status.
    before : callable
        Called before MPI starts.
    """
    stop = StopRequest().listen()
    try:
        before(stop)
        comm = world()
    except UserError as error:
        print_line(error)
        quiet_exit(2)
    try:
        status = main(comm, stop)
    except UserError as error:
        if comm.rank == 0:
            print_line(error)
        status = 2
    except BaseException as error:
        abort(comm, error)
    quiet_exit(status)


def warn(text: str) -> None:
    """Print the warning `text` of this rank of the world; the run continues."""
    from mpi4py import MPI

    errors.warn(text, MPI.COMM_WORLD.rank)


def abort(comm: "Intracomm", error: BaseException) -> NoReturn:
    """Print `error` with this rank of `comm` and its host, and end all processes of the job."""
    where = f"rank {comm.rank} of {comm.size} on {socket.gethostname()}"
    expected = isinstance(error, RunFailure)
    detail = "" if expected else "".join(traceback.format_exception(error))
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    with suppress(OSError):  # a full disk may be the cause
        sys.stdout.flush()
    with suppress(OSError):
        # One write, so that the lines of ranks that fail together do not mix.
        sys.stderr.write(f"{detail}ringtmp: {where}: {text}\n")
        sys.stderr.flush()
    time.sleep(0.5)  # MPICH's launcher drops unread output once a rank aborts
    if ulfm.available():  # with ULFM the other ranks do not see an Abort; they see a signal
        ulfm.die()
    comm.Abort(1)
    os._exit(1)  # on a host without network Abort returns

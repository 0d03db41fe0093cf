"""The one place that touches `MPI.COMM_WORLD`: start, agreement on bad input, and an end that never hangs."""

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

from ringtmp.comm import ulfm
from ringtmp.errors import RunFailure, UserError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

# The launcher that is nearest to the processes comes first: SLURM's variables also stand in a batch script's
# environment, where mpirun may start fewer ranks than the job has tasks.
_INTENDED = (
    ("PMI_SIZE", "PMI_RANK", "an mpirun or srun that speaks PMI (MPICH, Intel MPI)"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "Open MPI's mpirun"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("SLURM_NTASKS", "SLURM_PROCID", "a SLURM job"),
)


def world() -> "Intracomm":
    """Start MPI and return the world's communicator.

    Raises
    ------
    UserError
        The world has size 1 although a launcher meant more: each process would train alone, unnoticed.
    """
    import mpi4py

    mpi4py.rc.thread_level = "funneled"  # only the main thread talks; THREAD_MULTIPLE takes a lock on every call
    from mpi4py import MPI

    for size, rank, who in _INTENDED:
        if size not in os.environ:
            continue
        if MPI.COMM_WORLD.size == 1 and int(os.environ[size]) > 1:
            if int(os.environ.get(rank, 0)) > 0:
                quiet_exit(2)  # every process is alone here; one of them says why
            library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
            raise UserError(
                f"{who} started {os.environ[size]} processes ({size}) but MPI sees only this one: the program uses "
                f"{library}. Start it with that library's own mpirun (for the wheel: .venv/bin/mpirun), or, under "
                "SLURM, with the matching srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)"
            )
        break
    return MPI.COMM_WORLD


def quiet_exit(status: int) -> NoReturn:
    """Finalize MPI and leave with `status`, without a message. Collective over the world if MPI is up.

    By way of `exit`, not `_exit`: MPICH takes leave of its launcher in a handler of `exit`, and a rank that is gone
    without that gets the others killed, and the job the status of the kill (9).
    """
    for stream in ("stdout", "stderr"):
        try:
            getattr(sys, stream).flush()
        except OSError:  # on a full disk Python would flush again at exit, and end with a status of its own
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    from mpi4py import MPI

    if _lame:
        there, last = _lame[-1]
        with suppress(Exception):  # one that is lost just now
            there.Barrier()  # the first one to leave takes the others along: all have printed
        time.sleep(0.5)  # and the launcher has read it
        last()
        os._exit(status)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Barrier()  # all print before the first one leaves
        MPI.Finalize()
    sys.exit(status)


def sleeping_barrier(comm: "Intracomm") -> None:
    """A barrier that sleeps: while one rank reads data or compiles, the others leave it the cores. Collective."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


@contextmanager
def raise_on_all(comm: "Intracomm") -> Iterator[None]:
    """A block that succeeds on every rank or raises `UserError` on every rank. Collective over `comm`.

    The message is that of the lowest rank that has one. Any other exception passes through and ends the job.
    """
    mine: str | None = None
    try:
        yield
    except UserError as error:
        mine = str(error)
    sleeping_barrier(comm)
    first = next((text for text in comm.allgather(mine) if text is not None), None)
    if first is not None:
        raise UserError(first)


def from_rank_0(comm: "Intracomm", make: Callable[[], Any]) -> Any:
    """Return what `make()` returns on rank 0, on every rank; its `UserError` likewise. Collective over `comm`."""
    value = None
    with raise_on_all(comm):
        if comm.rank == 0:
            value = make()
    return comm.bcast(value)


def tell_from_rank_0(comm: "Intracomm", make: Callable[[], str]) -> int:
    """Print what `make()` says on rank 0, nothing if it only shows its --help; the exit status. Collective."""

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
    """Whether a process of this host is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


_lame: list[tuple["Intracomm", Callable[[], None]]] = []


def mark_degraded(there: "Intracomm", last: Callable[[], None]) -> None:
    """Some process is lost: the world cannot meet any more. In the end those `there` do, then `last` is called."""
    _lame.append((there, last))


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1, so that training can stop between two steps; the second one kills as usual.

    SIGUSR1 is for a node that is about to be taken away: a supervisor starts again without it.
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
    """Run a program on every rank and end it on every rank; `before` is called ahead of MPI's start.

    A `UserError`, raised alike on every rank, becomes one line and status 2. Any other exception, on any one rank,
    is printed with its rank and host and ends the whole job with status 1; `main` returns the status otherwise.
    """
    stop = StopRequest().listen()
    try:
        before(stop)
        comm = world()
    except UserError as error:
        _tell(error)
        quiet_exit(2)
    try:
        status = main(comm, stop)
    except UserError as error:
        if comm.rank == 0:
            _tell(error)
        status = 2
    except BaseException as error:
        abort(comm, error)
    quiet_exit(status)


def _tell(text: object) -> None:
    with suppress(OSError):  # standard error may go to a disk that is full
        print(f"ringtmp: {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line on standard error from whichever rank it is, for what does not end the run."""
    from mpi4py import MPI

    _tell(f"warning: rank {MPI.COMM_WORLD.rank} on {socket.gethostname()} {text}")


def abort(comm: "Intracomm", error: BaseException) -> NoReturn:
    """Print `error` with this rank and host, and end every process of the job."""
    where = f"rank {comm.rank} of {comm.size} on {socket.gethostname()}"
    expected = isinstance(error, RunFailure)
    detail = "" if expected else "".join(traceback.format_exception(error))
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    with suppress(OSError):  # a full disk may be behind it
        sys.stdout.flush()
    with suppress(OSError):
        # One write: lines of ranks that fail together do not mix.
        sys.stderr.write(f"{detail}ringtmp: {where}: {text}\n")
        sys.stderr.flush()
    time.sleep(0.5)  # MPICH's launcher drops what it has not read yet once a rank aborts
    if ulfm.available():  # there an Abort is not told to the others: a signal is
        ulfm.die()
    comm.Abort(1)
    os._exit(1)  # on a host that is cut off Abort returns

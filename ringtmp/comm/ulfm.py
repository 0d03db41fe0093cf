"""Recovery inside a running job, if the MPI has ULFM: which ranks died, and a communicator for the survivors.

MPI's user-level failure mitigation (draft chapter "Process Fault Tolerance"; Bland et al., IJHPCA 27(3), 2013), as
Open MPI's 5.0.11 wheel has it. The job has to be started by that wheel's mpirun with `SETTINGS` in the environment.
A rank proceeds as follows when a call raises an error that is `lost`:

    comm, gone = regroup(comm)
    settle(requests of the old comm)    # before a buffer of theirs is used again
    restore, make new requests on comm, continue

All messages after the start have to travel over that one communicator: revoking it frees a rank from a wait, and a rank
that waits on another communicator is not freed. An end other than by a signal (exit(1), an exception, Abort) is not
noticed and hangs the others: call `die` instead. After a loss Finalize hangs: call `leave` instead.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mpi4py.MPI import Comm, Intracomm, Prequest

_SWITCH = "OMPI_MCA_mpi_ft_enable"
# The first two are for mpirun: continue without a process that died, and tell the others. The same as --with-ft ulfm.
SETTINGS = {
    "PRTE_MCA_state_base_recoverable": "1",
    "PRTE_MCA_state_base_notify_errors": "1",
    _SWITCH: "1",
}


def asked() -> bool:
    """Whether the environment requests ULFM."""
    return os.environ.get(_SWITCH, "0") not in ("0", "false")


@cache
def available() -> bool:
    """Whether this job can lose a process and continue: requested in the environment, and enabled in the MPI."""
    if not asked():
        return False
    from mpi4py import MPI

    if MPI.ERR_PROC_FAILED == MPI.ERR_UNKNOWN or "PRTE_LAUNCHED" not in os.environ:
        return False  # an MPI without ULFM, or one that srun started: no death would be reported
    probe = guard(MPI.COMM_SELF.Dup())
    probe.Revoke()
    try:
        probe.Iprobe(0, 0)
    except MPI.Exception as error:
        return lost(error)
    return False  # ULFM is compiled in but off: all its calls exist, and this one does not fail


def guard(comm: "Comm") -> "Intracomm":
    """Make failures of calls on `comm` raise `MPI.Exception`; returns `comm`."""
    from mpi4py import MPI

    assert isinstance(comm, MPI.Intracomm)
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    return comm


def lost(error: BaseException) -> bool:
    """Whether `error` means that a process died, or that another rank has noticed one and revoked the communicator."""
    from mpi4py import MPI

    classes = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
    return isinstance(error, MPI.Exception) and error.Get_error_class() in classes


def watch(comm: "Intracomm") -> None:
    """Raise an error that is `lost` if any process of `comm` is known here to have died, or if `comm` is revoked.

    For a wait in which no receive from a neighbour is tested. Local, 0.6 microseconds; it makes no progress itself, so
    some Test or Iprobe has to run beside it (without one a death stayed unknown for all of 3 s, with one 8 ms). A
    receive from any source to which no rank sends detects no more, costs a Test, and is one more request to end.
    """
    from mpi4py import MPI

    if comm.Is_revoked():
        raise MPI.Exception(MPI.ERR_REVOKED)
    failed = comm.Get_failed()
    count = failed.size
    failed.Free()
    if count:
        raise MPI.Exception(MPI.ERR_PROC_FAILED)


def settle(requests: "Iterable[Prequest]", patience: float = 5.0) -> "list[Prequest]":
    """End what was under way on a communicator that `regroup` has replaced, and free it.

    A revoked communicator does not stop a long message between two survivors: the library continues to write into the
    receive's buffer until a Test has failed (seen over TCP, two runs of six, where requests were just dropped). So
    each is tested until it completes or fails, which takes no more than a few milliseconds, and only then freed.

    Parameters
    ----------
    requests : iterable of Prequest
        All persistent requests made on the old communicator, started or not.
    patience : float
        Seconds after which to give up.

    Returns
    -------
    list of Prequest
        Those that did not end: keep them and their buffers, and never use either again. Empty in all runs so far.
    """
    from mpi4py import MPI

    deadline = time.monotonic() + patience
    pending = [request for request in requests if request]  # a freed one is false
    ended: list[Prequest] = []
    while pending and time.monotonic() < deadline:
        still: list[Prequest] = []
        for request in pending:
            try:
                done = request.Test()
            except MPI.Exception as error:
                if not lost(error):
                    raise
                # A receive from any source is the only one that fails and stays; the revocation ends it too.
                done = error.Get_error_class() != MPI.ERR_PROC_FAILED_PENDING
            (ended if done else still).append(request)
        pending = still
    for request in ended:
        request.Free()
    return pending


def gather(comm: "Intracomm", value: Any) -> list[Any]:
    """`comm.allgather(value)`, complete on every rank, or an error that is `lost` on every rank. Collective.

    A plain one may return success and rubbish (UnpicklingError) if a process died within it, and leave others waiting:
    after the start no collective's result counts before all have agreed that no process died.
    """
    from mpi4py import MPI

    values = None
    try:
        values = comm.allgather(value)
        watch(comm)
        well = True
    except Exception:  # rubbish may raise anything; an error of this rank itself comes again
        well = False
        comm.Revoke()
    if not _agreed(comm, well) or values is None:
        raise MPI.Exception(MPI.ERR_PROC_FAILED)
    return values


# ---- a new communicator ---------------------------------------------------------------------------------------------


@contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """Die by a signal, which the others notice, unless the block ends within `seconds`, even if Python does not run.

    Main thread only. 0 seconds: no limit.
    """
    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def regroup(comm: "Intracomm", *others: "Intracomm", patience: int = 0) -> "tuple[Intracomm, tuple[int, ...]]":
    """A communicator of the survivors of `comm`, in the old order. Collective over them.

    Called by a rank that got an error that is `lost`; its Revoke makes all others call it too. A death in the meantime
    only causes another turn. A death afterwards raises in the first use of the new communicator: call it again with
    that.

    Parameters
    ----------
    comm : Intracomm
        The communicator in use.
    *others : Intracomm
        Further ones in which a rank may be waiting: they are revoked too, and must not be used any more.
    patience : int
        Seconds after which this process is killed (SIGALRM), 0 for never: it waits for a rank that hangs or computes.

    Returns
    -------
    comm : Intracomm
        The new communicator.
    gone : tuple of int
        The ranks in the old `comm` that are not in the new one.
    """
    with _deadline(patience):
        return _regrouped(comm, others)


def _regrouped(comm: "Intracomm", others: "Sequence[Intracomm]") -> "tuple[Intracomm, tuple[int, ...]]":
    from mpi4py import MPI

    for each in (comm, *others):
        each.Revoke()
    while True:
        new = None
        try:
            new = comm.Shrink()
        except MPI.Exception as error:
            if not lost(error):
                raise
        if _agreed(comm, new is not None):
            break
    assert new is not None
    here = MPI.Group.Translate_ranks(new.group, range(new.size), comm.group)
    return guard(new), tuple(sorted(set(range(comm.size)) - set(here)))


def _agreed(comm: "Intracomm", well: bool) -> bool:
    """Whether `well` is true on all survivors, the same answer on each; False after a death unknown to some."""
    from mpi4py import MPI

    comm.Ack_failed()
    try:
        return bool(comm.Agree(int(well)))
    except MPI.Exception as error:
        if not lost(error):
            raise
        return False


# ---- ends -----------------------------------------------------------------------------------------------------------


def leave(comm: "Intracomm", status: int = 0, patience: float = 10.0) -> NoReturn:
    """End this process without Finalize, together with the other survivors of `comm`.

    mpirun's own exit status means nothing after a loss.

    Parameters
    ----------
    comm : Intracomm
        The survivors.
    status : int
        Exit status of this process.
    patience : float
        Seconds to wait for the others.
    """
    _flush()
    with suppress(Exception):
        deadline, request = time.monotonic() + patience, comm.Ibarrier()
        while not request.Test() and time.monotonic() < deadline:
            time.sleep(0.001)
    os._exit(status)


def die(text: str = "") -> NoReturn:
    """End this process by a signal, which the others notice, after printing `text`; for failures of this rank alone."""
    if text:
        with suppress(OSError):
            sys.stderr.write(f"ringtmp: {text}\n")
    _flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL returned")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()

"""Launches of a job: by all ranks, by some of them, by rings side by side, and again by those who are left."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ringtmp.comm import ulfm
from ringtmp.comm.mpi import abort, raise_on_all, sleeping_barrier
from ringtmp.data.dataset import share_data
from ringtmp.errors import RunFailure, UserError
from ringtmp.nn.layer import Array
from ringtmp.resilience.incident import RecoveryReport
from ringtmp.resilience.ulfm_recovery import Survivors
from ringtmp.run.job import Job, go_on, prepare
from ringtmp.run.launch import Launch
from ringtmp.run.result import Result

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def train_with(
    trainer: type[Launch],
    comm: "Intracomm | None",
    data: Any,
    out: str | None,
    progress: bool,
    settings: dict[str, Any],
) -> Result:
    """What `ringtmp.train` and `ps.train` do, which say what the arguments are. Collective over `comm`."""
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    arrays = data if isinstance(data, tuple) else None
    settings = {key: value for key, value in settings.items() if value is not None}
    flags = dict(settings) | ({"out": out} if out else {})
    if data is not None:
        flags["data"] = "arrays" if arrays else data
    try:
        return launch(trainer, comm, {}, flags, arrays=arrays, write=bool(out or settings.get("resume")), show=progress)
    except UserError:
        raise
    except BaseException as error:
        if comm.size > 1:
            abort(comm, error)
        raise


def launch(
    trainer: type[Launch],
    parent: "Intracomm",
    from_file: dict[str, Any],
    flags: dict[str, Any],
    *,
    arrays: tuple[Array, ...] | None = None,
    write: bool = True,
    show: bool = True,
    stop_request: Callable[[], int] = lambda: 0,
) -> Result:
    """Check, train, write what is to be written, and tell how it went. Collective over `parent`."""
    comm = parent.Dup()  # start, agreement and end
    heals = write and trainer.heals and ulfm.available()
    net = comm if heals else parent.Dup()  # training

    def free() -> None:
        comm.Free()
        if net != comm:
            net.Free()

    job: Job | None = None
    story = RecoveryReport()
    try:
        job = prepare(comm, from_file, flags, arrays, trainer.check, trainer.recalls)
        job.writes = write
        story.mark("agree")
        if job.config.rings > 1 and trainer.rings:
            result = _side_by_side(trainer, comm, job, write, show, stop_request, story)
            free()
            return result
        there = trainer.members(comm, job)
        if len(there) < comm.size:
            result = _without_some(trainer, comm, there, job, write, show, stop_request, story)
            free()
            return result
        if heals:
            return _heal(trainer, comm, job, show, stop_request, story)
        result = trainer(parent, comm, net, job, write, show, stop_request, story).run()
        free()
        return result
    except UserError:  # on every rank
        free()
        raise
    except BaseException as error:
        if job and job.folder:
            with suppress(OSError):  # the disk may be what failed
                text, fatal = f"{type(error).__name__}: {error}", isinstance(error, RunFailure)
                # An error of MPI's is most often what another rank's end looks like from here.
                told = "mpi4py" in type(error).__module__
                job.folder.set_status("failed", rank=comm.rank, error=text, fatal=fatal, mpi=told)
        if comm.size == 1:  # on several ranks the job ends
            free()
        raise
    finally:
        if job and job.lock:
            job.lock.close()


def _without_some(
    trainer: type[Launch],
    comm: "Intracomm",
    there: list[int],
    job: Job,
    write: bool,
    show: bool,
    stop_request: Callable[[], int],
    story: RecoveryReport,
) -> Result:
    """A launch of some ranks, for whose end the others wait. Collective over `comm`."""
    works, first = comm.rank in there, there[0]
    mine: Any = comm.Split(0 if works else 1, comm.rank)
    if first:  # rank 0 has the data, and does not train
        ends: Any = comm.Split(0 if comm.rank in (0, first) else 1, comm.rank)
        if comm.rank in (0, first):
            job.data = share_data(ends, job.data, job.info, job.config.data, job.dtype, job.config.test_fraction)
        ends.Free()
    job.members, job.everyone = tuple(there), comm
    left_out = [rank for rank in range(comm.size) if rank not in there]
    result: Result | None = None
    if works:
        who = f"rank{'s' * (len(left_out) > 1)} {', '.join(map(str, left_out))}"
        job.notes.append(f"{who} left out: the ring is faster without (--allow-idle-ranks)")
        net = mine.Dup()
        result = trainer(mine, mine, net, job, write, show, stop_request, story).run()
        net.Free()
    else:
        with raise_on_all(comm):  # the others build, and make the run folder
            pass
    sleeping_barrier(comm)
    told: Any = None
    if result:
        told = result.sha256, result.state, result.signal, result.step, result.folder, result.saved
    sha256, state, number, step, folder, saved = comm.bcast(told, first)
    return result or Result({}, sha256, [], [], state, number, step, folder, saved, [], mine)


def _side_by_side(
    trainer: type[Launch],
    comm: "Intracomm",
    job: Job,
    write: bool,
    show: bool,
    stop_request: Callable[[], int],
    story: RecoveryReport,
) -> Result:
    """Several rings, each a launch of its own; the first one writes and tells. Collective over `comm`."""
    size = comm.size // job.config.rings
    job.ring, job.everyone = comm.rank // size, comm
    job.members = tuple(range(job.ring * size, (job.ring + 1) * size))
    mine: Any = comm.Split(job.ring, comm.rank)
    job.across = comm.Split(comm.rank % size, comm.rank)
    if mine.rank == 0:
        job.data = share_data(job.across, job.data, job.info, job.config.data, job.dtype, job.config.test_fraction)
    net, leads = mine.Dup(), job.ring == 0
    result = trainer(mine, mine, net, job, write and leads, show and leads, stop_request, story).run()
    if len(set(job.across.allgather(result.sha256))) > 1:
        raise RunFailure("the rings end with different weights")
    for each in (net, job.across):
        each.Free()
    return result


def _heal(
    trainer: type[Launch],
    comm: "Intracomm",
    job: Job,
    show: bool,
    stop_request: Callable[[], int],
    story: RecoveryReport,
) -> Result:
    """Launch, and again with those who are left as often as processes are lost."""
    circle = Survivors(ulfm.guard(comm), comm.allgather((socket.gethostname(), os.getpid())), time.time())
    lost = False
    while True:
        current = None
        try:
            if lost:
                job = go_on(circle.comm, job)
                story.mark("agree")
            current = trainer(circle.comm, circle.comm, circle.comm, job, True, show, stop_request, story)
            result = current.run()
            if not result.leavers:
                return result
            circle.part(result.leavers)
        except Exception as error:
            if not job.folder or not circle.broken(error):
                raise
        lost = True
        story = circle.close_ranks(current, job)

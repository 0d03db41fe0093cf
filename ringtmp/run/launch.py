"""Launch a job: check it, choose its ranks, and train.

`launch` is called by the commands and, through `launch_from_python`, by `train` in Python and notebooks. `run` is one
launch from its first allocation to its result, the same for every trainer.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.comm import ulfm
from ringtmp.comm.clock_sync import compare_clocks
from ringtmp.comm.mpi import abort, raise_on_all, sleeping_barrier
from ringtmp.comm.peers import Peers
from ringtmp.comm.point_to_point import TAG_CLOCK
from ringtmp.errors import RunFailure, UserError
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.kernels.denormals import flush_denormals
from ringtmp.kernels.tile import simd
from ringtmp.nn.layer import Array
from ringtmp.resilience.incident import RecoveryReport
from ringtmp.resilience.node_memory import NodeMemory, node_name
from ringtmp.run.finish import finish
from ringtmp.run.hosts import gather_hosts
from ringtmp.run.job import Job
from ringtmp.run.modes import after_losses, on_some_ranks, side_by_side
from ringtmp.run.output.first_lines import announce
from ringtmp.run.output.reporter import Reporter
from ringtmp.run.prepare import open_folder, prepare
from ringtmp.run.result import Result
from ringtmp.run.session import Session
from ringtmp.run.trainer import Trainer
from ringtmp.trace.fault_probe import probe_from_environment
from ringtmp.trace.recorder import Recorder, environment

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PATIENCE = 5.0  # seconds that a launch which has failed waits for a checkpoint that is being written


def launch_from_python(
    trainer: type[Trainer],
    comm: "Intracomm | None",
    data: Any,
    out: str | None,
    progress: bool,
    settings: dict[str, Any],
) -> Result:
    """Train on the ranks of `comm`, for `ringtmp.train` and `ps.train`. Collective over `comm`.

    Parameters
    ----------
    trainer : type
        Class of the trainer.
    comm : Intracomm or None
        All ranks of the job; None: the world.
    data : str, tuple of array or None
        Value of `--data`, or arrays.
    out : str or None
        Folder in which to make a run folder; None: none is made.
    progress : bool
        Whether rank 0 prints.
    settings : dict
        Fields of `RunConfig`; None stands for "not set".

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD

    # Turn the arguments into settings; None stands for "not set".
    arrays = data if isinstance(data, tuple) else None
    settings = {key: value for key, value in settings.items() if value is not None}
    flags = dict(settings) | ({"out": out} if out else {})
    if data is not None:
        flags["data"] = "arrays" if arrays else data

    # End the job if one rank fails: the others would wait for it for ever.
    try:
        return launch(trainer, comm, {}, flags, arrays=arrays, write=bool(out or settings.get("resume")), show=progress)
    except UserError:
        raise
    except BaseException as error:
        if comm.size > 1:
            abort(comm, error)
        raise


def launch(
    trainer: type[Trainer],
    parent: "Intracomm",
    from_file: dict[str, Any],
    flags: dict[str, Any],
    *,
    arrays: tuple[Array, ...] | None = None,
    write: bool = True,
    show: bool = True,
    stop_request: Callable[[], int] = lambda: 0,
) -> Result:
    """Check a job, train, and write results. Collective over `parent`.

    Parameters
    ----------
    trainer : type
        Class of the trainer.
    parent : Intracomm
        All ranks of the job.
    from_file, flags : dict
        Settings of the configuration file and of the command line, which have precedence. Only rank 0's count.
    arrays : tuple of array or None
        Data given from Python: (x, y) or (x, y, x_test, y_test).
    write : bool
        Whether to write a run folder.
    show : bool
        Whether rank 0 prints.
    stop_request : callable
        Returns the number of the signal that asks for a stop, or 0.

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    # Communicators of the launch's own: for start, agreement and end, and for training. Recovery from losses revokes
    # the one over which ranks wait, so that there must be only one.
    comm = parent.Dup()
    survives = write and trainer.traits.survives_losses and ulfm.available()
    net = comm if survives else parent.Dup()

    def free() -> None:
        comm.Free()
        if net != comm:
            net.Free()

    job: Job | None = None
    report = RecoveryReport()
    try:
        # Check everything.
        job = prepare(comm, from_file, flags, arrays, trainer.check, trainer.traits.uses_node_memory)
        job.writes = write
        report.mark("agree")

        # Train in the mode that the settings ask for.
        session = Session(parent, comm, net, job, report, write, show, stop_request)
        if job.config.rings > 1 and trainer.traits.side_by_side:
            result = side_by_side(run, trainer, session)
        elif len(members := trainer.members(comm, job)) < comm.size:
            result = on_some_ranks(run, trainer, session, members)
        elif survives:
            return after_losses(run, trainer, session)  # may have revoked the communicator, which is not freed then
        else:
            result = run(trainer(session), session)
        free()
        return result
    except UserError:  # on every rank
        free()
        raise
    except BaseException as error:
        _note_failure(job, comm.rank, error)
        if comm.size == 1:  # on several ranks the job ends
            free()
        raise
    finally:
        if job and job.lock:
            job.lock.close()


def _note_failure(job: Job | None, rank: int, error: BaseException) -> None:
    """State the error and its rank in the run folder, if the job has one."""
    if job and job.folder:
        with suppress(OSError):  # the disk may be what failed
            text, fatal = f"{type(error).__name__}: {error}", isinstance(error, RunFailure)
            # An error of MPI's is most often how this rank sees the end of another.
            is_mpi = "mpi4py" in type(error).__module__
            job.folder.set_status("failed", rank=rank, error=text, fatal=fatal, mpi=is_mpi)


# ---- one launch -----------------------------------------------------------------------------------------------------


def run(trainer: Trainer, session: Session) -> Result:
    """Run one launch. Collective over `session.comm`.

    Parameters
    ----------
    trainer : Trainer
        The trainer of this rank.
    session : Session
        Its session.

    Returns
    -------
    Result
        The result of the launch.

    Raises
    ------
    UserError, RunFailure
        The launch cannot begin, or cannot continue.
    """
    _build(trainer, session)
    _gather_places(session)
    _announce(trainer, session)
    _compile_kernels(trainer, session)
    _load(trainer, session)
    _open_trace_and_checkpoints(trainer, session)
    trainer.connect()
    _start_clocks(session)
    _train(trainer, session)
    return finish(trainer, session)


def _build(trainer: Trainer, session: Session) -> None:
    """Distribute the layers over the ranks, then open the run folder."""
    job = session.job
    with raise_on_all(job.everyone) if job.everyone else nullcontext():
        trainer.build()
        # The folder's lock comes before anything is read from it: another job would discard that.
        if session.writes:
            open_folder(session.comm, job)


def _gather_places(session: Session) -> None:
    """Gather the host, process, node and cores of each rank, and state the processes in the run folder."""
    session.peers = Peers.gather(session.comm)
    session.nodes = session.comm.allgather(node_name())
    session.hosts = gather_hosts(session.everyone)
    if session.rank == 0 and session.job.folder:
        with suppress(OSError):
            session.job.folder.set_processes(session.job.launch, session.peers.places)


def _announce(trainer: Trainer, session: Session) -> None:
    """Make rank 0's reporter, and print the first lines."""
    if session.rank == 0:
        on_first_step = partial(_report_recovery, session)
        session.reporter = Reporter.of(session.job, show=session.show, on_first_step=on_first_step)
        announce(
            session.reporter.say, session.job, session.hosts, trainer.traits.ring, trainer.describe(), trainer.notes
        )


def _report_recovery(session: Session) -> None:
    """Print and record the cost of a recovery, once every rank has made the first step after it (rank 0)."""
    report, job = session.report, session.job
    report.mark("redo")
    if report.cause and session.reporter:
        newest = job.recalled.newest if job.recalled else report.cause.get("stopped", -1)
        repeated = max(newest - job.start, 0) if newest >= 0 else -1
        session.reporter.say(report.summary(job.start, repeated))
        session.recorder.flush({"recovery": report.facts(job.start, repeated)})


def _compile_kernels(trainer: Trainer, session: Session) -> None:
    """Compile the kernels that are needed, or load them from the cache; the first rank of each host compiles."""
    job, log = session.job, session.reporter.say if session.reporter else None
    job.optimizer().load()
    prepare_kernels(job.dtype, job.model.families | trainer.kernel_families(), log=log)
    if job.config.node_speed:
        prepare_kernels(np.float64, {"jitter"})
    session.report.mark("split")


def _load(trainer: Trainer, session: Session) -> None:
    """Allocate space in the node's memory if copies are kept, and set the layers' values."""
    job = session.job
    session.probe = probe_from_environment()
    if job.config.state_copies and job.folder:
        session.memory = NodeMemory(job.folder.identity(), node_name())
        trainer.reserve()
    if session.probe:
        session.probe.at("restore", job.start)
    trainer.load()
    session.report.mark("restore")


def _open_trace_and_checkpoints(trainer: Trainer, session: Session) -> None:
    """Make this rank's recorder and its checkpoint manager."""
    job, rank = session.job, session.rank
    facts = {"rank": rank, "ranks": session.size, "start_step": job.start, **trainer.trace_facts()}
    facts |= {"config": job.config.stored(), "environment": environment(), "simd": simd()}
    facts["host_cores"] = session.here.cores  # cores that the ranks of this host share
    path = job.folder.trace(job.launch, rank) if job.folder and job.config.trace else None
    # Without a file too, the summary needs the newest events: those of rings side by side, and of `train` in Python.
    session.recorder = Recorder(path, facts, keep=job.config.trace and (session.show or job.writes))
    session.checkpoints = CheckpointManager(
        job.folder,
        job.model,
        job.facts() if job.folder and not rank else {},  # takes some milliseconds: not while training
        rank,
        trainer.writers,
        job.total,
        session.recorder,
        every=job.config.checkpoint_every,
        mtbf=job.config.mtbf,
        probe=session.probe,
    )


def _start_clocks(session: Session) -> None:
    """Compare the ranks' clocks, and begin the wall time together."""
    sleeping_barrier(session.comm)
    clocks = compare_clocks(session.net, TAG_CLOCK)
    session.recorder.flush({"clock_first": clocks})  # a run that is killed leaves a trace that can be aligned
    session.comm.Barrier()
    if session.reporter:
        session.reporter.begin()
    session.recorder.begin()


def _train(trainer: Trainer, session: Session) -> None:
    """Train; a failure leaves the trace that led to it, and a checkpoint that is being written if that ends in time."""
    try:
        with flush_denormals():
            trainer.train()
    except BaseException:
        session.recorder.flush()
        session.checkpoints.close(_PATIENCE)
        raise

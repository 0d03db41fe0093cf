"""The end of a launch: save the last weights, digest them, and gather the reports of all ranks."""

import hashlib
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.checkpoint.writer import records_of
from ringtmp.comm import ulfm
from ringtmp.comm.clock_sync import compare_clocks
from ringtmp.comm.point_to_point import TAG_CLOCK
from ringtmp.nn.layer import Array
from ringtmp.resilience.incident import supervised
from ringtmp.resilience.node_memory import NodeMemory, node_name
from ringtmp.run.output.summary import Summary, conclude
from ringtmp.run.result import Layers, Result
from ringtmp.run.session import Session
from ringtmp.run.time_use import time_given_cores
from ringtmp.run.trainer import Trainer
from ringtmp.trace.recorder import clock, peak_memory

_SIGNAL = 0.2  # seconds that a launcher may take to pass a signal on to all ranks


def finish(trainer: Trainer, session: Session) -> Result:
    """Save, digest and report what a launch has trained. Collective over `session.comm`.

    Parameters
    ----------
    trainer : Trainer
        The trainer, after `train`.
    session : Session
        Its session.

    Returns
    -------
    Result
        The result of the launch.
    """
    job, comm, step = session.job, session.comm, trainer.step

    # Write the last checkpoint, and end the trace.
    arrays = trainer.layers()
    saved = bool(job.folder) and session.checkpoints.finish(comm, step, records_of(job.model, arrays))
    session.checkpoints.close()
    _end_trace(session)

    # Digest this rank's layers, one at a time in its own shape, and gather what all ranks report.
    layers = Layers(job.model, {index: flat for index, flat, _ in arrays})
    rows = comm.allgather(_row(trainer, session, {name: _digest(layers[name]) for name in layers}))
    digests = dict(sorted(pair for row in rows for pair in row.pop("digests").items()))
    sha256 = hashlib.sha256("".join(digests.values()).encode()).hexdigest()

    # Find out why the run has ended, and make the result.
    state = "finished" if step == job.total else "stopped"
    stop = comm.bcast(trainer.stop_signal) if state == "stopped" else 0
    leavers = _leavers(session) if state == "stopped" else []
    history = session.reporter.rows if session.reporter else []
    folder = str(job.folder.path) if job.folder else None
    ranks = rows if session.rank == 0 else []
    result = Result(layers, sha256, history, ranks, state, stop, step, folder, saved, leavers, session.parent)
    _report(trainer, session, result)

    # Forget what the nodes' memory holds of the run, unless a next launch needs it.
    if saved and not (leavers and (supervised() or ulfm.available())):
        forget_run(session)
    return result


def _end_trace(session: Session) -> None:
    """State in the trace when the run has ended, and how far the clocks have drifted."""
    session.recorder.ended = clock()
    clocks = compare_clocks(session.net, TAG_CLOCK)
    session.recorder.flush({"ended": session.recorder.ended, "clock_last": clocks})


def _row(trainer: Trainer, session: Session, digests: dict[str, str]) -> dict[str, Any]:
    """The report of this rank. Collective."""
    recorder, config = session.recorder, session.job.config
    # Emulated nodes sleep instead of computing: how they share this machine's cores says nothing.
    given = None if config.node_speed else time_given_cores(session.everyone, recorder, config.threads)
    row = {"rank": session.rank, **trainer.row(), "parts": recorder.parts(), "given_cores": given}
    return row | {"memory": peak_memory(), "digests": digests}


def _digest(arrays: dict[str, Array]) -> str:
    """SHA-256 of a layer's parameters in their own shapes, the same however they are packed."""
    joined = hashlib.sha256()
    for array in arrays.values():
        joined.update(np.ascontiguousarray(array).data)
    return joined.hexdigest()


def _leavers(session: Session) -> list[int]:
    """Ranks that received SIGUSR1 and are to leave; none if all received it. Collective."""
    comm = session.comm
    if signal.SIGUSR1 in comm.allgather(session.stop_request()):
        time.sleep(_SIGNAL)  # a signal that is for all does not reach all at the same time
    leaves = [number == signal.SIGUSR1 for number in comm.allgather(session.stop_request())]
    return [] if all(leaves) else [rank for rank in range(session.size) if leaves[rank]]


def _report(trainer: Trainer, session: Session, result: Result) -> None:
    """Print the end of the run, and state it in the run folder (rank 0)."""
    reporter, folder = session.reporter, session.job.folder
    if not reporter:
        return
    reporter.close()
    if folder:
        with suppress(OSError):  # a full disk: a warning has said already what could not be saved
            folder.set_status(
                result.state,
                step=result.step,
                signal=result.signal,
                sha256=result.sha256,
                saved=result.saved,
                leavers=[(rank, session.peers.places[rank][0], session.nodes[rank]) for rank in result.leavers],
            )
    traits = trainer.traits
    summary = Summary(session.job, result, session.hosts, traits.heading, traits.ring)
    conclude(reporter.terminal, summary, _page(session))


def _page(session: Session) -> Path | None:
    """The page of the run (rank 0); None if there is none. History, traces and status are complete by now."""
    folder = session.job.folder
    return folder.report if folder and folder.report.exists() else None


def forget_run(session: Session) -> None:
    """Remove the copies of the run of `session` from this node's memory: its results are on disk."""
    if session.job.folder and (session.memory or session.job.recalled):
        NodeMemory(session.job.folder.identity(), node_name()).remove()

"""Launches other than by all ranks once: by some ranks, by rings side by side, and again after processes are lost.

Each mode makes the sessions in which it calls `run` (`ringtmp.run.launch.run`), which launches a trainer.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ringtmp.comm import ulfm
from ringtmp.comm.mpi import raise_on_all, sleeping_barrier
from ringtmp.comm.peers import Peers
from ringtmp.data.dataset import share_data
from ringtmp.errors import RunFailure
from ringtmp.resilience.ulfm_recovery import Survivors
from ringtmp.run.result import Result
from ringtmp.run.resume import continue_after_loss
from ringtmp.run.session import Session
from ringtmp.run.trainer import Trainer

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Run = Callable[[Trainer, Session], Result]


def on_some_ranks(run: Run, trainer: type[Trainer], session: Session, members: list[int]) -> Result:
    """Launch on some ranks; the others wait for the end. Collective over `session.comm`.

    Parameters
    ----------
    run : callable
        `ringtmp.run.launch.run`.
    trainer : type
        Class of the trainer.
    session : Session
        Session of all ranks.
    members : list of int
        Ranks that launch, ascending.

    Returns
    -------
    Result
        The result; on the other ranks without layers and rows.
    """
    comm, job = session.comm, session.job
    works, first = comm.rank in members, members[0]
    mine: Any = comm.Split(0 if works else 1, comm.rank)

    # Give the data to the first member, if rank 0, which has it, is none.
    if first:
        ends: Any = comm.Split(0 if comm.rank in (0, first) else 1, comm.rank)
        if comm.rank in (0, first):
            _share_data(ends, session)
        ends.Free()

    # Launch, or take part in what is collective over all ranks.
    job.members, job.everyone = tuple(members), comm
    result: Result | None = None
    if works:
        left_out = [rank for rank in range(comm.size) if rank not in members]
        who = f"rank{'s' * (len(left_out) > 1)} {', '.join(map(str, left_out))}"
        job.notes.append(f"{who} left out: the ring is faster without (--allow-idle-ranks)")
        net = mine.Dup()
        mine_session = replace(session, parent=mine, comm=mine, net=net)
        result = run(trainer(mine_session), mine_session)
        net.Free()
    else:
        with raise_on_all(comm):  # the members build, and open the run folder
            pass
    sleeping_barrier(comm)

    # Tell the others the result.
    facts: Any = None
    if result:
        facts = result.sha256, result.state, result.signal, result.step, result.folder, result.saved
    sha256, state, number, step, folder, saved = comm.bcast(facts, first)
    return result or Result({}, sha256, [], [], state, number, step, folder, saved, [], mine)


def side_by_side(run: Run, trainer: type[Trainer], session: Session) -> Result:
    """Launch several rings, of which the first writes and prints. Collective over `session.comm`.

    Parameters
    ----------
    run : callable
        `ringtmp.run.launch.run`.
    trainer : type
        Class of the trainer.
    session : Session
        Session of all ranks.

    Raises
    ------
    RunFailure
        The rings end with different weights.
    """
    # Divide the ranks: a communicator for each ring, and one across the rings for each place in a ring.
    comm, job = session.comm, session.job
    size = comm.size // job.config.rings
    job.ring, job.everyone = comm.rank // size, comm
    job.members = tuple(range(job.ring * size, (job.ring + 1) * size))
    ring: Any = comm.Split(job.ring, comm.rank)
    across: Any = comm.Split(comm.rank % size, comm.rank)
    job.across = across
    if ring.rank == 0:
        _share_data(across, session)

    # Launch this rank's ring.
    net, leads = ring.Dup(), job.ring == 0
    mine = replace(
        session, parent=ring, comm=ring, net=net, writes=session.writes and leads, show=session.show and leads
    )
    result = run(trainer(mine), mine)
    if len(set(across.allgather(result.sha256))) > 1:
        raise RunFailure("the rings end with different weights")
    saved: bool = across.bcast(result.saved)  # by the first ring, which alone writes
    for each in (net, across):
        each.Free()
    return replace(result, saved=saved)


def _share_data(comm: "Intracomm", session: Session) -> None:
    """Give rank 0's data to all ranks of `comm`, collectively."""
    job = session.job
    job.data = share_data(comm, job.data, job.info, job.config.data, job.dtype, job.config.test_fraction)


def after_losses(run: Run, trainer: type[Trainer], session: Session) -> Result:
    """Launch, and launch again on the surviving ranks whenever processes are lost. Collective over `session.comm`.

    Parameters
    ----------
    run : callable
        `ringtmp.run.launch.run`.
    trainer : type
        Class of the trainer.
    session : Session
        Session of all ranks.
    """
    job, report = session.job, session.report
    survivors = Survivors(ulfm.guard(session.comm), Peers.gather(session.comm), time.time())
    lost = False
    while True:
        current: Trainer | None = None
        comm = survivors.comm
        try:
            # Launch, over one communicator.
            if lost:
                job = continue_after_loss(comm, job)
                report.mark("agree")
            session = Session(comm, comm, comm, job, report, True, session.show, session.stop_request)
            current = trainer(session)
            result = run(current, session)
            if not result.leavers:
                return result
            survivors.dismiss(result.leavers)
        except Exception as error:
            if not job.folder or not survivors.is_loss(error):
                raise

        # Regroup the surviving ranks.
        lost, noticed = True, time.time()
        if current:
            session.release()
        report = survivors.regroup(current, job.folder, noticed)

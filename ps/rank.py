"""The loop of a rank: it trains, serves, coordinates, or several of these, and ends together with all others."""

import time
import traceback
from typing import TYPE_CHECKING

from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm import mpi
from ringtmp.comm.waiting import Backoff, WaitLoop
from ringtmp.errors import RunFailure
from ringtmp.ps.assembly import ServerParts, make_incoming, make_worker
from ringtmp.ps.background import Background
from ringtmp.ps.coordinator import Coordinator
from ringtmp.ps.membership import WorkerDroppedError
from ringtmp.ps.messages import Done, ForgetOlder, Leave, Over, Stop, make_mailbox
from ringtmp.ps.setup import RankSetup
from ringtmp.ps.worker import Worker
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class RankLoop:
    """This rank's part in a launch. Collective over `setup.session.comm`.

    Parameters
    ----------
    setup : RankSetup

    Attributes
    ----------
    end : int
        Steps that the run makes: all, unless a stop is ordered.
    collector : CheckpointCollector or None
        Of a rank that serves.
    """

    def __init__(self, setup: RankSetup) -> None:
        session = setup.session
        self.setup, self.recorder, self.end = setup, session.recorder, setup.table.total
        self._over = False

        # Channels: control messages, parts of checkpoints, copies for node memory.
        checkpoint_comm = session.comm.Dup()
        replica_comm = session.comm.Dup() if setup.replica_holders else None
        self.mailbox = make_mailbox(session.net, self._peers(), self.recorder)
        setup.membership.follow(self.mailbox)
        self.mailbox.on(Over, self._on_over)
        self.mailbox.on(Stop, self._on_stop)
        self.mailbox.on(ForgetOlder, self._on_forget_older)

        # Parts: server, coordinator, what goes on beside training, worker.
        serving = ServerParts(setup, self.mailbox, checkpoint_comm, replica_comm) if setup.serves else None
        self.collector = serving.collector if serving else None
        self.coordinator = self._coordinator() if setup.rank == 0 else None
        incoming = make_incoming(setup, replica_comm) if replica_comm else []
        self.background = Background(setup, self.mailbox, serving, incoming, self.coordinator)
        server = serving.server if serving else None
        self.worker = make_worker(setup, self.mailbox, server, self.background.poll) if setup.works else None

    def _peers(self) -> set[int]:
        """Ranks that this one exchanges messages with: all of them for servers and for rank 0."""
        setup, everybody = self.setup, {*range(self.setup.session.size)}
        if setup.rank == 0 or (setup.serves and setup.works):
            return everybody
        return {0, *setup.roles.servers, *(setup.roles.workers if setup.serves else ())}

    def _coordinator(self) -> Coordinator:
        setup, session = self.setup, self.setup.session
        assert setup.listener
        return Coordinator(
            self.mailbox,
            setup.roles.workers,
            range(session.size),
            setup.writers,
            setup.listener,
            session.peers,
            batch_size=setup.config.batch_size,
            test_samples=setup.job.info.n_test,
            start=setup.job.start,
            period=setup.config.local_steps,
            total=setup.table.total,
        )

    @property
    def stop_signal(self) -> int:
        """The signal that stopped the run, or 0 (rank 0)."""
        return self.coordinator.stop_signal if self.coordinator else 0

    # ---- training -----------------------------------------------------------------------------------------------

    def run(self) -> "tuple[Intracomm, Intracomm]":
        """Train; on return no message is under way.

        Returns
        -------
        comm, net : Intracomm
            Those of the session, or without the ranks that do not answer.

        Raises
        ------
        RunFailure
            The run cannot go on; the message says from which step it can be resumed.
        """
        try:
            if self.worker:
                self._work(self.worker)
            self._finish()
        except RunFailure as failure:
            raise RunFailure(f"{failure}{self._last_checkpoint()}") from None
        comms = self._leave_together()
        self._close()
        return comms

    def _last_checkpoint(self) -> str:
        """Where to resume, for the message of a failure."""
        folder = self.setup.job.folder
        if not folder:
            return ""
        committed = checkpoint.committed(folder.checkpoints)
        if not committed:
            return "; there is no checkpoint yet"
        return f"; go on from step {committed[-1]} with: --resume {folder.path}"

    def _work(self, worker: Worker) -> None:
        """Train until this worker has its last weights; on a failure of this rank alone let the others go on."""
        setup = self.setup
        try:
            worker.run()
        except WorkerDroppedError:
            mpi.warn("has been dropped by the others, cannot be taken back, and waits for the end of the job")
            while True:  # rank 0 ends this process
                time.sleep(1)
        except RunFailure:
            raise
        except Exception as error:
            if setup.serves or not setup.roles.servers:
                raise  # the others cannot do without this rank
            text = "".join(traceback.format_exception(error)).rstrip()
            mpi.warn(f"takes no part any more: {type(error).__name__}: {error}\n{text}")
            self.mailbox.send_all(setup.roles.servers, Leave())
            return
        self.mailbox.send_all({0, *setup.roles.servers}, Done())

    # ---- the end ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Serve until all workers have ended."""
        wait = WaitLoop(
            Backoff(self.setup.session.is_crowded()),
            self._poll,
            lambda begin, end: self.recorder.record("wait", begin, end, -1) if end > begin else None,
            booked=lambda: self.recorder.recorded,
        )
        wait.until(lambda: self._over and self.mailbox.idle() and self.background.finish_replication(), clock())

    def _poll(self) -> bool:
        """Poll messages and what goes on beside them, and announce the end when all have ended (rank 0)."""
        moved = self.mailbox.poll()
        moved |= self.background.poll()
        if self.coordinator and not self._over and not moved and self._all_ended():
            self.coordinator.announce_end()
            self._over = True
        return moved

    def _all_ended(self) -> bool:
        """Whether every worker has its last weights, every report has arrived, every checkpoint is written (rank 0)."""
        return self.coordinator is not None and self.coordinator.finished() and self.background.finished()

    def _leave_together(self) -> "tuple[Intracomm, Intracomm]":
        """Wait until all ranks that answer have come here; returns communicators of these alone."""
        lost = self.setup.membership.unresponsive
        comm, net = self.setup.session.comm, self.setup.session.net
        with self.recorder.timed("wait", -1):
            if lost:
                group = comm.group.Excl(sorted(lost))
                comm, net = comm.Create_group(group), net.Create_group(group, 1)
                mpi.mark_degraded(comm, self.coordinator.kill_lost if self.coordinator else lambda: None)
            comm.Barrier()
        return comm, net

    def _close(self) -> None:
        membership, rank = self.setup.membership, self.setup.rank
        if membership.unresponsive:
            return  # some requests may never complete; the process ends soon
        if self.worker and membership.loss(rank) is None:
            self.worker.exchange.close()
        self.background.close()
        self.mailbox.close()

    # ---- messages -----------------------------------------------------------------------------------------------

    def _on_over(self, sender: int, message: Over) -> None:
        self._over = True

    def _on_stop(self, sender: int, message: Stop) -> None:
        self.end = min(self.end, message.step)

    def _on_forget_older(self, sender: int, message: ForgetOlder) -> None:
        """Remove copies of earlier launches from the node's memory: no rank can need them any more."""
        session = self.setup.session
        if session.memory:
            session.memory.forget(session.copies_generation)

"""Recovery within a running job, if the MPI reports lost processes (`ringtmp.comm.ulfm`).

The same course as after a restart, on the surviving ranks: agree on the survivors, find the newest complete step,
divide the layers again, fetch them, train. The processes, their imports and their compiled kernels are kept.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ringtmp.comm import mpi, ulfm
from ringtmp.comm.mpi import from_rank_0
from ringtmp.comm.peers import Peers
from ringtmp.errors import RunFailure
from ringtmp.resilience.incident import RecoveryReport
from ringtmp.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

_PATIENCE = 120  # seconds to wait for a rank that computes and cannot be reached; then this one gives up


class Requester(Protocol):
    """Owner of persistent requests: a trainer."""

    def requests(self) -> "list[Prequest]":
        """All persistent requests, started or not."""


@dataclass
class Survivors:
    """The surviving ranks of a job.

    Attributes
    ----------
    comm : Intracomm
        Carries all their messages: revoking it frees a rank from any wait.
    peers : Peers
        Process of each rank.
    began : float
        Seconds since the epoch at which the job began.
    false_alarms : int
        Reported losses in a row without a lost process.
    kept : list
        Requests that did not end when a process was lost, with the trainer that owns their buffers: MPI may still write
        to these.
    """

    comm: "Intracomm"
    peers: Peers
    began: float
    false_alarms: int = 0
    kept: list[tuple[Requester, "list[Prequest]"]] = field(default_factory=list)

    def is_loss(self, error: BaseException) -> bool:
        """Whether a lost process is the cause of `error`. Collectives that lose one may also return rubbish."""
        if ulfm.lost(error):
            return True
        try:
            ulfm.watch(self.comm)
        except Exception as failure:
            return ulfm.lost(failure)
        return False

    def regroup(self, trainer: Requester | None, folder: RunFolder | None, noticed: float) -> RecoveryReport:
        """Make a communicator of the surviving ranks. Collective over them.

        Ends the process if the run has failed for a reason that all ranks share.

        Parameters
        ----------
        trainer : Requester or None
            The trainer that was running when the loss was noticed.
        folder : RunFolder or None
            Folder of the run.
        noticed : float
            Seconds since the epoch at which the loss was noticed.

        Raises
        ------
        RunFailure
            Losses were reported twice in a row without a lost process.
        """
        # Regroup, and end the requests that were made on the old communicator.
        comm, gone = ulfm.regroup(self.comm, patience=_PATIENCE)
        if trainer and (left := ulfm.settle(trainer.requests())):
            self.kept.append((trainer, left))

        # Find the lost ranks.
        what = ", ".join(self.peers.name(rank) for rank in gone)
        self.false_alarms = 0 if gone else self.false_alarms + 1
        self.peers, self.comm = self.peers.without(gone), comm
        mpi.mark_degraded(comm, lambda: None)
        if self.false_alarms > 1:
            raise RunFailure("losses were reported twice in a row, but every process runs")
        self._end_if_failed(folder)
        return RecoveryReport(
            {
                "what": f"{what or 'no process'} {'are' if len(gone) > 1 else 'is'} gone",
                "lost": min(gone, default=-1),
                "gone": list(gone),
                "noticed": noticed,
                "cleared": time.time(),
                "restarts": 0,
            }
        )

    def _end_if_failed(self, folder: RunFolder | None) -> None:
        """End the process if a rank has stated in the run folder, before it ended, that the run cannot continue."""

        def failed() -> bool:
            assert folder
            status = folder.status()
            return bool(status.get("fatal")) and status.get("time", 0) > self.began

        if from_rank_0(self.comm, failed):
            ulfm.leave(self.comm, 1)

    def dismiss(self, leavers: Sequence[int]) -> None:
        """End this process, as if lost, if it is among `leavers`, whose state the other ranks hold."""
        if self.comm.rank in leavers:
            ulfm.die()

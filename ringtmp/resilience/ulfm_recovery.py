"""A job that loses processes and goes on without starting again, where the MPI can tell (`ringtmp.comm.ulfm`).

The same course as after a new start, with those who are left: agree on who they are, find the newest step that is
whole, deal the layers anew, fetch them, train on. Only the processes, their imports and their kernels are there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringtmp.comm import mpi, ulfm
from ringtmp.comm.mpi import from_rank_0
from ringtmp.errors import RunFailure
from ringtmp.resilience.incident import RecoveryReport
from ringtmp.run.job import Job

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

    from ringtmp.run.launch import Launch

_PATIENCE = 120  # seconds for a rank that computes before it is reached; then this one gives up


@dataclass
class Survivors:
    """Those who are there.

    Attributes
    ----------
    comm : Intracomm
        For everything that they say to each other: revoking it frees a rank from any wait.
    places : list of tuple
        Host and process number of each.
    began : float
        Seconds since the epoch at which they came together first.
    idle : int
        Alarms in a row without anybody being lost.
    kept : list
        Launches with requests that did not end when a process was lost: MPI may yet write into their buffers.
    """

    comm: "Intracomm"
    places: list[tuple[str, int]]
    began: float
    idle: int = 0
    kept: list[tuple["Launch", "list[Prequest]"]] = field(default_factory=list)

    def broken(self, error: BaseException) -> bool:
        """Whether an error comes of a lost process. Collectives that lose one may also return rubbish."""
        if ulfm.lost(error):
            return True
        try:
            ulfm.watch(self.comm)
        except Exception as failure:
            return ulfm.lost(failure)
        return False

    def close_ranks(self, launch: "Launch | None", job: Job) -> RecoveryReport:
        """Go on with those who are left. Collective over them; ends the process if the run has failed for good.

        `launch`: what was under way when the loss was noticed.
        """
        noticed = time.time()
        if launch:
            launch.give_up()
        comm, gone = ulfm.regroup(self.comm, patience=_PATIENCE)
        if launch and (left := ulfm.settle(launch.requests())):
            self.kept.append((launch, left))
        what = ", ".join("rank {} on {} (process {})".format(rank, *self.places[rank]) for rank in gone)
        self.idle = 0 if gone else self.idle + 1
        self.places = [place for rank, place in enumerate(self.places) if rank not in gone]
        self.comm = comm
        mpi.mark_degraded(comm, lambda: None)
        if self.idle > 1:
            raise RunFailure("processes were said to be lost twice in a row, and all are there")
        self._end_if_failed(job)
        cause = {
            "what": f"{what or 'nobody'} {'are' if len(gone) > 1 else 'is'} gone",
            "lost": min(gone, default=-1),
            "gone": list(gone),
            "noticed": noticed,
            "cleared": time.time(),
            "restarts": 0,
        }
        return RecoveryReport(cause)

    def _end_if_failed(self, job: Job) -> None:
        """A rank that fails for a reason that will be everybody's has said so before it left."""
        folder = job.folder
        assert folder

        def failed() -> bool:
            status = folder.status()
            return bool(status.get("fatal")) and status.get("time", 0) > self.began

        if from_rank_0(self.comm, failed):
            ulfm.leave(self.comm, 1)

    def part(self, leavers: Sequence[int]) -> None:
        """Some ranks have been told to leave, and the others hold all that they had: they end here, as if lost."""
        if self.comm.rank in leavers:
            ulfm.die()

"""The processes of a job: host of each rank, whether its process runs, and how to end it."""

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ringtmp.comm.mpi import runs

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Peers:
    """Host and process number of each rank. Only processes of this host can be checked or ended.

    Parameters
    ----------
    places : sequence of tuple
        Host name and process number, by rank.
    """

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        self.places = [(host, pid) for host, pid in places]

    @classmethod
    def gather(cls, comm: "Intracomm") -> "Peers":
        """Collect the processes of all ranks. Collective over `comm`."""
        return cls(comm.allgather((socket.gethostname(), os.getpid())))

    def name(self, rank: int) -> str:
        """Name rank `rank` for a message: number, host and process."""
        host, pid = self.places[rank]
        return f"rank {rank} on {host} (process {pid})"

    def local(self) -> list[int]:
        """Ranks on this host, in order."""
        here = socket.gethostname()
        return [rank for rank, (host, _) in enumerate(self.places) if host == here]

    def is_local(self, rank: int) -> bool:
        """Whether rank `rank` is on this host."""
        return self.places[rank][0] == socket.gethostname()

    def has_ended(self, rank: int) -> bool:
        """Whether the process of rank `rank` is known to have ended; False for a rank on another host."""
        return self.is_local(rank) and not runs(self.places[rank][1])

    def kill(self, rank: int) -> None:
        """Kill the process of rank `rank`, if it is on this host and still runs."""
        if self.is_local(rank):
            with suppress(OSError):
                os.kill(self.places[rank][1], signal.SIGKILL)

    def without(self, ranks: Sequence[int]) -> "Peers":
        """The ranks that are not in `ranks`, renumbered in the same order."""
        return Peers([place for rank, place in enumerate(self.places) if rank not in ranks])

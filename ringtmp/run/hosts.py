"""The hosts of a launch: which ranks are on each, and the cores that they share."""

import math
import socket
from typing import TYPE_CHECKING, NamedTuple

from ringtmp.trace.machine import core_limit, usable_cpus

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Host(NamedTuple):
    """A host and the ranks on it.

    Attributes
    ----------
    name : str
        Its name.
    ranks : tuple of int
        Ranks on it, ascending, numbered as in the communicator that was asked.
    cores : float
        Cores that these ranks may use together; a fraction where a control group limits them.
    """

    name: str
    ranks: tuple[int, ...]
    cores: float

    def room(self, threads: int) -> int:
        """Ranks that could each have their own cores, at least 1; `threads` is the number of threads of a rank."""
        return max(1, min(len(self.ranks), int(self.cores // threads)))

    def is_crowded(self, threads: int = 1) -> bool:
        """Whether the ranks' threads, `threads` each, outnumber the cores."""
        return len(self.ranks) * threads > self.cores


def gather_hosts(comm: "Intracomm") -> list[Host]:
    """The hosts of the ranks of `comm`, in order of their lowest rank. Collective.

    A rank may be bound to some processors: its host's cores are all those to which any of its ranks may go.
    """
    limit = core_limit()
    mine = socket.gethostname(), sum(1 << cpu for cpu in usable_cpus()), math.inf if limit is None else limit
    places = comm.allgather(mine)
    hosts = []
    for name in dict.fromkeys(place[0] for place in places):
        ranks = tuple(rank for rank, place in enumerate(places) if place[0] == name)
        cpus = 0
        for rank in ranks:
            cpus |= places[rank][1]
        hosts.append(Host(name, ranks, min(float(cpus.bit_count()), max(places[rank][2] for rank in ranks))))
    return hosts

"""Ping-pong between ring neighbours: offsets between their clocks, and latency and bandwidth of a link."""

from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.mpi import sleeping_barrier
from ringtmp.trace.recorder import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_TAG = 0  # on the communicator of start and end, where nothing else is sent


def compare_clocks(comm: "Intracomm", tag: int, rounds: int = 20) -> dict[str, float]:
    """Offset of this rank's clock to rank 0's. Collective over `comm`; only neighbours exchange messages.

    Each pair keeps its fastest of `rounds` round trips (Cristian 1989); the offsets are added up round the ring.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    tag : int
        Tag of the messages, used for nothing else on `comm`.
    rounds : int
        Round trips of each pair.

    Returns
    -------
    dict of float
        `offset`: nanoseconds to subtract from this rank's clock to get rank 0's; `uncertainty`: sum of half the round
        trips that the offset rests on; `closure`: sum of the offsets round the whole ring, about zero (on rank 0);
        `at`: this rank's clock, in nanoseconds, at the end.
    """
    size, left, right = comm.size, (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    here = {"offset": 0.0, "uncertainty": 0.0, "closure": 0.0}
    note = np.zeros(2)

    def answer() -> None:
        for _ in range(rounds):
            comm.Recv(note, right, tag)
            note[0] = clock()
            comm.Send(note, right, tag)
        comm.Send(np.array([here["offset"], here["uncertainty"]]), right, tag)

    def ask() -> tuple[float, float]:
        best, skew = float("inf"), 0.0
        for _ in range(rounds):
            sent = clock()
            comm.Send(note, left, tag)
            comm.Recv(note, left, tag)
            back = clock()
            if back - sent < best:
                best, skew = back - sent, (sent + back) / 2 - note[0]
        comm.Recv(note, left, tag)
        return note[0] + skew, note[1] + best / 2

    if size > 1:
        if comm.rank == 0:
            answer()
            here["closure"], _ = ask()
        else:
            here["offset"], here["uncertainty"] = ask()
            answer()
    return here | {"at": float(clock())}


def measure_link(comm: "Intracomm", size: int = 1 << 20) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes per second of a link. Collective over `comm`.

    Measured between ranks 0 and 1 while the others sleep, with 8 bytes and with `size` bytes; each is the fastest of
    several round trips. On one rank: 0 and infinity.
    """
    if comm.size == 1:
        return 0.0, float("inf")
    best = []
    for count, rounds in ((8, 200), (size, 20)):
        buffer, fastest = np.zeros(count, np.uint8), float("inf")
        for _ in range(rounds if comm.rank < 2 else 0):
            began = clock()
            if comm.rank == 0:
                comm.Send(buffer, 1, _TAG)
                comm.Recv(buffer, 1, _TAG)
            else:
                comm.Recv(buffer, 0, _TAG)
                comm.Send(buffer, 0, _TAG)
            fastest = min(fastest, (clock() - began) / 2e9)
        best.append(fastest)
    sleeping_barrier(comm)
    latency, whole = comm.bcast(best)
    return latency, size / max(whole - latency, 1e-12)

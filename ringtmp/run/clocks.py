"""Offsets between the clocks of the ranks, by ping-pong between ring neighbours."""

from typing import TYPE_CHECKING

import numpy as np

from ringtmp.run.trace import clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def compare_clocks(comm: "Intracomm", tag: int, rounds: int = 20) -> dict[str, float]:
    """Offset of this rank's clock to rank 0's. Collective over `comm`; only neighbours talk.

    Each pair keeps its fastest of `rounds` round trips (Cristian 1989); the offsets are added up round the ring.

    Returns
    -------
    dict
        `offset`: nanoseconds to take from this rank's clock to get rank 0's; `uncertainty`: half the round trips it
        rests on, added up; `closure`: what the whole ring adds up to, about zero (on rank 0); `at`: this clock.
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

"""``mpirun -n 8 python -m ringtmp.train``: train a network whose layers are distributed over the ranks."""

from typing import TYPE_CHECKING

from ringtmp.comm.mpi import run_main
from ringtmp.run.entry_point import program

if TYPE_CHECKING:
    from ringtmp.run.launch import Launch

_ABOUT = (
    "Train a neural network whose layers are distributed over the ranks of a ring. Micro-batches travel\n"
    "round as activations, their gradients travel back, and each rank updates its own layers."
)


def _trainer() -> "type[Launch]":
    from ringtmp.ring.trainer import RingLaunch

    return RingLaunch


main, stand_by = program("ringtmp.train", _ABOUT, "Server", _trainer)

if __name__ == "__main__":
    run_main(main, stand_by)

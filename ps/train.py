"""``mpirun -n 8 python -m ps.train``: train with parameter servers (rank 0 serves), or with an all-reduce."""

from typing import TYPE_CHECKING

from ringtmp.comm.mpi import run_main
from ringtmp.run.entry_point import program

if TYPE_CHECKING:
    from ringtmp.run.launch import Launch

_ABOUT = (
    "Train a neural network with parameter servers: rank 0 holds the parameters, every other rank the\n"
    "whole network and a share of each batch. Gradients are pushed, new weights come back."
)


def _trainer() -> "type[Launch]":
    from ps.trainer import ServerLaunch

    return ServerLaunch


main, stand_by = program("ps.train", _ABOUT, "Ring", _trainer)

if __name__ == "__main__":
    run_main(main, stand_by)

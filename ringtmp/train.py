"""``mpirun -n 8 python -m ringtmp.train``: train a network whose layers are divided over the ranks of a ring."""

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from ringtmp.comm.mpi import StopRequest, from_rank_0, run_main
from ringtmp.run.command import read_settings, set_threads, stand_by

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ABOUT = (
    "Train a neural network whose layers are distributed over the ranks of a ring. Micro-batches travel round as "
    "activations, their gradients travel back, and each rank updates its own layers."
)


def main(comm: "Intracomm", stop: StopRequest, words: list[str]) -> int:
    """Parse the flags `words`, train on the ranks of `comm`, and return the exit status; `stop` holds a signal."""
    settings = from_rank_0(comm, lambda: read_settings(words, "ringtmp.train", ABOUT, without="Server"))
    if settings is None:  # --help has been printed
        return 0
    set_threads(settings.threads)

    # Import what uses NumPy only now: it reads the thread counts when it is imported.
    from ringtmp.ring.trainer import RingTrainer
    from ringtmp.run.launch import launch

    result = launch(RingTrainer, comm, settings.from_file, settings.flags, stop_request=lambda: stop.signal)
    return result.exit_status


def run(words: list[str]) -> NoReturn:
    """Train as the command line `words` says, on every rank that a launcher has started, and exit."""
    read = partial(read_settings, words, "ringtmp.train", ABOUT, without="Server")
    run_main(
        partial(main, words=words),
        partial(stand_by, read=read, import_trainer=partial(import_module, "ringtmp.ring.trainer")),
    )


if __name__ == "__main__":
    run(sys.argv[1:])

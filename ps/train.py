"""``mpirun -n 8 python -m ps.train``: train with parameter servers (rank 0 serves), or with an all-reduce."""

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from ringtmp.comm.mpi import StopRequest, from_rank_0, run_main
from ringtmp.run.command import read_settings, set_threads, stand_by

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ABOUT = (
    "Train a neural network with parameter servers: rank 0 holds the parameters, every other rank the whole network "
    "and a share of each batch. Gradients are pushed, new weights come back."
)


def main(comm: "Intracomm", stop: StopRequest, words: list[str]) -> int:
    """Parse the flags `words`, train on the ranks of `comm`, and return the exit status; `stop` holds a signal."""
    settings = from_rank_0(comm, lambda: read_settings(words, "ps.train", ABOUT, without="Ring"))
    if settings is None:  # --help has been printed
        return 0
    set_threads(settings.threads)

    # Import what uses NumPy only now: it reads the thread counts when it is imported.
    from ringtmp.ps.trainer import ServerTrainer
    from ringtmp.run.launch import launch

    result = launch(ServerTrainer, comm, settings.from_file, settings.flags, stop_request=lambda: stop.signal)
    return result.exit_status


def run(words: list[str]) -> NoReturn:
    """Train as the command line `words` says, on every rank that a launcher has started, and exit."""
    read = partial(read_settings, words, "ps.train", ABOUT, without="Ring")
    run_main(
        partial(main, words=words),
        partial(stand_by, read=read, import_trainer=partial(import_module, "ringtmp.ps.trainer")),
    )


if __name__ == "__main__":
    run(sys.argv[1:])

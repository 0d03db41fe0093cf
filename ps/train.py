"""``mpirun -n 8 python -m ps.train``: train with parameter servers (rank 0 serves), or with an all-reduce."""

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from ringtmp.comm.mpi import StopRequest, from_rank_0, run_main
from ringtmp.run.command import read_settings, set_threads, stand_by

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_ABOUT = (
    "Train a neural network with parameter servers: rank 0 holds the parameters, every other rank the\n"
    "whole network and a share of each batch. Gradients are pushed, new weights come back."
)
_read = partial(read_settings, "ps.train", _ABOUT, without="Ring")


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Parse the flags, train on the ranks of `comm`, and return the exit status; `stop` holds a received signal."""
    settings = from_rank_0(comm, _read)
    if settings is None:  # --help has been printed
        return 0
    set_threads(settings.threads)

    # Import what uses NumPy only now: it reads the thread counts when it is imported.
    from ringtmp.ps.trainer import ServerTrainer
    from ringtmp.run.launch import launch

    result = launch(ServerTrainer, comm, settings.from_file, settings.flags, stop_request=lambda: stop.signal)
    return result.exit_status


if __name__ == "__main__":
    run_main(main, partial(stand_by, read=_read, import_trainer=partial(import_module, "ringtmp.ps.trainer")))

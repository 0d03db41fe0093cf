"""What one rank trains: the run with which those of several ranks are compared."""

from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import ringtmp
from ringtmp.comm.mpi import sleeping_barrier

_known: dict[tuple, SimpleNamespace] = {}


def alone(**settings: Any) -> SimpleNamespace:
    """The run of one rank with `settings`: trained on rank 0, once in each process, and sent to all ranks.

    Collective over all ranks, unless these settings have been asked for before. On 8 ranks that share 2 cores a run on
    each rank would take as long as four.

    Returns
    -------
    SimpleNamespace
        ``sha256``, ``step``, ``rows`` and ``layers`` (name -> parameter name -> array) of the `ringtmp.Result`.
    """
    key = tuple(sorted((name, str(value)) for name, value in settings.items()))
    if key not in _known:
        world, found = MPI.COMM_WORLD, None
        if world.rank == 0:
            result = ringtmp.train(comm=MPI.COMM_SELF, **settings)
            layers = {
                layer: {name: array.copy() for name, array in arrays.items()} for layer, arrays in result.layers.items()
            }
            found = SimpleNamespace(sha256=result.sha256, step=result.step, rows=result.rows, layers=layers)
        sleeping_barrier(world)  # ranks that wait in a broadcast would take the cores that rank 0 needs
        _known[key] = world.bcast(found)
    return _known[key]

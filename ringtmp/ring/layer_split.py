"""The split of layers over stages, computed by a ring of ranks that each know their own costs alone.

The algorithm is that of `ringtmp.schedule.partition`; here its vector travels round the ring.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.point_to_point import receive
from ringtmp.nn.layer import Array
from ringtmp.ring.messages import TAG_SPLIT
from ringtmp.schedule.partition import LayerSplit, StageCosts, nothing_left, slowest_allowed, split_layers

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def split_over_ring(comm: "Intracomm", mine: Sequence[StageCosts]) -> LayerSplit:
    """The optimal split where each rank knows the costs of its own stages alone. Collective over `comm`.

    Parameters
    ----------
    comm : mpi4py communicator
    mine : sequence of StageCosts
        Of this rank's stages: stage c x ranks + r of the chain is `mine[c]` of rank r.

    Returns
    -------
    LayerSplit
        The same on every rank, and the same as `ringtmp.schedule.partition.split_layers` gives for all stages.
    """
    if comm.size == 1:
        return split_layers(mine)
    rank, size, stages = comm.rank, comm.size, comm.size * len(mine)
    left, right, layers = (rank - 1) % size, (rank + 1) % size, len(mine[0].total) - 1
    limit = math.inf
    all_ends: list[Array] = []
    # Two passes from the last stage to the first, each message to the left neighbour.
    for squares in (False, True):
        all_ends = []
        message = np.empty(layers + 2)  # and the limit
        for stage in range(stages - 1 - (size - 1 - rank), -1, -size):
            if stage < stages - 1:
                receive(comm, message, right, TAG_SPLIT)
                rest, limit = message[:-1], float(message[-1])
            else:
                rest = nothing_left(layers)
            if math.isinf(limit) and squares:
                values, ends = rest, np.zeros(layers + 1, np.int64)
            else:
                values, ends = mine[stage // size].before(rest, limit, squares)
            all_ends.insert(0, ends)
            if stage:
                comm.Send(np.append(values, limit), left, TAG_SPLIT)
            elif not squares:
                limit = slowest_allowed(values)
                comm.Send(np.append(values, limit), left, TAG_SPLIT)
        if not squares and rank == size - 1:  # the first stage's answer, for the second pass
            receive(comm, message, right, TAG_SPLIT)
            limit = float(message[-1])
    # From the first stage to the last: each adds its number of layers.
    counts = np.zeros(stages, np.int64)
    for c, ends in enumerate(all_ends):
        stage = c * size + rank
        if stage:
            receive(comm, counts, left, TAG_SPLIT)
        first = int(counts[:stage].sum())
        counts[stage] = int(ends[first]) - first
        comm.Send(counts, right, TAG_SPLIT)
    # The last stage knows all numbers: once round the ring.
    receive(comm, counts, left, TAG_SPLIT)
    if rank != size - 1:
        comm.Send(counts, right, TAG_SPLIT)
    return LayerSplit([] if math.isinf(limit) else counts.tolist(), limit)

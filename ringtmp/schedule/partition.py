"""The exact split of a chain of layers over the stages of a ring: contiguous, the least time on the slowest stage.

A stage knows how long each layer takes on its own rank, and how many layers in a row fit into its memory; it need not
know that of others. One vector goes from the last stage to the first, to the left from neighbour to neighbour: for
each layer, the best that can be made of all layers from there on. Each stage makes it anew with its own costs. When it
has come to the first stage, the least maximum is known. A second time round finds the least sum of squares under it,
and then the cuts go to the right: the first stage says where it ends, so the second knows where it begins.

In one process (`partition`) or hop by hop over MPI (`partition_round`), the same two passes in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ringtmp.comm.point_to_point import receive
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.ring.messages import TAG_DEAL

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_ROUNDING = 1e-12  # of a sum of costs, relative


@dataclass(frozen=True)
class Part:
    """What one stage can take.

    Attributes
    ----------
    total : float64 array [layers + 1]
        Running sum of the layers' seconds on this stage's rank.
    reach : int64 array [layers + 1]
        For each layer, where a stage that begins there must end at the latest for its memory.
    idle : bool
        Whether it may have no layer at all.
    """

    total: Array
    reach: Array
    idle: bool = False

    @classmethod
    def of(cls, costs: Sequence[float] | Array, reach: Sequence[int] | None = None, idle: bool = False) -> "Part":
        """From the seconds of each layer."""
        total = np.concatenate([[0.0], np.cumsum(np.asarray(costs, np.float64))])
        ends = np.full(len(total), len(costs), np.int64) if reach is None else np.asarray(reach, np.int64)
        return cls(total, ends, idle)

    def before(self, rest: Array, limit: float = math.inf, squares: bool = False) -> tuple[Array, Array]:
        """Best value of the layers from each one on, this stage first; and where this stage then ends.

        Parameters
        ----------
        rest : float64 array [layers + 1]
            The same for the stages after this one (inf: impossible).
        limit : float
            Most seconds of a stage.
        squares : bool
            Values are sums of squared seconds, not the most seconds of a stage.
        """
        count = len(rest) - 1
        values, ends = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
        for first in range(count + 1):
            start = first + (not self.idle)
            stop = int(self.reach[first]) + 1
            mine = self.total[start:stop] - self.total[first]
            if not len(mine):
                continue
            each = rest[start:stop] + mine * mine if squares else np.maximum(rest[start:stop], mine)
            each = np.where(mine <= limit, each, np.inf)
            place = len(each) - 1 - int(np.argmin(each[::-1]))  # of equals the one with more layers here
            values[first], ends[first] = each[place], start + place
        return values, ends


def nothing_left(layers: int) -> Array:
    """What comes after the last stage: no layers, at no cost."""
    rest = np.full(layers + 1, np.inf)
    rest[layers] = 0.0
    return rest


def partition(costs: Sequence[float], ranks: int) -> list[int]:
    """How many layers each of some equal ranks gets, in the order of the chain; never none.

    Of all contiguous splits: the least cost of the costliest rank, among those the least sum of squares, among those
    the one with more layers on the first ranks.

    Raises
    ------
    UserError
        More ranks than layers.
    """
    check_enough(len(costs), ranks)
    return deal([Part.of(costs)] * ranks).counts


class Cut(NamedTuple):
    """How many layers each stage gets, none at all if there is no split that fits; seconds of the slowest stage."""

    counts: list[int]
    most: float


def deal(parts: Sequence[Part]) -> Cut:
    """The best cut."""
    layers = len(parts[0].total) - 1
    rest = nothing_left(layers)
    for part in reversed(parts):
        rest, _ = part.before(rest)
    limit = _limit(rest)
    if math.isinf(limit):
        return Cut([], limit)
    rest, cuts = nothing_left(layers), []
    for part in reversed(parts):
        rest, ends = part.before(rest, limit, squares=True)
        cuts.append(ends)
    counts, first = [], 0
    for ends in reversed(cuts):
        counts.append(int(ends[first]) - first)
        first = int(ends[first])
    return Cut(counts, limit)


def deal_round(comm: "Intracomm", mine: Sequence[Part]) -> Cut:
    """`deal` where each rank knows its own stages alone. Collective over `comm`; every rank gets the whole answer.

    Stage c x ranks + r of the chain is `mine[c]` of rank r. Each message goes to a neighbour.
    """
    if comm.size == 1:
        return deal(mine)
    rank, size, stages = comm.rank, comm.size, comm.size * len(mine)
    left, right, layers = (rank - 1) % size, (rank + 1) % size, len(mine[0].total) - 1
    limit = math.inf
    cuts: list[Array] = []
    for squares in (False, True):
        cuts = []
        message = np.empty(layers + 2)  # and the limit
        for stage in range(stages - 1 - (size - 1 - rank), -1, -size):
            if stage < stages - 1:
                receive(comm, message, right, TAG_DEAL)
                rest, limit = message[:-1], float(message[-1])
            else:
                rest = nothing_left(layers)
            if math.isinf(limit) and squares:
                values, ends = rest, np.zeros(layers + 1, np.int64)
            else:
                values, ends = mine[stage // size].before(rest, limit, squares)
            cuts.insert(0, ends)
            if stage:
                comm.Send(np.append(values, limit), left, TAG_DEAL)
            elif not squares:
                limit = _limit(values)
                comm.Send(np.append(values, limit), left, TAG_DEAL)
        if not squares and rank == size - 1:  # the first stage's answer, for the second pass
            receive(comm, message, right, TAG_DEAL)
            limit = float(message[-1])
    counts = np.zeros(stages, np.int64)
    for c, ends in enumerate(cuts):
        stage = c * size + rank
        if stage:
            receive(comm, counts, left, TAG_DEAL)
        first = int(counts[:stage].sum())
        counts[stage] = int(ends[first]) - first
        comm.Send(counts, right, TAG_DEAL)
    receive(comm, counts, left, TAG_DEAL)  # whole: from the last stage, once round
    if rank != size - 1:
        comm.Send(counts, right, TAG_DEAL)
    return Cut([] if math.isinf(limit) else counts.tolist(), limit)


def _limit(values: Array) -> float:
    """The most seconds that a stage may take, given the values of the first stage."""
    return float(values[0]) * (1 + _ROUNDING)


def check_enough(layers: int, stages: int) -> None:
    """Raise `UserError` if some stage would have no layer."""
    if stages > layers:
        raise UserError(
            f"model: has {layers} layer{'s' * (layers != 1)}, but {stages} ranks were started and each needs one; "
            f"start at most {layers}, or give a deeper --model"
        )


def parse_split(text: str, layers: int, ranks: int) -> list[int]:
    """The layers per rank that `text` gives, such as `3,4,4`. Raises `UserError` if they do not fit."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"layer_split: expected even, flops, measured, or layers per rank as in 3,4,4, got {text!r}"
        ) from None
    if len(counts) != ranks:
        raise UserError(f"layer_split: {text} names {len(counts)} ranks, but {ranks} were started")
    if min(counts) < 1:
        raise UserError(f"layer_split: {text}: each rank needs at least one layer")
    if sum(counts) != layers:
        raise UserError(f"layer_split: {text} deals {sum(counts)} layers, but the model has {layers}")
    return counts

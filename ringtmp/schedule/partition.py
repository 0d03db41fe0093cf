"""The optimal split of a chain of layers over the stages of a ring: contiguous, the slowest stage as fast as can be.

A stage knows how long each layer takes on its own rank, and how many layers in a row fit into its memory; it need not
know either of other ranks. Dynamic programming in two passes over one vector, from the last stage to the first: entry
`first` is the best value of layers `first`, `first` + 1, ... on this stage and those after it. The first pass finds the
least maximum of a stage's seconds. The second pass finds, under that maximum, the least sum of squares. Then the ends
go from the first stage to the last: the end of one stage is the beginning of the next.

`split_layers` does this in one process; `ringtmp.ring.layer_split` does it from neighbour to neighbour over MPI, with
the same passes in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringtmp.errors import UserError

Array = NDArray[Any]


_ROUNDING = 1e-12  # of a sum of costs, relative


@dataclass(frozen=True)
class StageCosts:
    """What each layer costs on the rank of one stage, and which layers fit into that rank's memory.

    Attributes
    ----------
    total : float64 array [layers + 1]
        Running sum of the layers' seconds on this stage's rank.
    reach : int64 array [layers + 1]
        For each layer, where a stage that begins there must end at the latest for its memory.
    idle : bool
        Whether the stage may have no layer at all.
    """

    total: Array
    reach: Array
    idle: bool = False

    @classmethod
    def of(
        cls, costs: Sequence[float] | Array, reach: Sequence[int] | Array | None = None, idle: bool = False
    ) -> "StageCosts":
        """Costs from the seconds of each layer.

        Parameters
        ----------
        costs : sequence of float [layers]
            Seconds of each layer, from 0.
        reach : sequence of int [layers + 1], optional
            See the attribute; by default all layers fit.
        idle : bool
            See the attribute.
        """
        total = np.concatenate([[0.0], np.cumsum(np.asarray(costs, np.float64))])
        ends = np.full(len(total), len(costs), np.int64) if reach is None else np.asarray(reach, np.int64)
        return cls(total, ends, idle)

    def before(self, rest: Array, limit: float = math.inf, squares: bool = False) -> tuple[Array, Array]:
        """Best value of all layers from each one on, with this stage before the stages of `rest`.

        Parameters
        ----------
        rest : float64 array [layers + 1]
            The same values for the stages after this one (inf: impossible).
        limit : float
            Most seconds of a stage.
        squares : bool
            Whether values are sums of squared seconds instead of the most seconds of a stage.

        Returns
        -------
        values : float64 array [layers + 1]
            Best value if this stage begins at each layer (inf: impossible).
        ends : int64 array [layers + 1]
            Where this stage then ends.
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
    """Values after the last stage, where every pass begins: no layers are left, at no cost."""
    rest = np.full(layers + 1, np.inf)
    rest[layers] = 0.0
    return rest


class LayerSplit(NamedTuple):
    """Layers of each stage in the order of the chain, empty if no split fits; and seconds of the slowest stage."""

    counts: list[int]
    slowest: float


def partition(costs: Sequence[float], ranks: int) -> list[int]:
    """Number of layers of each of several equal ranks, at least one each, in the order of the chain.

    Of all contiguous splits: the least cost of the costliest rank; among those the least sum of squares; among those
    the one with more layers on the first ranks.

    Parameters
    ----------
    costs : sequence of float [layers]
        Cost of each layer, in any unit, from 0.
    ranks : int
        From 1.

    Raises
    ------
    UserError
        There are more ranks than layers.
    """
    check_enough(len(costs), ranks)
    return split_layers([StageCosts.of(costs)] * ranks).counts


def split_layers(stages: Sequence[StageCosts]) -> LayerSplit:
    """The optimal split over `stages`, which may differ in speed and memory.

    Parameters
    ----------
    stages : sequence of StageCosts
        In the order of the chain; all of the same number of layers.
    """
    layers = len(stages[0].total) - 1
    # First pass: the least maximum.
    rest = nothing_left(layers)
    for stage in reversed(stages):
        rest, _ = stage.before(rest)
    limit = slowest_allowed(rest)
    if math.isinf(limit):
        return LayerSplit([], limit)
    # Second pass: the least sum of squares under that maximum, and the end of each stage wherever it begins.
    rest, all_ends = nothing_left(layers), []
    for stage in reversed(stages):
        rest, ends = stage.before(rest, limit, squares=True)
        all_ends.append(ends)
    # From the first stage on: the end of one is the beginning of the next.
    counts, first = [], 0
    for ends in reversed(all_ends):
        counts.append(int(ends[first]) - first)
        first = int(ends[first])
    return LayerSplit(counts, limit)


def slowest_allowed(values: Array) -> float:
    """Most seconds of a stage in the second pass, from the first pass's values of the first stage."""
    return float(values[0]) * (1 + _ROUNDING)


def check_enough(layers: int, stages: int) -> None:
    """Raise `UserError` if there are fewer `layers` than `stages`."""
    if stages > layers:
        raise UserError(
            f"model: has {layers} layer{'s' * (layers != 1)}, but each of {stages} stages (ranks x chunks) needs one; "
            f"make ranks x chunks at most {layers}, or give a deeper --model"
        )


def parse_split(text: str, layers: int, stages: int) -> list[int]:
    """Number of layers of each stage from text.

    Parameters
    ----------
    text : str
        Numbers separated by commas, such as `3,4,4`.
    layers, stages : int
        Layers of the model; stages of the ring, ranks x chunks.

    Raises
    ------
    UserError
        `text` is not a list of `stages` numbers above 0 whose sum is `layers`.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"layer_split: expected even, flops, measured, or the layers of each stage, such as 3,4,4, got {text!r}"
        ) from None
    if len(counts) != stages:
        raise UserError(f"layer_split: {text} names {len(counts)} stages, but ranks x chunks are {stages}")
    if min(counts) < 1:
        raise UserError(f"layer_split: {text}: each stage needs at least one layer")
    if sum(counts) != layers:
        raise UserError(f"layer_split: {text} deals {sum(counts)} layers, but the model has {layers}")
    return counts

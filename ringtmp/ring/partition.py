"""The exact split of a chain of layers over ranks: contiguous, never an empty rank, the least load on the fullest."""

import math
from collections.abc import Sequence

from ringtmp.errors import UserError


def partition(costs: Sequence[float], ranks: int) -> list[int]:
    """How many layers each rank gets, in the order of the chain.

    Of all contiguous splits without an empty rank: the least cost of the costliest rank, among those the least sum of
    squares, among those the one with more layers on the first ranks.

    Parameters
    ----------
    costs : sequence of float
        Cost of each layer (not negative).
    ranks : int
        Number of ranks.

    Raises
    ------
    UserError
        More ranks than layers.

    Notes
    -----
    Dynamic programming over (ranks left, first layer left), O(ranks x layers^2), once for the least maximum and once
    for the least sum of squares under it. One pass over pairs (maximum, squares) would be wrong: a head with the
    lower maximum may have the higher sum, and its maximum may not matter.
    """
    count = len(costs)
    if ranks > count:
        raise UserError(
            f"model: has {count} layer{'s' * (count != 1)}, but {ranks} ranks were started and each needs one; "
            f"start at most {count}, or give a deeper --model"
        )
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)

    def best(limit: float, value: bool) -> list[list[tuple[float, int]]]:
        """table[r][i]: best value of layers i... on r ranks, and where the first of them ends."""
        table = [[(math.inf, 0)] * (count + 1) for _ in range(ranks + 1)]
        table[0][count] = (0.0, count)
        for r in range(1, ranks + 1):
            for i in range(count - r, -1, -1):
                for j in range(count - r + 1, i, -1):  # larger first parts first: they win ties
                    part, rest = total[j] - total[i], table[r - 1][j][0]
                    if part <= limit and rest < math.inf:
                        here = rest + part * part if value else max(rest, part)
                        if here < table[r][i][0]:
                            table[r][i] = (here, j)
        return table

    least = best(math.inf, value=False)[ranks][0][0]
    table = best(least, value=True)
    counts, first = [], 0
    for r in range(ranks, 0, -1):
        end = table[r][first][1]
        counts.append(end - first)
        first = end
    return counts


def parse_split(text: str, layers: int, ranks: int) -> list[int]:
    """The layers per rank that `text` gives, such as `3,4,4`. Raises `UserError` if they do not fit."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"split: expected flops, measured, or layers per rank as in 3,4,4, got {text!r}") from None
    if len(counts) != ranks:
        raise UserError(f"split: {text} names {len(counts)} ranks, but {ranks} were started")
    if min(counts) < 1:
        raise UserError(f"split: {text}: each rank needs at least one layer")
    if sum(counts) != layers:
        raise UserError(f"split: {text} deals {sum(counts)} layers, but the model has {layers}")
    return counts

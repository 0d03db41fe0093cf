"""The exact split against all splits there are."""

from itertools import combinations

import numpy as np
import pytest

from ringtmp.errors import UserError
from ringtmp.ring.partition import parse_split, partition


def every_split(n, ranks):
    for cuts in combinations(range(1, n), ranks - 1):
        ends = (0, *cuts, n)
        yield [b - a for a, b in zip(ends, ends[1:], strict=False)]


def loads(costs, counts):
    ends = np.cumsum([0, *counts])
    return [sum(costs[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("seed", range(60))
def test_best_of_all(seed):
    """The least maximum, then the least squares, then more layers in front. Whole costs, so that ties are exact."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    ranks = int(rng.integers(1, n + 1))
    costs = rng.integers(0, 6, n).tolist()

    def value(counts):
        load = loads(costs, counts)
        return max(load), sum(x * x for x in load), [-c for c in counts]

    assert partition(costs, ranks) == min(every_split(n, ranks), key=value)


def test_equal_layers():
    assert partition([1] * 10, 8) == [2, 2, 1, 1, 1, 1, 1, 1]
    assert partition([1] * 8, 8) == [1] * 8
    assert partition([5, 1, 1, 1, 1, 1], 2) == [1, 5]


def test_more_ranks_than_layers():
    with pytest.raises(UserError, match="has 1 layer, but 2 ranks"):
        partition([1], 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [("3,x", "expected flops"), ("3,4", "names 2 ranks"), ("4,4,0", "at least one"), ("3,3,3", "deals 9 layers")],
)
def test_split_that_does_not_fit(text, words):
    with pytest.raises(UserError, match=words):
        parse_split(text, 8, 3)


def test_split_that_fits():
    assert parse_split("5, 2,1", 8, 3) == [5, 2, 1]

"""The exact split against all splits there are."""

from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.errors import UserError
from ringtmp.schedule.partition import StageCosts, parse_split, partition, split_layers


def every_split(n, stages, idle=()):
    """All contiguous splits in which only the stages in `idle` may be empty."""
    choose = combinations_with_replacement(range(n + 1), stages - 1) if idle else combinations(range(1, n), stages - 1)
    for cuts in choose:
        ends = (0, *cuts, n)
        counts = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        if all(count or stage in idle for stage, count in enumerate(counts)):
            yield counts


def loads(costs, counts):
    """Seconds of each stage; `costs`: of each layer, for each stage."""
    ends = np.cumsum([0, *counts])
    return [sum(row[a:b]) for row, a, b in zip(costs, ends, ends[1:], strict=False)]


def value(costs, counts):
    load = loads(costs, counts)
    return max(load), sum(x * x for x in load), [-c for c in counts]


@pytest.mark.parametrize("seed", range(60))
def test_equal_ranks(seed):
    """The least maximum, then the least squares, then more layers in front. Whole costs, so that ties are exact."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    ranks = int(rng.integers(1, n + 1))
    costs = rng.integers(0, 6, n).tolist()
    assert partition(costs, ranks) == min(every_split(n, ranks), key=lambda counts: value([costs] * ranks, counts))


@st.composite
def unequal(draw):
    """Layers, and stages each with costs of its own, room for so many bytes, and perhaps leave to be empty."""
    n, stages = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    costs = [draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for _ in range(stages)]
    sizes = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    caps = draw(st.lists(st.integers(2, 5 * n), min_size=stages, max_size=stages))
    idle = draw(st.sets(st.integers(0, stages - 1)))
    return costs, sizes, caps, idle


def reach(sizes, cap):
    ends = []
    for first in range(len(sizes) + 1):
        end = first
        while end < len(sizes) and sum(sizes[first : end + 1]) <= cap:
            end += 1
        ends.append(end)
    return ends


@settings(max_examples=400, deadline=None)
@given(unequal())
def test_unequal_ranks_with_caps(case):
    costs, sizes, caps, idle = case
    parts = [
        StageCosts.of(row, reach(sizes, cap), s in idle) for s, (row, cap) in enumerate(zip(costs, caps, strict=True))
    ]
    possible = [
        counts
        for counts in every_split(len(sizes), len(costs), idle)
        if all(load <= cap for load, cap in zip(loads([sizes] * len(costs), counts), caps, strict=True))
    ]
    best = min(possible, key=lambda counts: value(costs, counts), default=[])
    assert split_layers(parts).counts == best


def test_a_slow_rank_takes_less_or_nothing():
    layers = np.ones(12)
    assert split_layers([StageCosts.of(layers), StageCosts.of(2 * layers), StageCosts.of(layers)]).counts == [5, 2, 5]
    assert split_layers([StageCosts.of(layers), StageCosts.of(9 * layers), StageCosts.of(layers)]).counts == [6, 1, 5]
    assert split_layers(
        [StageCosts.of(layers), StageCosts.of(9 * layers, idle=True), StageCosts.of(layers)]
    ).counts == [6, 0, 6]


def test_equal_layers():
    assert partition([1] * 10, 8) == [2, 2, 1, 1, 1, 1, 1, 1]
    assert partition([1] * 8, 8) == [1] * 8
    assert partition([5, 1, 1, 1, 1, 1], 2) == [1, 5]


def test_more_ranks_than_layers():
    with pytest.raises(UserError, match="has 1 layer, but each of 2 stages"):
        partition([1], 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,x", "expected even, flops"),
        ("3,4", "names 2 stages, but ranks x chunks are 3"),
        ("4,4,0", "at least one"),
        ("3,3,3", "deals 9 layers"),
    ],
)
def test_split_that_does_not_fit(text, words):
    with pytest.raises(UserError, match=words):
        parse_split(text, 8, 3)


def test_split_that_fits():
    assert parse_split("5, 2,1", 8, 3) == [5, 2, 1]

"""Ranges of keys: every key once and in order, no range too large or needlessly small, servers evenly loaded."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringtmp.nn.shards import KeyRange, Segment, dealt, grouped, key_ranges

COUNTS = st.lists(st.integers(0, 90) | st.sampled_from([0, 0, 1, 400]), min_size=1, max_size=12)
QUICK = settings(max_examples=60, deadline=None)
CUTS = {"counts": COUNTS, "most": st.integers(1, 200), "servers": st.integers(1, 9), "finely": st.booleans()}


def keys_of(keys: KeyRange) -> list[tuple[int, int]]:
    """(layer, number) of every key, by the places that segments name."""
    found = {}
    for layer, start, stop, at in keys.segments:
        for number in range(start, stop):
            assert found.setdefault(at + number - start, (layer, number)) == (layer, number)
    assert sorted(found) == list(range(keys.size))
    return [found[place] for place in range(keys.size)]


@QUICK
@given(**CUTS)
@example(counts=[0, 0, 0], most=5, servers=2, finely=False)
@example(counts=[1], most=1, servers=9, finely=True)
@example(counts=[0, 7, 0, 0, 5, 0], most=3, servers=2, finely=False)
def test_every_key_once_and_in_order(counts, most, servers, finely):
    ranges = key_ranges(counts, most, servers, finely)
    assert [keys.number for keys in ranges] == list(range(len(ranges)))
    found = [key for keys in ranges for key in keys_of(keys)]
    assert found == [(layer, number) for layer, count in enumerate(counts) for number in range(count)]
    for keys in ranges:
        assert 0 <= keys.server < servers
        assert all(segment.start < segment.stop for segment in keys.segments)  # layers without parameters: nowhere
        layers = [segment.layer for segment in keys.segments]
        assert layers == sorted(set(layers))


@QUICK
@given(**CUTS)
def test_sizes(counts, most, servers, finely):
    """At most what is asked and a server's part of all; only the first may be less than a quarter, unless dealt out."""
    ranges = key_ranges(counts, most, servers, finely)
    most = max(1, min(most, -(-sum(counts) // servers))) if servers > 1 else most
    assert all(1 <= keys.size <= most for keys in ranges)
    if not finely:
        assert all(keys.size >= most / 4 for keys in ranges[1:])


@QUICK
@given(**CUTS)
def test_servers_are_evenly_loaded(counts, most, servers, finely):
    """To within the largest range, and so are the first ones among themselves."""
    ranges = key_ranges(counts, most, servers, finely)
    loads, largest = [0] * servers, 0
    for keys in ranges:
        loads[keys.server], largest = loads[keys.server] + keys.size, max(largest, keys.size)
        assert max(loads) - min(loads) <= largest
    assert sum(loads) == sum(counts)


@QUICK
@given(COUNTS, st.integers(1, 200), st.integers(1, 9))
def test_finely(counts, most, servers):
    """Every layer, or group of small ones, is shared by all servers, each with as much of it to within one key."""
    least = (max(1, min(most, -(-sum(counts) // servers))) if servers > 1 else most) / 4
    ranges = key_ranges(counts, most, servers, finely=True)
    for first, last in pairwise([*grouped(counts, least), len(counts)]):
        parts = [0] * servers
        for keys in ranges:
            parts[keys.server] += sum(s.stop - s.start for s in keys.segments if first <= s.layer < last)
        assert max(parts) - min(parts) <= 1


def cut(*arguments, **named):
    """Per range: its server, its size, its segments as (layer, start, stop)."""
    return [
        (keys.server, keys.size, *(tuple(segment[:3]) for segment in keys.segments))
        for keys in key_ranges(*arguments, **named)
    ]


def test_by_hand():
    assert cut([6, 6, 100], 100, 1) == [(0, 12, (0, 0, 6), (1, 0, 6)), (0, 100, (2, 0, 100))]  # two are small
    assert cut([6, 0, 25, 6, 90], 100, 1)[:2] == [(0, 6, (0, 0, 6)), (0, 31, (2, 0, 25), (3, 0, 6))]
    assert cut([60, 0, 70], 100, 1) == [(0, 60, (0, 0, 60)), (0, 70, (2, 0, 70))]  # each a message of its own
    assert cut([60, 5], 100, 1) == [(0, 65, (0, 0, 60), (1, 0, 5))]  # a bias goes with its weights
    assert cut([5, 60], 100, 1) == [(0, 5, (0, 0, 5)), (0, 60, (1, 0, 60))]  # not with what comes after
    assert cut([101], 100, 1) == [(0, 51, (0, 0, 51)), (0, 50, (0, 51, 101))]
    assert cut([95, 10], 100, 1) == [(0, 53, (0, 0, 53)), (0, 52, (0, 53, 95), (1, 0, 10))]  # a cut as it comes
    assert cut([12], 100, 3) == [(0, 4, (0, 0, 4)), (1, 4, (0, 4, 8)), (2, 4, (0, 8, 12))]
    assert cut([30, 30], 30, 2) == [(0, 30, (0, 0, 30)), (1, 30, (1, 0, 30))]
    halves = [(0, 15, (0, 0, 15)), (1, 15, (0, 15, 30)), (0, 15, (1, 0, 15)), (1, 15, (1, 15, 30))]
    assert cut([30, 30], 30, 2, finely=True) == halves
    assert cut([0, 0], 30, 2) == []


def test_one_server_cuts_by_what_is_asked_alone():
    """A small network is one message, though its largest layers are more than a quarter of it; not over two servers."""
    assert cut([6, 7, 5], 100, 1) == [(0, 18, (0, 0, 6), (1, 0, 7), (2, 0, 5))]
    assert cut([6, 7, 5], 100, 2) == [(0, 6, (0, 0, 6)), (1, 7, (1, 0, 7)), (0, 5, (2, 0, 5))]


def test_places_within_a_range():
    keys, last = key_ranges([3, 0, 4, 2, 90], 100, 1)
    assert last == KeyRange(1, (Segment(4, 0, 90, 0),), 0)
    assert keys == KeyRange(0, (Segment(0, 0, 3, 0), Segment(2, 0, 4, 3), Segment(3, 0, 2, 7)), 0)
    assert keys.size == 9


@pytest.mark.parametrize("servers", [1, 2, 3, 8])
def test_a_deep_network_over_servers(servers):
    """Equal layers: each server has as much, to within one message."""
    ranges = key_ranges([65_792] * 10, 262_144 // 4, servers)
    loads = [sum(keys.size for keys in ranges if keys.server == server) for server in range(servers)]
    assert max(loads) - min(loads) <= 65_536
    assert sum(loads) == 657_920
    assert len(ranges) <= 30


@QUICK
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 6))
def test_dealt(sizes, servers):
    """One after the other to the server that has least, the first of several such."""
    loads = [0] * servers
    for size, owner in zip(sizes, dealt(sizes, servers), strict=True):
        assert loads[owner] == min(loads)
        assert min(loads) not in loads[:owner]
        loads[owner] += size


@QUICK
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 60))
def test_grouped(sizes, least):
    """All groups but the first have what is asked, and would not without their first layer."""
    starts = grouped(sizes, least)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    for first, last in list(pairwise([*starts, len(sizes)]))[1:]:
        assert sum(sizes[first:last]) >= least
        assert last == first + 1 or sum(sizes[first + 1 : last]) < least

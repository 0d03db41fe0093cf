"""Who of the workers has which share when, where a server's copies go, and when parts make a whole."""

import pytest

from ps.batch_split import Shares
from ps.mirror import holder_of
from ringtmp.resilience.node_memory import FoundReplica, ParameterRange, covered, newest


def test_a_worker_that_leaves_and_comes_back():
    shares = Shares([1, 2, 3])
    shares.drop(2, 5)
    shares.drop(2, 7)  # it is gone already
    assert not shares.there(2)
    shares.join(2, 9)
    assert shares.there(2)
    assert [shares.members(step) for step in (4, 5, 8, 9)] == [[1, 2, 3], [1, 3], [1, 3], [1, 2, 3]]
    assert [shares.generation(step) for step in (8, 9)] == [0, 1]
    for step in range(12):
        parts = [shares.of(worker, step, 16) for worker in shares.members(step)]
        assert [first for first, _ in parts] == [sum(count for _, count in parts[:n]) for n in range(len(parts))]
        assert sum(count for _, count in parts) == 16
    shares.drop(2, 9)  # before it could make a step
    assert shares.members(9) == [1, 3]


@pytest.mark.parametrize(
    ("server", "servers", "workers", "nodes", "holder"),
    [
        (0, [0], [1, 2], "abc", 1),
        (0, [0], [1, 2], "aab", 2),
        (0, [0], [1, 2], "aaa", -1),
        (0, [0, 1], [2, 3], "abcd", 1),
        (1, [0, 1], [2, 3], "abcd", 0),
        (1, [0, 1], [2, 3], "aabc", 2),
        (2, [0, 1, 2], [0, 1, 2], "aba", 1),
    ],
)
def test_where_a_servers_copies_go(server, servers, workers, nodes, holder):
    assert holder_of(server, servers, workers, nodes) == holder


def test_parts_of_layers_make_a_whole():
    first, second, empty = ParameterRange(0, 0, 4, 9), ParameterRange(0, 4, 9, 9), ParameterRange(1, 0, 0, 0)
    assert covered([first, second, first, empty]) == {0, 1}
    assert covered([first, empty]) == {1}

    def held(step: int, *parts: ParameterRange) -> FoundReplica:
        return FoundReplica("p", 5, step, tuple(part.layer for part in parts), (), 2, parts)

    here = [(0, held(7, first, empty)), (1, held(7, second)), (0, held(8, first, empty)), (2, held(7, first, empty))]
    assert newest(here, 2) == (5, 7, {first: (0, "p"), second: (1, "p"), empty: (0, "p")})
    assert newest([*here, (1, held(8, second))], 2)[1] == 8
    assert newest(here[2:], 2) is None

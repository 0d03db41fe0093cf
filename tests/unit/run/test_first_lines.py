"""How the ranks share the cores, in words."""

from types import SimpleNamespace

import pytest

from ringtmp.run import hosts as module
from ringtmp.run.hosts import Host, gather_hosts
from ringtmp.run.output.first_lines import sharing

SPEED = "For speed give each rank a core."


def host(ranks, cores, name="a"):
    return Host(name, tuple(range(ranks)), cores)


@pytest.mark.parametrize(
    ("hosts", "threads", "expected"),
    [
        ([host(2, 2)], 1, ""),
        ([host(2, 8)], 4, ""),
        (
            [host(8, 2)],
            1,
            "8 ranks share 2 cores: 4 take turns on each. This run shows that training works and gives the same "
            f"numbers as on one rank; it cannot be faster than 2 ranks (-n 2). {SPEED}",
        ),
        (
            [host(3, 2)],
            1,
            "3 ranks share 2 cores: 1 or 2 take turns on each. This run shows that training works and gives the same "
            f"numbers as on one rank; it cannot be faster than 2 ranks (-n 2). {SPEED}",
        ),
        (
            [host(2, 1)],
            1,
            "2 ranks share 1 core: they take turns on it. This run shows that training works and gives the same "
            f"numbers as on one rank; it cannot be faster than one rank (-n 1). {SPEED}",
        ),
        (
            [host(2, 1.5)],
            1,
            "2 ranks share 1.5 cores. This run shows that training works and gives the same numbers as on one rank; "
            f"it cannot be faster than one rank (-n 1). {SPEED}",
        ),
        (
            [host(8, 4)],
            2,
            "8 ranks with 2 threads each share 4 cores. This run shows that training works and gives the same numbers "
            "as on one rank; it cannot be faster than 2 ranks (-n 2). For speed give each rank 2 cores.",
        ),
        (
            [host(1, 2)],
            4,
            "1 rank with 4 threads each shares 2 cores. More threads than cores make no rank faster: use --threads 2.",
        ),
        (
            [host(8, 4, "a"), host(8, 4, "b"), host(2, 4, "c")],
            1,
            "on each of 2 hosts 8 ranks share 4 cores: 2 take turns on each. This run shows that training works and "
            f"gives the same numbers as on one rank; it cannot be faster than 10 ranks (-n 10). {SPEED}",
        ),
        (
            [host(8, 4, "a"), host(6, 4, "b")],
            1,
            "on a 8 ranks share 4 cores: 2 take turns on each|on b 6 ranks share 4 cores: 1 or 2 take turns on each. "
            "This run shows that training works and gives the same numbers as on one rank; it cannot be faster than "
            f"8 ranks (-n 8). {SPEED}",
        ),
    ],
)
def test_sharing(hosts, threads, expected):
    assert "|".join(sharing(hosts, threads, emulated=False, exact=True)) == expected


def test_other_numbers_are_not_promised():
    assert "numbers" not in sharing([host(8, 2)], 1, emulated=False, exact=False)[0]


def test_emulated_nodes_are_not_slowed_down():
    """Their speed does not depend on the cores: nothing is said about how fast the run can be."""
    (line,) = sharing([host(8, 2)], 1, emulated=True, exact=True)
    assert line.startswith("8 ranks share 2 cores: 4 take turns on each. The nodes are emulated (--node-speed)")
    assert "faster" not in line and "(-n" not in line


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        # Every rank may run on all cores of its host.
        ([("a", {0, 1}, None)] * 3 + [("b", {0, 1}, None)], [("a", (0, 1, 2), 2), ("b", (3,), 2)]),
        # Each rank is bound to a core.
        ([("a", {0}, None), ("a", {1}, None), ("a", {70}, None)], [("a", (0, 1, 2), 3)]),
        # A control group grants less than the cores.
        ([("a", {0, 1, 2, 3}, 1.5)] * 2, [("a", (0, 1), 1.5)]),
        ([("a", {0, 1}, 64.0)] * 2, [("a", (0, 1), 2)]),
        # Ranks of a host need not be neighbours.
        ([("a", {0}, None), ("b", {0}, None), ("a", {0}, None)], [("a", (0, 2), 1), ("b", (1,), 1)]),
    ],
)
def test_hosts(monkeypatch, places, expected):
    packed = []

    def allgather(mine):
        packed.append(mine)
        return packed

    comm = SimpleNamespace(allgather=allgather)
    for name, cpus, limit in places:  # each rank in turn adds its own; the last one sees all
        monkeypatch.setattr(module.socket, "gethostname", lambda name=name: name)
        monkeypatch.setattr(module, "usable_cpus", lambda cpus=cpus: frozenset(cpus))
        monkeypatch.setattr(module, "core_limit", lambda limit=limit: limit)
        found = gather_hosts(comm)
    assert found == [Host(*each) for each in expected]


def test_room():
    assert [host(8, 2).room(1), host(8, 4).room(2), host(2, 8).room(1), host(2, 1).room(4)] == [2, 2, 2, 1]

"""The time of the ranks of a host, given its cores: against a naive twin, and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.trace.core_time import CORE_PARTS, Intervals, core_time
from ringtmp.trace.events import PARTS


def intervals(*rows: tuple[int, int, str]) -> Intervals:
    return Intervals(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([PARTS.index(row[2]) for row in rows], dtype=np.int64),
    )


def naive(ranks: list[list[tuple[int, int, str]]], cores: float, threads: int, begin: int, end: int) -> np.ndarray:
    """The rule, nanosecond by nanosecond: of intervals in order of their start, the first that covers it counts."""
    table = np.zeros((len(ranks), len(CORE_PARTS)))
    room = cores / threads
    for now in range(begin, end):
        doing = []
        for rows in ranks:
            found = [part for start, stop, part in sorted(rows, key=lambda row: row[0]) if start <= now < stop]
            doing.append(found[0] if found else "other")
        active = sum(part != "wait" for part in doing)
        for row, part in zip(table, doing, strict=True):
            if part == "wait":
                row[CORE_PARTS.index("core" if active >= room else "neighbour")] += 1
            else:
                own = min(1.0, room / active)
                row[CORE_PARTS.index(part)] += own
                row[CORE_PARTS.index("core")] += 1 - own
    return table / 1e9


def parts(table: np.ndarray, rank: int) -> dict[str, float]:
    """The parts of a rank that are not zero, in nanoseconds."""
    return {name: value for name, value in zip(CORE_PARTS, (table[rank] * 1e9).round(6), strict=True) if value}


_row = st.tuples(st.integers(0, 40), st.integers(0, 12), st.sampled_from(PARTS)).map(
    lambda r: (r[0], r[0] + r[1], r[2])
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(_row, max_size=8), min_size=1, max_size=5),
    st.sampled_from([0.5, 1, 1.5, 2, 3, 8]),
    st.integers(1, 3),
    st.integers(0, 20),
    st.integers(0, 30),
)
def test_equal_to_the_naive_twin(ranks, cores, threads, begin, length):
    window = begin, begin + length
    found = core_time([intervals(*rows) for rows in ranks], cores, threads=threads, window=window)
    np.testing.assert_allclose(found, naive(ranks, cores, threads, *window), atol=1e-15)
    np.testing.assert_allclose(found.sum(axis=1), length / 1e9, atol=1e-15)


def test_a_free_core_means_that_a_neighbour_is_waited_for():
    table = core_time([intervals((0, 10, "compute")), intervals((0, 10, "wait"))], cores=2)
    assert parts(table, 0) == {"compute": 10}
    assert parts(table, 1) == {"neighbour": 10}


def test_no_free_core_means_that_a_core_is_waited_for():
    table = core_time([intervals((0, 10, "compute")), intervals((0, 10, "wait"))], cores=1)
    assert parts(table, 0) == {"compute": 10}
    assert parts(table, 1) == {"core": 10}


def test_active_ranks_share_the_cores():
    rows = [intervals((0, 8, "compute")), intervals((0, 8, "transfer")), intervals((0, 4, "wait"), (4, 8, "other"))]
    table = core_time(rows, cores=1)
    assert parts(table, 0) == {"compute": pytest.approx(2 + 4 / 3), "core": pytest.approx(2 + 8 / 3)}
    assert parts(table, 1) == {"transfer": pytest.approx(2 + 4 / 3), "core": pytest.approx(2 + 8 / 3)}
    assert parts(table, 2) == {"other": pytest.approx(4 / 3), "core": pytest.approx(4 + 8 / 3)}


def test_between_events_is_other_and_active():
    table = core_time([intervals((0, 2, "wait"), (6, 8, "wait")), intervals((0, 8, "compute"))], cores=1)
    assert parts(table, 0) == {"other": 2, "core": 6}
    assert parts(table, 1) == {"compute": 6, "core": 2}


def test_threads_divide_the_cores():
    rows = [intervals((0, 10, "compute"))] * 2
    assert parts(core_time(rows, cores=4, threads=2), 0) == {"compute": 10}
    assert parts(core_time(rows, cores=4, threads=4), 0) == {"compute": 5, "core": 5}


def test_the_window_is_what_all_ranks_cover():
    rows = [intervals((0, 4, "compute"), (4, 9, "wait")), intervals((3, 12, "checkpoint"))]
    table = core_time(rows, cores=2)
    assert parts(table, 0) == {"compute": 1, "neighbour": 5}
    assert parts(table, 1) == {"checkpoint": 6}


@pytest.mark.parametrize("rows", [[], [intervals()], [intervals((0, 4, "wait")), intervals()]])
def test_nothing_recorded_is_no_time(rows):
    assert core_time(rows, cores=2).tolist() == [[0.0] * len(CORE_PARTS)] * len(rows)


def test_times_of_a_clock_that_has_run_for_months_lose_nothing():
    late = 2**53 + 1
    table = core_time([intervals((late, late + 3, "compute"), (late + 3, late + 10, "wait"))], cores=1)
    assert parts(table, 0) == {"compute": 3, "neighbour": 7}

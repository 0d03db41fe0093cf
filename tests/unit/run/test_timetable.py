"""The stream of micro-batches against a plain list of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringtmp.run.timetable import Cursor, Timetable, pieces


def listed(total, batch, m, tests, every):
    """(training, step, sizes) of each phase, spelt out."""
    train = pieces(batch, m)
    test = [train[0]] * (tests // train[0]) + ([tests % train[0]] if tests % train[0] else [])
    phases = []
    for step in range(total):
        phases.append((True, step, train))
        if (every and (step + 1) % every == 0) or step + 1 == total:
            phases.append((False, step + 1, tuple(test)))
    return phases


shapes = st.tuples(
    st.integers(1, 12), st.integers(1, 20), st.integers(1, 6), st.integers(1, 40), st.integers(0, 5)
).filter(lambda s: s[2] <= s[1])


@given(shapes)
def test_phases(shape):
    total, batch, m, tests, every = shape
    table, start = Timetable(total, batch, m, tests, every), 0
    phases = listed(*shape)
    assert table.end == len(phases)
    for index, (training, step, sizes) in enumerate(phases):
        phase = table.phase(index)
        assert (phase.training, phase.step, phase.sizes, phase.start) == (training, step, tuple(sizes), start)
        start += len(sizes)
        if training:
            assert table.index_of(step) == index
    assert {size for _, _, sizes in phases for size in sizes} <= set(table.sizes)
    assert table.rows == max(table.sizes)


@given(shapes)
def test_cursors(shape):
    """One goes through all micro-batches, the other through those of training; both count the same places."""
    table = Timetable(*shape)
    for training_only in (False, True):
        cursor, place = Cursor(table, 0, training_only), 0
        for training, step, sizes in listed(*shape):
            for number, rows in enumerate(sizes):
                if training or not training_only:
                    assert (cursor.phase.step, cursor.number, cursor.rows) == (step, number, rows)
                    assert cursor.place == place
                    assert cursor.advance() == (number == len(sizes) - 1)
                place += 1


@pytest.mark.parametrize(("rows", "count", "want"), [(16, 7, (3, 3, 2, 2, 2, 2, 2)), (8, 8, (1,) * 8), (5, 1, (5,))])
def test_pieces(rows, count, want):
    assert pieces(rows, count) == want

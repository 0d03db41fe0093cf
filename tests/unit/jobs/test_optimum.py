"""The search for the best step against hand-made values, a formula, every plan there is, and what the clock reaches."""

from itertools import product

import pytest

from ringtmp.jobs.experiments.optimum import NAMES, RULE, Figures, optimum, rows
from ringtmp.jobs.lib.store import places, read


@pytest.mark.parametrize("m", [1, 2, 3, 7])
@pytest.mark.parametrize("cap", [1, 2, None])
def test_one_rank_never_waits(m, cap):
    assert optimum(1, m, cap) == Figures(3 * m, 3 * m)


@pytest.mark.parametrize(
    ("p", "m", "cap", "makespan", "period"),
    [
        (2, 1, None, 5, 5),  # F on both, I on both, W on rank 0
        (3, 1, None, 7, 7),
        (2, 2, None, 7, 7),  # rank 0: F0 F1 . I0 W0 I1 W1, rank 1: . F0 I0 F1 I1 W0 W1
        (2, 2, 1, 10, 10),  # rank 0 one by one: F . . I W, twice
        (2, 3, None, 10, 9),  # rank 1 waits once and works 9; in a chain its W fill that gap
    ],
)
def test_by_hand(p, m, cap, makespan, period):
    assert optimum(p, m, cap) == Figures(makespan, period)


def test_no_room_at_all():
    with pytest.raises(ValueError, match="cap: expected 1 or more, got 0"):
        optimum(2, 2, 0)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_formula(p):
    """Rank 0 has nothing but its F to do until 2 p - 1; the last rank waits p - 1 at first, or makes up for it."""
    for m in range(1, 9):
        single, back = 3 * m + p - 1, 2 * m + 2 * p - 1
        assert optimum(p, m, p) == Figures(max(single, back), max(single, back))
        for cap in (2 * p - 1, None):
            assert optimum(p, m, cap) == Figures(max(single, back), max(3 * m, back))


# ---- every plan ------------------------------------------------------------------------------------------------------


def orders(m, ascending, done=()):
    """Every order of F, I and W of m micro-batches on a rank; with `ascending` each kind in ascending order."""
    if len(done) == 3 * m:
        yield done
    for j in range(m):
        behind = [kind for kind, other in done if other == j]
        if len(behind) < 3:
            action = "FIW"[len(behind)], j
            if not ascending or j == 0 or (action[0], j - 1) in done:
                yield from orders(m, ascending, (*done, action))


def length(lists, steps):
    """When all is done if each rank runs its list as early as it can, `steps` times; None if it gets stuck."""
    ends, place, now, last = {}, [0] * len(lists), [0] * len(lists), len(lists) - 1
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(lists):
            while place[rank] < steps * len(order):
                step, at = divmod(place[rank], len(order))
                kind, j = order[at]
                needs = None
                if kind == "F" and rank > 0:
                    needs = rank - 1, "F", j, step
                elif kind == "I" and rank < last:
                    needs = rank + 1, "I", j, step
                if needs and needs not in ends:
                    break
                now[rank] = ends[rank, kind, j, step] = max(now[rank], ends[needs] if needs else 0) + 1
                place[rank] += 1
                moved = True
    return max(now) if all(n == steps * len(order) for n, order in zip(place, lists, strict=True)) else None


def most_held(order):
    held = [sum((kind == "F") - (kind == "W") for kind, _ in order[: n + 1]) for n in range(len(order))]
    return max(held)


@pytest.mark.parametrize(("p", "m", "ascending", "count"), [(2, 2, False, 20), (2, 3, True, 42), (3, 2, True, 5)])
def test_every_plan_there_is(p, m, ascending, count):
    """All orders on all ranks, of p = m = 2 even those in which a micro-batch overtakes another."""
    every = list(orders(m, ascending))
    assert len(every) == count
    for cap in range(1, m + 1):
        fitting = [order for order in every if most_held(order) <= cap]
        runs = [lists for lists in product(fitting, repeat=p) if length(lists, 1)]
        best = optimum(p, m, cap)
        assert min(length(lists, 1) for lists in runs) == best.makespan
        # The search may change its order from step to step, but here need not.
        assert min(length(lists, 6) - length(lists, 4) for lists in runs) == 2 * best.period


# ---- schedules and the rule ------------------------------------------------------------------------------------------


def test_nothing_is_faster_and_something_is_as_fast():
    """ZB-H1 where p may be held; the rule from 2 p - 1 on; and ZB-H2 from a number of micro-batches on."""
    for row in rows((2, 3), (1, 2, 3, 5, 6)):
        p, m, cap, best = row["ranks"], row["micro_batches"], row["cap"], row["optimum"]
        for name in (*NAMES, RULE):
            assert row[name] is None or all(row[name][key] >= best[key] for key in best), (name, row)
        if cap == p:
            assert row["zb-h1"] == best
        else:
            assert row[RULE] == best
            assert m < 2 * p - 1 or row["zb-h2"] == best
        assert row["1f1b"]["makespan"] == 3 * (m + p - 1)


def test_the_written_table_is_this_one():
    for row in read(places("optimum")[0])["rows"]:
        assert optimum(row["ranks"], row["micro_batches"], row["cap"]) == Figures(**row["optimum"])

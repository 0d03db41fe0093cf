"""What traces of `ps` tell: on frames made by hand."""

import numpy as np
import pandas as pd
import pytest
from events import frame, nanoseconds, table

from ringtmp.analysis import lead, servers, staleness, transfers, waits
from ringtmp.errors import UserError

# Server 0, workers 1 and 2, one chunk, one step.
BY_HAND = [
    (1, "F", 0, 5, 0, 0),
    (1, "W", 5, 10, 0, 0),
    (1, "send", 10, 11, 0, 0, 0, 64),
    (1, "wait", 11, 70, 0, 0),
    (1, "receive", 69, 70, 0, 0, 0, 64),
    (1, "U", 70, 71, 0, 0),
    (1, "wait", 71, 80, 0, -1),
    (2, "F", 0, 20, 0, 0),
    (2, "W", 20, 40, 0, 0),
    (2, "send", 40, 41, 0, 0, 0, 64),
    (2, "wait", 41, 73, 0, 0),
    (2, "receive", 72, 73, 0, 0, 0, 64),
    (2, "U", 73, 74, 0, 0),
    (0, "wait", 0, 19, 0, -1),
    (0, "receive", 19, 20, 0, 0, 1, 64, 0),
    (0, "wait", 20, 49, 0, -1),
    (0, "receive", 49, 50, 0, 0, 2, 64, 0),
    (0, "U", 50, 60, 0, 0, -1, 0, 1),
    (0, "send", 60, 61, 0, 0, 1, 64, 1),
    (0, "send", 61, 62, 0, 0, 2, 64, 1),
]
CONTROL = [(1, "send", 0, 1, 0, -1, 0, 9), (0, "receive", 900, 901, 0, -1, 1, 9), (0, "send", 3, 4, 0, -1, 2, 9)]
# ---- waits ----------------------------------------------------------------------------------------------------------


def test_waits_by_hand():
    """The way there and all after the slower one's gradient is the server's; control messages count nowhere."""
    for events in (frame(BY_HAND), frame(BY_HAND + CONTROL).sample(frac=1, random_state=0)):
        assert nanoseconds(waits(events, table("sww"))) == {1: (9 + 20, 30, 0, 0, 9), 2: (32, 0, 0, 0, 0)}


def test_the_cause_is_the_consistencys():
    """The same waits where no gradient of others is needed: ASP, or SSP in its first steps."""
    events = frame(BY_HAND)
    for consistency, bound in (("asp", -1), ("ssp", 1), ("ssp", 5)):
        found = nanoseconds(waits(events, table("sww", consistency, bound)))
        assert found == {1: (59, 0, 0, 0, 9), 2: (32, 0, 0, 0, 0)}


def test_the_bound_holds_back():
    """1's step 1 is at the server at 90, 2's step 0 at 100, its step 1 at 120: each bound waits for another of them."""
    rows = [row for row in BY_HAND if row[0] == 1]
    rows += [(0, "receive", 19, 20, 0, 0, 1, 64, 0), (0, "receive", 89, 90, 1, 0, 1, 64, 1), (1, "wait", 81, 130, 1, 0)]
    rows += [(0, "receive", 99, 100, 0, 0, 2, 64, 1), (0, "receive", 119, 120, 1, 0, 2, 64, 1)]
    for bound, held in ((1, 10), (2, 0), (3, 0)):
        found = nanoseconds(waits(frame(rows), table("sww", "ssp", bound)))
        assert found[1] == (59 + 49 - held, 0, held, 0, 9)
    assert nanoseconds(waits(frame(rows), table("sww")))[1] == (9 + 19, 50 + 30, 0, 0, 9)
    found = nanoseconds(waits(frame(rows[:-2] + rows[-1:]), table("sww", "ssp", 1)))  # step 1 stands for step 0
    assert found[1] == (59 + 19, 0, 30, 0, 9)
    rows[-2:] = [(0, "receive", 99, 100, 1, 0, 2, 64, 1), (0, "receive", 119, 120, 0, 0, 2, 64, 1)]
    assert nanoseconds(waits(frame(rows), table("sww", "ssp", 1)))[1] == (59 + 39, 0, 10, 0, 9)


def test_a_wait_lies_anywhere():
    """Wholly before the own gradient is there, among the others' or after: the borders cut it."""
    others = [(0, 20, 0), (0, 21, 1), (25, 45, 20), (45, 55, 5), (50, 60, 0), (20, 50, 30), (30, 30, 0)]
    for start, end, slower in others:
        rows = [row for row in BY_HAND if row[:2] != (1, "wait")] + [(1, "wait", start, end, 0, 0)]
        assert nanoseconds(waits(frame(rows), table("sww")))[1] == (end - start - slower, slower, 0, 0, 0)


def test_a_gradient_that_never_comes():
    """It is waited for until the server goes on without it, and not from then on; failing that, to its last sign."""
    gone = [row for row in BY_HAND if row[0] != 2 and not (row[0] == 0 and row[6:7] == (2,))]
    assert nanoseconds(waits(frame(gone), table("sww")))[1] == (9 + 20, 30, 0, 0, 9)  # the update went on at 50
    second = [
        (1, "send", 80, 81, 1, 0, 0, 64),
        (0, "receive", 89, 90, 1, 0, 1, 64, 1),
        (1, "wait", 81, 120, 1, 0),
        (0, "U", 95, 105, 1, 0, -1, 0, 2),
        (0, "send", 105, 106, 1, 0, 1, 64, 2),
    ]
    assert nanoseconds(waits(frame(gone + second), table("sww")))[1] == (9 + 20 + 39, 30, 0, 0, 9)
    came = [row for row in BY_HAND if row[0] != 2] + second  # it did its first step, and waits for a second
    assert nanoseconds(waits(frame(came), table("sww")))[1] == (9 + 20 + 34, 30 + 5, 0, 0, 9)
    halted = [row for row in gone if row[:2] not in ((0, "U"), (0, "send"))]  # the server's trace ends before
    for last, slower in ((15, 0), (31, 11), (500, 50)):
        found = nanoseconds(waits(frame([*halted, (2, "F", 0, last, 0, 0)]), table("sww")))
        assert found[1] == (59 - slower, slower, 0, 0, 9)


def test_a_gradient_that_came_too_late():
    """Backup workers: what the update did not wait for nobody waited for, though it comes later."""
    late = [(0, "receive", 64, 65, 0, 0, 2, 64, -1) if row[:3] == (0, "receive", 49) else row for row in BY_HAND]
    assert nanoseconds(waits(frame(late), table("sww")))[1] == (9 + 20, 30, 0, 0, 9)


def test_a_gradient_that_was_lost():
    """As long as a worker's own is not at the server, it waits for that; so where the trace holds none at all."""
    others = [row for row in BY_HAND if row[:3] != (0, "receive", 19)]
    assert nanoseconds(waits(frame(others), table("sww")))[1] == (59, 0, 0, 0, 9)
    rows = [(1, "wait", 0, 7, 0, 0), (1, "wait", 7, 9, 3, -1)]
    assert nanoseconds(waits(frame(rows), table("sww"))) == {1: (7, 0, 0, 0, 2), 2: (0, 0, 0, 0, 0)}
    assert nanoseconds(waits(frame([*rows[1:], BY_HAND[14]]), table("sww")))[1] == (0, 0, 0, 0, 2)
    assert nanoseconds(waits(frame(rows[1:]), table("sww"))) == {1: (0, 0, 0, 0, 2), 2: (0, 0, 0, 0, 0)}
    assert nanoseconds(waits(frame([]), table("sww"))) == {1: (0,) * 5, 2: (0,) * 5}


# ---- all-reduce -----------------------------------------------------------------------------------------------------

ROUND = [
    (0, "send", 10, 11, 0, 0, 1, 8, -1, 0),
    (1, "receive", 18, 20, 0, 0, 0, 8, -1, 0),
    (1, "send", 15, 16, 0, 0, 0, 4, -1, 0),
    (0, "receive", 29, 30, 0, 0, 1, 4, -1, 0),
    (0, "send", 30, 31, 0, 0, 1, 8, -1, 1),
    (1, "receive", 34, 35, 0, 0, 0, 8, -1, 1),
    (0, "wait", 12, 29, 0, 0),
    (1, "wait", 16, 18, 0, 0),
    (1, "wait", 35, 40, 0, -1),
    (0, "U", 35, 36, 0, 0),
    (1, "U", 40, 41, 0, 0),
]


def test_all_reduce():
    """Of two ranks, each the other's right and left neighbour: hops are told apart, all waits are for neighbours."""
    ranks = table("ww", "allreduce")
    events = frame(ROUND).sample(frac=1, random_state=3)
    assert nanoseconds(waits(events, ranks)) == {0: (0, 0, 0, 17, 0), 1: (0, 0, 0, 7, 0)}
    found = transfers(events, ranks)
    assert found["seconds"].tolist() == pytest.approx([15e-9, 15e-9])  # 10 to 20 and 30 to 35; 15 to 30
    assert found["hidden"].tolist() == pytest.approx([7 / 15, 13 / 15])
    assert found[["pushed", "pulled"]].to_numpy().tolist() == [[16, 4], [4, 16]]
    assert servers(events, ranks).empty
    assert servers(events, table("bb", "allreduce")).empty  # whatever the ranks are called
    assert lead(events, ranks).empty


# ---- transfers and servers ------------------------------------------------------------------------------------------


def test_transfers_by_hand():
    """Pushes in flight 10 to 20 and 40 to 50, answers 60 to 70 and 61 to 73; what never came has no flight."""
    for more in ([], CONTROL, [(1, "send", 75, 76, 1, 0, 0, 100)]):
        found = transfers(frame(BY_HAND + more), table("sww"))
        assert found.index.tolist() == [1, 2]
        assert found["seconds"].tolist() == pytest.approx([20e-9, 22e-9])
        assert found["hidden"].tolist() == pytest.approx([1 / 20, 1 / 22])
        lost = 100 if more and more != CONTROL else 0
        assert found[["pushed", "pulled"]].to_numpy().tolist() == [[64 + lost, 64], [64, 64]]
    still = transfers(frame(BY_HAND[:2]), table("sww"))
    assert still["seconds"].tolist() == [0, 0]
    assert still["hidden"].isna().all()
    assert still[["pushed", "pulled"]].to_numpy().sum() == 0


def test_servers_by_hand():
    for more in ([], CONTROL):
        found = servers(frame(BY_HAND + more), table("sww", wall=100))
        assert found.index.tolist() == [0]
        row = found.loc[0].to_dict()
        want = {
            "busy": 0.1,
            "waiting": 0.48,
            "received_per_s": 1.28e9,
            "sent_per_s": 1.28e9,
            "in_flight": 0.33,
            "updates": 1,
        }
        assert row == pytest.approx(want)
    idle = servers(frame([]), table("ssw"))
    assert idle.index.tolist() == [0, 1]
    assert (idle == 0).all().all()


def test_ranks_that_serve_and_work():
    """Rank r serves chunk r. Its own gradient has no message; taking up weights, which has no version, is no update."""
    rows = [
        (0, "receive", 5, 6, 0, 0, 0, 0, 0),
        (1, "send", 2, 3, 0, 0, 0, 10),
        (0, "receive", 8, 9, 0, 0, 1, 10, 0),
        (0, "U", 9, 12, 0, 0, -1, 0, 1),
        (0, "send", 12, 13, 0, 0, 1, 20, 1),
        (1, "receive", 15, 16, 0, 0, 0, 20),
        (1, "receive", 3, 4, 0, 1, 1, 0, 0),
        (0, "send", 4, 5, 0, 1, 1, 30),
        (1, "receive", 9, 10, 0, 1, 0, 30, 0),
        (1, "U", 10, 20, 0, 1, -1, 0, 1),
        (1, "send", 20, 21, 0, 1, 0, 40, 1),
        (0, "receive", 25, 26, 0, 1, 1, 40),
        (0, "wait", 6, 8, 0, 0),
        (0, "wait", 13, 26, 0, 1),
        (0, "U", 26, 27, 0, 0),
        (0, "U", 27, 28, 0, 1),
        (1, "wait", 10, 10, 0, 1),
        (1, "U", 28, 29, 0, 0),
        (1, "U", 29, 30, 0, 1),
    ]
    events, ranks = frame(rows).sample(frac=1, random_state=2), table("bb", wall=100)
    assert nanoseconds(waits(events, ranks)) == {0: (13, 2, 0, 0, 0), 1: (0, 0, 0, 0, 0)}
    moved = transfers(events, ranks)
    assert moved["seconds"].tolist() == pytest.approx([12e-9, 11e-9])  # 4 to 10, 20 to 26; 2 to 9, 12 to 16
    assert moved["hidden"].tolist() == pytest.approx([4 / 12, 1.0])
    assert moved[["pushed", "pulled"]].to_numpy().tolist() == [[30, 40], [10, 20]]
    found = servers(events, ranks)
    assert found["updates"].tolist() == [1, 1]
    assert found["busy"].tolist() == pytest.approx([0.03, 0.1])
    assert found["waiting"].tolist() == pytest.approx([0.15, 0.0])
    assert found["in_flight"].tolist() == pytest.approx([0.11, 0.12])
    assert found["received_per_s"].tolist() == pytest.approx([1e8, 3e8])
    assert found["sent_per_s"].tolist() == pytest.approx([2e8, 4e8])
    ages = staleness(events)
    assert ages.to_numpy().tolist() == [[rank, rank, 0, worker, 0] for rank in (0, 1) for worker in (0, 1)]
    assert lead(events, ranks).to_numpy().tolist() == [[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]


# ---- staleness and lead ---------------------------------------------------------------------------------------------


def test_staleness_of_gradients_by_hand():
    """Updates between the weights and the one that took it, of its chunk; late and untaken ones have none."""
    rows = [
        (0, "U", 0, 1, 0, 0, -1, 0, 1),
        (0, "receive", 4, 5, 0, 0, 2, 8, 0),
        (0, "U", 5, 6, 0, 0, -1, 0, 2),
        (0, "receive", 6, 7, 1, 0, 3, 8, 2),
        (0, "U", 7, 8, 0, 1, -1, 0, 9),
        (1, "U", 7, 8, 0, 0, -1, 0, 7),
        (0, "U", 8, 9, 1, 0, -1, 0, 3),
        (0, "receive", 20, 21, 7, 0, 3, 8, 0),
        (0, "U", 22, 23, 7, 0, -1, 0, 9),
        (0, "receive", 22, 23, 2, 0, 2, 8, 3),
        (0, "receive", 10, 11, 2, 0, 3, 8, -1),
        (0, "receive", 1, 2, 2, -1, 3, 8, 5),
        (2, "U", 30, 31, 1, 0),
        (0, "U", 30, 31, 1, 0),
    ]
    got = staleness(frame(rows).sample(frac=1, random_state=1))
    assert list(got.columns) == ["rank", "stage", "step", "worker", "staleness"]
    assert got.to_numpy().tolist() == [[0, 0, 0, 2, 1], [0, 0, 1, 3, 0], [0, 0, 7, 3, 8]]
    assert (got.dtypes == np.int64).all()


def test_staleness_without_gradients():
    """What control messages carry makes no trace of `ps`: as in a ring, F says which weights an update's used."""
    rows = [(0, "F", 0, 1, 5, 0, -1, 0, 3), (0, "receive", 1, 2, 5, -1, 1, 8, 2), (0, "U", 2, 3, 5, 0, -1, 0, 6)]
    assert staleness(frame(rows)).to_dict("list") == {"rank": [0], "stage": [0], "step": [5], "staleness": [2]}


def test_lead_by_hand():
    """Steps ahead of the slowest whose gradient had come when the answer went; the gone hold nobody up."""
    rows = []
    for step, at in ((4, 10), (5, 20), (6, 30)):
        rows += [(0, "receive", at - 1, at, step, 0, 1, 8, 0), (0, "send", at, at + 1, step, 0, 1, 8, 1)]
    rows += [(0, "receive", 24, 25, 4, 0, 2, 8, 0), (0, "send", 30, 31, 4, 0, 2, 8, 2), (0, "send", 0, 1, 0, -1, 1, 8)]

    def leads(more):
        found = lead(frame(rows + more).sample(frac=1, random_state=5), table("sww", "ssp", 2))
        assert list(found.columns) == ["rank", "stage", "worker", "step", "lead"]
        assert (found.dtypes == np.int64).all()
        return found[["worker", "step", "lead"]].to_numpy().tolist()

    assert leads([]) == [[1, 4, 1], [2, 4, 0], [1, 5, 2], [1, 6, 0]]  # the last sign of 2 is at 25
    assert leads([(2, "wait", 28, 50, 4, 0)]) == [[1, 4, 1], [2, 4, 0], [1, 5, 2], [1, 6, 2]]
    left = [(2, "wait", 28, 50, 4, -1), (2, "U", 50, 51, 4, 1, -1, 0, 3), (2, "send", 50, 51, 4, -1, 1, 8)]
    assert leads(left) == leads([])  # it may go on serving, but pushes no more
    assert leads([(0, "receive", 0, 40, 5, 0, 2, 8)]) == [[1, 4, 1], [2, 4, 0], [1, 5, 2], [1, 6, 2]]
    ranks = table("swww", "ssp", 2)  # 3 computes, but has pushed nothing yet
    assert lead(frame([*rows, (3, "F", 0, 22, 4, 0)]), ranks)["lead"].tolist() == [1, 0, 2, 0]
    other = [(0, "receive", 0, 2, 5, 1, 2, 8), (2, "wait", 28, 50, 4, 0)]  # a gradient of another chunk
    assert leads(other) == [[1, 4, 1], [2, 4, 0], [1, 5, 2], [1, 6, 2]]


def test_another_frameworks_trace():
    ring = pd.DataFrame([{"rank": 0, "began": 0, "ended": 9}])
    for each in (waits, transfers, servers, lead):
        with pytest.raises(UserError, match="does not say which ranks work"):
            each(frame(BY_HAND), ring)

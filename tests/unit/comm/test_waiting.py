"""The wait loop: what it polls, books and calls, and when it gives up."""

import pytest

from ringtmp.comm import waiting
from ringtmp.comm.waiting import Backoff, WaitLoop
from ringtmp.errors import RunFailure


class Scene:
    """A clock that advances by 10 each time it is read, and a list of what the polls of a wait bring.

    "-": nothing, "p": progress, "e": an event that is booked by itself, "r": ready.
    """

    def __init__(self, monkeypatch, polls, limit=1.0):
        self.polls, self.now, self.events, self.ready = list(polls), 0, 0, False
        self.booked, self.idle = [], []
        monkeypatch.setattr(waiting, "clock", self.clock)
        self.loop = WaitLoop(
            Backoff(crowded=False),
            self.poll,
            lambda begin, end: self.booked.append((begin, end)),
            lambda nanoseconds: f"nothing for {nanoseconds}",
            limit,
            self.idle.append,
            lambda: self.events,
        )

    def clock(self):
        self.now += 10
        return self.now

    def poll(self):
        what = self.polls.pop(0)
        self.events += what == "e"
        self.ready = what == "r" or (what == "p" and not self.polls)
        return what == "p"

    def until(self, since=0):
        return self.loop.until(lambda: self.ready, since)


def test_a_wait_in_one_piece(monkeypatch):
    """Booked from its begin to the poll that ends it, which is left to the caller."""
    scene = Scene(monkeypatch, "---r")
    assert scene.until(since=3) == 40
    assert scene.booked == [(3, 40)]
    assert scene.idle == [10, 20, 30]


def test_progress_ends_a_piece(monkeypatch):
    """What happened in the poll is booked by itself: the next piece begins after it."""
    scene = Scene(monkeypatch, "-p-r")
    assert scene.until() == 50
    assert scene.booked == [(0, 20), (30, 50)]
    assert scene.idle == [10, 40]


def test_ready_with_progress(monkeypatch):
    """Nothing is left to book but an empty piece; no further poll."""
    scene = Scene(monkeypatch, "-p")
    assert scene.until() == 30
    assert scene.booked == [(0, 20), (30, 30)]


def test_an_event_ends_a_piece_and_is_no_progress(monkeypatch):
    scene = Scene(monkeypatch, "-e-r")
    assert scene.until() == 50
    assert scene.booked == [(0, 20), (30, 50)]
    assert scene.idle == [10, 20, 40]


def test_it_gives_up(monkeypatch):
    """Only progress lets the limit begin again."""
    scene = Scene(monkeypatch, "-p" + "-e" * 20, limit=95e-9)
    with pytest.raises(RunFailure, match="nothing for 100"):
        scene.until()
    assert len(scene.polls) < 36


def test_blocked(monkeypatch):
    """A turn where something else waits: polls, looks for silent neighbours, and gives up."""
    scene = Scene(monkeypatch, "---", limit=95e-9)
    scene.loop.blocked(0)
    assert scene.idle == [10]
    with pytest.raises(RunFailure, match="nothing for 110"):
        scene.loop.blocked(-90)


def test_backoff():
    """Spins, then yields, then sleeps; a reset begins again."""
    backoff = Backoff(crowded=True)
    for _ in range(60):
        backoff.pause()
    assert backoff.turn == 60
    backoff.reset()
    assert backoff.turn == 0

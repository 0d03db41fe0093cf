"""Messages that wait to leave: the lowest number first, and only a few under way, so that later ones may overtake."""

import heapq
from collections.abc import Callable, Iterable
from typing import Any

from ringtmp.trace.recorder import clock

_SLOW = 20_000_000  # nanoseconds; a link on which a message takes longer gets few at once


def _most(slow: bool) -> int:
    """Messages under way at once to one rank.

    Over 100 Mbit/s two hide 8 points more of the exchange than four (where computing lasts as long as one way of it);
    within a host, where a message takes a fraction of a millisecond, four keep both sides busy.
    """
    return 2 if slow else 4


class SendQueue:
    """A queue for each of some ranks, of messages named by key range and step.

    Parameters
    ----------
    peers : iterable of int
    start : callable
        Starts the message of (rank, key range, step); returns its request and a mark.
    gone : callable
        Called with the key range and the mark once the message has left.
    """

    def __init__(
        self,
        peers: Iterable[int],
        start: Callable[[int, int, int], tuple[Any, int]],
        gone: Callable[[int, int], None] = lambda number, mark: None,
    ) -> None:
        from mpi4py import MPI

        self._testsome = MPI.Prequest.Testsome
        self._queues: dict[int, list[tuple[int, int]]] = {peer: [] for peer in peers}
        self._start, self._gone = start, gone
        self._flying: list[tuple[Any, int, int, int, int]] = []  # request, rank, key range, mark, since when
        self._count = dict.fromkeys(self._queues, 0)  # under way
        self._slow = dict.fromkeys(self._queues, False)  # whether the last one took long
        self._silent: set[int] = set()

    def add(self, peer: int, number: int, step: int) -> None:
        """Let a message leave with one of the next `poll`s."""
        heapq.heappush(self._queues[peer], (number, step))

    def poll(self) -> bool:
        """Note what has left, and start what may; whether anything has happened."""
        moved = False
        if self._flying:
            done = self._testsome([request for request, *_ in self._flying])
            for at in sorted(done or (), reverse=True):
                self._left(at)
                moved = True
        for peer, queue in self._queues.items():
            while queue and self._count[peer] < _most(self._slow[peer]):
                begin = clock()
                number, step = heapq.heappop(queue)
                request, mark = self._start(peer, number, step)
                self._flying.append((request, peer, number, mark, begin))
                self._count[peer] += 1
                moved = True
        return moved

    def _left(self, at: int) -> None:
        _, peer, number, mark, since = self._flying.pop(at)
        self._count[peer] -= 1
        self._slow[peer] = clock() - since > _SLOW
        self._gone(number, mark)

    def complete(self, number: int) -> None:
        """See to it that the messages of a key range have left: they have been answered, so this does not wait."""
        for at in reversed(range(len(self._flying))):
            if self._flying[at][2] == number:
                self._flying[at][0].Wait()
                self._left(at)

    def forget(self, peer: int, gone: bool = False) -> None:
        """A rank does not answer: nothing more leaves for it, and nobody waits for what is under way to it.

        Its buffer stays busy; for ever if the rank is `gone`.
        """
        self._queues[peer].clear()
        self._silent.add(peer)
        if gone:
            self._flying = [flight for flight in self._flying if flight[1] != peer]

    def remember(self, peer: int) -> None:
        """It answers again."""
        self._silent.discard(peer)

    def idle(self) -> bool:
        """Whether all has left, but for those who do not answer."""
        return not any(self._queues.values()) and all(flight[1] in self._silent for flight in self._flying)

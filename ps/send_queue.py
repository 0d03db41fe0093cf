"""Messages that wait to leave: the lowest number first, and only a few under way, so that later ones may overtake."""

import heapq
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ringtmp.trace.recorder import clock

_SLOW = 20_000_000  # nanoseconds; a link on which a message takes longer gets few at once


def _limit(slow: bool) -> int:
    """Messages under way at once to one rank.

    Over 100 Mbit/s two hide 8 points more of the exchange than four (if computing takes as long as one way of it);
    within a host, where a message takes a fraction of a millisecond, four keep both sides busy.
    """
    return 2 if slow else 4


class _Flight(NamedTuple):
    """A message that is under way."""

    request: Any
    peer: int
    number: int  # of its key range
    mark: int
    since: int  # nanoseconds


class SendQueue:
    """A queue for each of some ranks, of messages identified by key range and step.

    Parameters
    ----------
    peers : iterable of int
        Ranks to send to.
    start : callable
        Starts the message of (rank, key range, step); returns its request and a mark.
    left : callable
        Called with the key range and the mark of a message that has left.
    """

    def __init__(
        self,
        peers: Iterable[int],
        start: Callable[[int, int, int], tuple[Any, int]],
        left: Callable[[int, int], None] = lambda number, mark: None,
    ) -> None:
        from mpi4py import MPI

        self._testsome = MPI.Prequest.Testsome
        self._queues: dict[int, list[tuple[int, int]]] = {peer: [] for peer in peers}  # key range and step
        self._start, self._on_left = start, left
        self._flights: list[_Flight] = []
        self._count = dict.fromkeys(self._queues, 0)  # messages under way
        self._slow = dict.fromkeys(self._queues, False)  # whether the last one took long
        self._unresponsive: set[int] = set()

    def add(self, peer: int, number: int, step: int) -> None:
        """Queue the message of key range `number` and step `step` to rank `peer`; a later call of `poll` sends it."""
        heapq.heappush(self._queues[peer], (number, step))

    def poll(self) -> bool:
        """Note messages that have left, and start others; True if anything has happened."""
        moved = False
        if self._flights:
            done = self._testsome([flight.request for flight in self._flights])
            for index in sorted(done or (), reverse=True):
                self._land(index)
                moved = True
        for peer, queue in self._queues.items():
            while queue and self._count[peer] < _limit(self._slow[peer]):
                begin = clock()
                number, step = heapq.heappop(queue)
                request, mark = self._start(peer, number, step)
                self._flights.append(_Flight(request, peer, number, mark, begin))
                self._count[peer] += 1
                moved = True
        return moved

    def _land(self, index: int) -> None:
        flight = self._flights.pop(index)
        self._count[flight.peer] -= 1
        self._slow[flight.peer] = clock() - flight.since > _SLOW
        self._on_left(flight.number, flight.mark)

    def complete(self, number: int) -> None:
        """Note that the messages of key range `number` have left: they have been answered, so this does not wait."""
        for index in reversed(range(len(self._flights))):
            if self._flights[index].number == number:
                self._flights[index].request.Wait()
                self._land(index)

    def drop(self, peer: int, killed: bool = False) -> None:
        """Send nothing more to rank `peer`, which does not answer, and do not wait for messages under way to it.

        The buffers of such messages stay busy: for ever if the rank was `killed`, else until it answers.
        """
        self._queues[peer].clear()
        self._unresponsive.add(peer)
        if killed:
            self._flights = [flight for flight in self._flights if flight.peer != peer]

    def rejoin(self, peer: int) -> None:
        """Wait again for messages that are under way to rank `peer`, which answers again."""
        self._unresponsive.discard(peer)

    def idle(self) -> bool:
        """Whether every message has left, except those to ranks that do not answer."""
        return not any(self._queues.values()) and all(flight.peer in self._unresponsive for flight in self._flights)

"""How a rank waits: spin, then yield, then sleep; and the loop in which it polls until it can continue."""

import math
import os
import time
from collections.abc import Callable

from ringtmp.errors import RunFailure
from ringtmp.trace.recorder import clock


class Backoff:
    """How to wait: spin while cores last, then yield, then sleep in small steps if ranks outnumber cores.

    Parameters
    ----------
    crowded : bool
        Whether ranks outnumber the cores of this host.

    Notes
    -----
    Two ranks on two cores: a message that comes within the spin is seen in under 2 microseconds. Eight ranks on two
    cores: a rank that only yields takes its turn in the scheduler again and again; sleeping after 50 yields
    leaves the cores to those that have work.
    """

    def __init__(self, crowded: bool) -> None:
        self.spins, self.yields, self.nap = (2, 50, 50e-6) if crowded else (200, 20000, 50e-6)
        self.turn = 0

    def reset(self) -> None:
        """Begin a new wait."""
        self.turn = 0

    def pause(self) -> None:
        """Wait a little, a little longer each time."""
        self.turn += 1
        if self.turn <= self.spins:
            return
        if self.turn <= self.spins + self.yields:
            os.sched_yield()
        else:
            time.sleep(self.nap)


def _nothing(now: int) -> None:
    """Default action of a turn without progress."""


class WaitLoop:
    """Polls until something is ready: backs off, books the wait, and fails if nothing arrives for too long.

    The ring's engine waits in it for the next action that can run (`ringtmp.ring.engine`), a worker of the parameter
    server for weights (`ringtmp.ps.worker`), and each of the server's ranks for the end of the run (`ringtmp.ps.rank`).

    Parameters
    ----------
    backoff : Backoff
        How to pause.
    poll : callable
        Moves messages and sends signs of life. True if there was progress: it books its own time, and the limit counts
        from here on.
    book : callable
        Called with begin and end (`clock`) of each piece of the wait.
    stalled : callable
        Gives the message of the `RunFailure`, for the nanoseconds without progress.
    limit : float
        Seconds without progress after which the wait fails.
    idle : callable
        Called with the time (`clock`) in each turn without progress; may raise, for a neighbour that is gone.
    booked : callable
        A number that grows whenever time has been booked as something else: it ends a piece of the wait, and does not
        count as progress.
    """

    def __init__(
        self,
        backoff: Backoff,
        poll: Callable[[], bool],
        book: Callable[[int, int], None],
        stalled: Callable[[int], str] = "no progress for {} ns".format,
        limit: float = math.inf,
        idle: Callable[[int], None] = _nothing,
        booked: Callable[[], int] = lambda: 0,
    ) -> None:
        self.backoff, self.poll, self.book, self.idle, self.booked = backoff, poll, book, idle, booked
        self.stalled, self.limit = stalled, limit * 1e9

    def until(self, ready: Callable[[], bool], since: int) -> int:
        """Poll until `ready()` is true.

        Parameters
        ----------
        ready : callable
            Whether the wait can end.
        since : int
            When the wait began (`clock`).

        Returns
        -------
        int
            Begin of the poll that ended the wait, which is not booked as a wait.

        Raises
        ------
        RunFailure
            There was no progress for `limit` seconds.
        """
        self.backoff.reset()
        began, events = since, self.booked()
        while True:
            begin = clock()
            moved = self.poll()
            # End the piece of the wait that was interrupted.
            if moved or self.booked() != events:
                self.book(since, begin)
                since, events = clock(), self.booked()
            if moved:
                began = since
                self.backoff.reset()
                begin = since
            # Continue if possible, and fail if nothing has arrived for too long.
            if ready():
                self.book(since, max(begin, since))
                return begin
            if moved:
                continue
            self.idle(begin)
            if begin - began > self.limit:
                raise RunFailure(self.stalled(begin - began))
            self.backoff.pause()

    def blocked(self, since: int) -> None:
        """Make one turn while something else, such as a synchronous send, waits since `since` (`clock`).

        Raises `RunFailure` after `limit` seconds.
        """
        self.poll()
        now = clock()
        self.idle(now)
        if now - since > self.limit:
            raise RunFailure(self.stalled(now - since))
        os.sched_yield()

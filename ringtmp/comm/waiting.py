"""How a rank waits: spin, then yield, then sleep."""

import os
import time


class Backoff:
    """How to wait: spin while cores last, then yield, then sleep in small steps where ranks outnumber cores.

    Parameters
    ----------
    crowded : bool
        Whether this node has more ranks than cores.

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

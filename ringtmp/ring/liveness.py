"""Signs of life between neighbours: who is silent for too long is taken for hung.

Whatever comes from a neighbour is a sign; one that has nothing else to say sends a beat now and then, also while it
waits. A rank looks at the time only while it waits itself, so a long computation of its own counts against nobody.
"""

from ringtmp.comm.point_to_point import ControlChannel
from ringtmp.ring.tokens import BEAT
from ringtmp.trace.recorder import clock

_BEATS = 4  # in the time after which silence means something


class Liveness:
    """The left and the right neighbour of this rank.

    Parameters
    ----------
    left, right : int
        The same rank where there are two.
    forth, back : ControlChannel
        To the right, and to the left.
    limit : float
        Seconds of silence.
    """

    def __init__(self, left: int, right: int, forth: ControlChannel, back: ControlChannel, limit: float) -> None:
        self.links, self.limit = (forth, back), int(limit * 1e9)
        self.heard = {left: clock(), right: clock()}  # since when nothing has come from those who have not left
        self.links_left = {left: 2, right: 2} if left == right else {left: 1, right: 1}  # on which they can say so
        self.beaten = clock()
        self.leaving = False

    def poll(self, *heard: int) -> None:
        """Note from whom something has come, and give a sign of life if one is due."""
        now = clock()
        for rank in heard:
            if rank in self.heard:
                self.heard[rank] = now
        if now - self.beaten > self.limit // _BEATS and not self.leaving:
            self.beaten = now
            for link in self.links:
                link.send((BEAT, 0.0))

    def forget(self, rank: int) -> None:
        """It has finished, and says nothing more on one of the links from it."""
        self.links_left[rank] -= 1
        if not self.links_left[rank]:
            del self.heard[rank]

    def leave(self) -> None:
        """This rank has finished: the last message on each link."""
        self.leaving = True
        for link in self.links:
            link.send((BEAT, 1.0))

    def silent(self, now: int) -> int:
        """A neighbour that has been silent for too long, or -1."""
        return next((rank for rank, since in self.heard.items() if now - since > self.limit), -1)

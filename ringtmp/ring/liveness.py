"""Where a rank notices that its neighbour is gone: one that has been silent for too long is taken for hung.

Whatever arrives from a neighbour is a sign of life; a rank that has nothing else to send sends a `SignOfLife` now and
then, also while it waits. A rank looks at the time only while it waits itself, so a long computation of its own counts
against nobody.
"""

from collections.abc import Callable

from ringtmp.comm import ulfm
from ringtmp.comm.mpi import warn
from ringtmp.comm.peers import Peers
from ringtmp.errors import RunFailure
from ringtmp.ring.links import RingLinks
from ringtmp.ring.messages import SignOfLife
from ringtmp.trace.recorder import clock

_SIGNS = 4  # signs of life in the time after which silence means something


class Liveness:
    """The left and the right neighbour of this rank.

    Parameters
    ----------
    links : RingLinks
        Of at least 2 ranks.
    limit : float
        Seconds of silence after which a neighbour is taken for hung (`heartbeat_timeout`).
    hung : callable
        Called once with the rank of a neighbour that is taken for hung.
    """

    def __init__(self, links: RingLinks, limit: float, hung: Callable[[int], None]) -> None:
        self.links, self.limit, self.hung = links, int(limit * 1e9), hung
        left, right = links.left, links.right
        # Since when nothing has come from each neighbour that has not finished: the same rank twice on two ranks.
        self.heard = {left: clock(), right: clock()}
        # Mailboxes in which a neighbour has yet to say that it leaves.
        self.to_leave = {left: 2, right: 2} if left == right else {left: 1, right: 1}
        self.last_sign = clock()
        self.leaving = False
        for mailbox in (links.to_right, links.to_left):
            mailbox.on(SignOfLife, self._on_sign_of_life)

    def poll(self, left: bool, right: bool) -> None:
        """Note whether something has come from the left and the right neighbour; send a sign of life if one is due."""
        now = clock()
        heard = self.heard
        if left and self.links.left in heard:
            heard[self.links.left] = now
        if right and self.links.right in heard:
            heard[self.links.right] = now
        if now - self.last_sign > self.limit // _SIGNS and not self.leaving:
            self.last_sign = now
            self._send(SignOfLife(leaving=False))

    def _send(self, sign: SignOfLife) -> None:
        self.links.to_right.send(self.links.right, sign, None)
        self.links.to_left.send(self.links.left, sign, None)

    def _on_sign_of_life(self, sender: int, message: SignOfLife) -> None:
        if message.leaving:
            self.to_leave[sender] -= 1
            if not self.to_leave[sender]:
                del self.heard[sender]

    def leave(self) -> None:
        """Send this rank's last message to both neighbours."""
        self.leaving = True
        self._send(SignOfLife(leaving=True))

    @property
    def all_left(self) -> bool:
        """Whether both neighbours have sent their last message."""
        return not self.heard

    def check(self, now: int) -> None:
        """Call `hung` for a neighbour that has been silent for too long at the time `now`, once."""
        for rank, since in self.heard.items():
            if now - since > self.limit:
                self.heard[rank] = now
                self.hung(rank)
                return


class HungRanks:
    """Ends neighbours that are taken for hung.

    Parameters
    ----------
    peers : Peers
        Process of each rank.
    rank : int
        This rank.
    limit : float
        Seconds of silence after which a neighbour is taken for hung (`heartbeat_timeout`).
    """

    def __init__(self, peers: Peers, rank: int, limit: float) -> None:
        self.peers, self.rank, self.limit = peers, rank, limit
        self.missing: set[int] = set()  # ranks that have ended, which MPI has not reported yet

    def end(self, rank: int) -> None:
        """Kill a rank, if it is on this host, and end the job.

        With ULFM the killed process is reported as a loss like any other, and the job continues.

        Raises
        ------
        RunFailure
            The job has to end.
        """
        name, action = self.peers.name(rank), "it is out of reach from here, and the job ends"
        if self.peers.is_local(rank):
            ended, action = self.peers.has_ended(rank), "killed"
            self.peers.kill(rank)
            if ulfm.available() and not ended:
                warn(f"finds that {name} gives no sign of life (--heartbeat-timeout), and has killed it")
                return
            if ulfm.available() and rank not in self.missing:  # the other neighbour may have killed it just now
                self.missing.add(rank)
                return
            if ulfm.available():
                self._end_all(f"{name} has ended, which MPI was not told")
        raise RunFailure(
            f"{name} has given no sign of life for {self.limit:g} s (--heartbeat-timeout): taken for hung; {action}"
        )

    def _end_all(self, why: str) -> None:
        """End every process of this host: MPI waits for ever for a rank that has ended other than by a signal."""
        warn(f"ends the job: {why}")
        for rank in self.peers.local():
            if rank != self.rank:
                self.peers.kill(rank)
        ulfm.die()

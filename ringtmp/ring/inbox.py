"""What a rank reads whenever it looks: micro-batches, control messages, copies of stages, sums across rings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringtmp.ring.chunk import Chunk
from ringtmp.ring.data_parallel import CrossRingSums
from ringtmp.ring.gates import NormKnown
from ringtmp.ring.links import RingLinks
from ringtmp.ring.liveness import Liveness
from ringtmp.ring.replicas import Replicas
from ringtmp.ring.tokens import Tokens

if TYPE_CHECKING:
    from mpi4py.MPI import Prequest


class Inbox:
    """Everything of this rank that receives.

    Parameters
    ----------
    links : RingLinks
    chunks : sequence of Chunk
    tokens : Tokens
    liveness : Liveness or None
        None on one rank.
    replicas : Replicas or None
        Where stages are copied to other nodes.
    sums : CrossRingSums or None
        Where there are several rings.
    norm : NormKnown or None
        With `clip_norm`.
    """

    def __init__(
        self,
        links: RingLinks,
        chunks: Sequence[Chunk],
        tokens: Tokens,
        liveness: Liveness | None = None,
        replicas: Replicas | None = None,
        sums: CrossRingSums | None = None,
        norm: NormKnown | None = None,
    ) -> None:
        self.links, self.chunks, self.tokens = links, chunks, tokens
        self.liveness, self.replicas, self.sums, self.norm = liveness, replicas, sums, norm

    def poll(self) -> int:
        """Read all that has arrived, free and assign slots.

        Returns
        -------
        int
            The rank of a neighbour from which a micro-batch has come, or -1.
        """
        links = self.links
        peer, left, right = -1, False, False
        for chunk in self.chunks:
            came, back = chunk.poll()
            if came:
                peer, left = links.left, True
            if back:
                peer, right = links.right, True
        if self.replicas is not None:
            self.replicas.poll()
        if self.sums is not None:
            self.sums.poll()
        # Orders last: one that was sent before a micro-batch or a sum that has been read above has arrived by now.
        if self.tokens.poll():
            left = True
        if self.liveness is not None:
            if links.to_left.poll():
                right = True
            self.liveness.poll(left, right)
        if self.norm is not None:
            self.tokens.sum_squares(self.norm)
        return peer

    def check_neighbours(self, now: int) -> None:
        """Look for a neighbour that gives no sign of life at the time `now` (`clock`)."""
        if self.liveness is not None:
            self.liveness.check(now)

    def finished(self) -> bool:
        """Whether all phases have been run, and nothing that others wait for is left to send."""
        return (
            all(chunk.finished() for chunk in self.chunks)
            and self.tokens.finished()
            and (self.replicas is None or self.replicas.finished(self.tokens.updates))
        )

    def requests(self) -> "list[Prequest]":
        """All persistent requests, started or not: those that `close` frees."""
        return self.links.requests() + (self.replicas.requests() if self.replicas else [])

    def close(self) -> None:
        """Free all requests. Collective."""
        self.links.close_receives()
        for part in (self.replicas, self.sums, self.tokens):
            if part is not None:
                part.close()
        self.links.close_sends()

"""Replicas: each version of a rank's stages is copied to the ranks on its right, piece by piece, beside the training.

A rank that has updated a stage holds the new version and the one before it (`ringtmp.resilience.node_memory`). The new
one goes to the right neighbour in pieces, never more than `_WINDOW` under way, so that an activation waits for a few at
most; with `depth` above 1 it goes on from neighbour to neighbour. The last holder reports to the left.

One rule keeps a step complete everywhere without any rank asking: a rank runs the *last forward* of a step only once
its own version of that step is held by all its replicas (`ringtmp.ring.gates.CopyDurable`). No rank can update without
every rank's last forward, so when version k + 2 overwrites k, version k + 1 is complete on every rank and in every
replica: at any moment some step has all its layers in two places, and it is at most one behind the newest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringtmp.resilience.node_memory import NodeMemory, ReplicaLayout, StageReplica
from ringtmp.resilience.replica_stream import Incoming, Outgoing, PieceReceiver, PieceSender, pieces_of
from ringtmp.ring.gates import CopyDurable
from ringtmp.ring.links import RingLinks
from ringtmp.ring.messages import ReplicaComplete, tag_of
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Prequest

_WINDOW = 2  # pieces under way


@dataclass
class Lane:
    """A stage of some rank on its way here and on from here.

    Attributes
    ----------
    chunk : int
        Index of the stage among those of its owner.
    distance : int
        Hops from its owner to this rank; 0: this rank's own.
    sides : two replicas
        Version v lies in side (v - start) modulo 2.
    newest : int
        Version that is complete here.
    sent : int
        Newest version that has left completely, or that need not leave from here.
    receiver, sender : PieceReceiver or None, PieceSender or None
        From the left neighbour, and to the right one.
    incoming, outgoing : lists of pieces
        For each side, what `receiver` and `sender` have prepared.
    """

    chunk: int
    distance: int
    sides: tuple[StageReplica, StageReplica]
    newest: int
    sent: int
    receiver: PieceReceiver | None
    sender: PieceSender | None
    incoming: list[Incoming]
    outgoing: list[Outgoing]
    passed_on: int = -1  # version of which this rank has passed on to the left that the last holder has it
    sending: int = -1  # version that leaves now


@dataclass(frozen=True)
class CopySettings:
    """Where the stages of this rank lie in the node's memory, and where they are copied to.

    Attributes
    ----------
    sides : sequence of pairs of StageReplica
        This rank's stages; the first of each holds the version of the engine's start.
    memory : NodeMemory
    nodes : sequence of str
        Node of each rank.
    depth : int
        Number of right-hand neighbours that hold a copy of each rank's stages, fewer than there are ranks.
    clear : callable
        Called once no copy made before the engine's start can be needed any more.
    """

    sides: Sequence[tuple[StageReplica, StageReplica]]
    memory: NodeMemory
    nodes: Sequence[str]
    depth: int
    clear: Callable[[], None]


class Replicas:
    """This rank's part in the copying. Collective over the ring.

    Parameters
    ----------
    links : RingLinks
    durable : sequence of CopyDurable
        A gate for each of this rank's stages, which it opens.
    settings : CopySettings
    start : int
        Updates made before.
    recorder : Recorder
    probe : FaultProbe or None
    """

    def __init__(
        self,
        links: RingLinks,
        durable: Sequence[CopyDurable],
        settings: CopySettings,
        start: int,
        recorder: Recorder,
        probe: FaultProbe | None = None,
    ) -> None:
        self.links, self.durable, self.recorder, self.probe = links, durable, recorder, probe
        self.depth, self.start, self.clear = settings.depth, start, settings.clear
        self.cleared = False
        self.lanes: dict[tuple[int, int], Lane] = {}
        links.to_left.on(ReplicaComplete, self._on_replica_complete)
        rank, size = links.rank, links.size
        sent = [_is_sent(settings.nodes, owner, self.depth) for owner in range(size)]

        # Learn what the ranks on the left hold, by distance, and make room for their stages.
        layouts: list[list[ReplicaLayout]] = [[copies[0].layout for copies in settings.sides]]
        for distance in range(1, self.depth + 1):
            layouts.append(links.comm.sendrecv(layouts[-1], links.right, source=links.left))
            if sent[(rank - distance) % size]:
                for c, layout in enumerate(layouts[distance]):
                    self._add(c, distance, settings.memory.create(layout, rank), start - 1)

        # This rank's own stages.
        for c, sides in enumerate(settings.sides):
            if sent[rank]:
                durable[c].version = start - 1
                self._add(c, 0, sides, start)

    def _add(self, chunk: int, distance: int, sides: tuple[StageReplica, StageReplica], newest: int) -> None:
        links, number = self.links, chunk * self.links.size + distance
        receiver, sender = None, None
        if distance:
            receiver = PieceReceiver(links.comm, links.left, tag_of("replica", number), _WINDOW)
        if distance < self.depth:
            tag = tag_of("replica", number + 1)
            sender = PieceSender(links.comm, links.right, tag, self.recorder, self.probe, _WINDOW)
        pieces = [pieces_of(side.payload) for side in sides]
        self.lanes[distance, chunk] = lane = Lane(
            chunk,
            distance,
            sides,
            newest,
            self.start - 1 if sender else 1 << 62,
            receiver,
            sender,
            [receiver.prepare(each) for each in pieces] if receiver else [],
            [sender.prepare(each) for each in pieces] if sender else [],
        )
        if receiver:
            receiver.expect(lane.incoming[self._side(newest + 1)])

    # ---- while training -----------------------------------------------------------------------------------------

    def updated(self, chunk: int, version: int) -> None:
        """This rank has made `version` of one of its own stages."""
        lane = self.lanes.get((0, chunk))
        if lane:
            lane.newest = version
            self._send(lane)
        if version >= self.start + 2 and not self.cleared:  # so version start + 1 is complete everywhere
            self.cleared = True
            self.clear()

    def poll(self) -> None:
        """Receive and send what can move."""
        for lane in self.lanes.values():
            if lane.receiver is not None:
                self._receive(lane, lane.receiver)
            if lane.sent < lane.newest:
                self._send(lane)

    def _on_replica_complete(self, sender: int, message: ReplicaComplete) -> None:
        """The last holder of a stage of this rank, or of a rank to its left, has a version completely."""
        chunk, version, hops = message
        if hops > 1:
            self._send_left(ReplicaComplete(chunk, version, hops - 1))
            self.lanes[hops - 1, chunk].passed_on = version
        else:
            self.durable[chunk].version = version

    def _send_left(self, message: ReplicaComplete) -> None:
        self.links.to_left.send(self.links.left, message, None)

    def _side(self, version: int) -> int:
        return (version - self.start) % 2

    def _receive(self, lane: Lane, receiver: PieceReceiver) -> None:
        side = lane.sides[self._side(lane.newest + 1)]
        while receiver.poll():
            if receiver.arrived == 1:
                side.begin()
            if not receiver.complete():
                continue
            lane.newest += 1
            side.commit(lane.newest)
            if lane.distance == self.depth:
                self._send_left(ReplicaComplete(lane.chunk, lane.newest, lane.distance))
            else:
                self._send(lane)
            # The next version overwrites the one before this, which has left: the owner has waited for that.
            receiver.expect(lane.incoming[self._side(lane.newest + 1)])
            return

    def _send(self, lane: Lane) -> None:
        assert lane.sender is not None
        if lane.sending <= lane.sent:
            lane.sending = lane.sent + 1
            side = self._side(lane.sending)
            lane.sender.add(lane.outgoing[side], lane.sending, lane.sides[side].layout.stage)
        lane.sender.poll()
        if lane.sender.idle():
            lane.sent = lane.sending

    # ---- end ----------------------------------------------------------------------------------------------------

    def finished(self, version: int) -> bool:
        """Whether every copy of `version` is where it belongs, those of the left ranks on this rank included."""
        if any(lane.newest < version or lane.sent < version for lane in self.lanes.values()):
            return False
        # A rank that left before it had passed on what others wait for would let them wait for ever.
        between = [lane for lane in self.lanes.values() if 0 < lane.distance < self.depth]
        return all(lane.passed_on >= version for lane in between) and all(
            gate.version >= version for gate in self.durable
        )

    def _ends(self) -> list[PieceReceiver | PieceSender]:
        return [end for lane in self.lanes.values() for end in (lane.receiver, lane.sender) if end is not None]

    def requests(self) -> "list[Prequest]":
        """All persistent requests."""
        return [request for end in self._ends() for request in end.requests()]

    def close(self) -> None:
        """Free all requests, once no piece is on its way."""
        for end in self._ends():
            end.close()


def _is_sent(nodes: Sequence[str], owner: int, depth: int) -> bool:
    """Whether the stages of rank `owner` are copied: copies in the same node's memory would protect nothing."""
    return any(nodes[(owner + distance) % len(nodes)] != nodes[owner] for distance in range(1, depth + 1))

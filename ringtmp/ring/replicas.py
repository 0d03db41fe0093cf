"""Replicas: each version of a rank's stages is copied to the ranks on its right, piece by piece, beside the training.

A rank that has updated a stage holds the new version and the one before it (`ringtmp.resilience.node_memory`). The new one goes to
the right neighbour in pieces, never more than `_AHEAD` under way, so that an activation waits for a few at most; with
`depth` above 1 it goes on from neighbour to neighbour. The last holder says so to the left.

One rule keeps a step whole everywhere without anybody asking: a rank runs the *last forward* of a step only once its
own version of that step is held by all its replicas (`ringtmp.ring.gates.CopyDurable`). No rank can update without every rank's last
forward, so when a version k + 2 overwrites k, version k + 1 is whole on every rank and in every replica: at any moment
some step has all its layers in two places, and it is at most one behind the newest.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringtmp.resilience.node_memory import Copy, NodeMemory
from ringtmp.ring.gates import CopyDurable
from ringtmp.ring.links import RingLinks
from ringtmp.ring.messages import ReplicaComplete, tag_of
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

PIECE = 1 << 18  # bytes of a message: 20 ms at 100 Mbit/s
_AHEAD = 2  # pieces under way


@dataclass
class Lane:
    """A stage of some rank on its way here and on from here.

    Attributes
    ----------
    sides : two copies
        Version v lies in side (v - start) modulo 2.
    distance : int
        Hops from its owner to this rank; 0: this rank's own.
    newest : int
        Version that is whole here.
    """

    chunk: int
    distance: int
    sides: tuple[Copy, Copy]
    newest: int
    receives: tuple[list["Prequest"], list["Prequest"]] = field(default_factory=lambda: ([], []))
    sends: tuple[list["Prequest"], list["Prequest"]] = field(default_factory=lambda: ([], []))
    posted: int = 0  # pieces of version newest + 1 whose receive is posted
    arrived: int = 0  # and those that are here
    sent: int = 0  # versions that have left wholly
    started: int = 0  # pieces of the version that leaves now
    told: int = -1  # version of which this rank has passed on that the last holder has it
    flying: deque["Prequest"] = field(default_factory=deque)


@dataclass(frozen=True)
class CopySettings:
    """Where the stages of this rank lie in the node's memory, and where they are copied to.

    Attributes
    ----------
    sides : sequence of pairs of Copy
        This rank's stages; the first of each holds the version of the engine's start.
    memory : NodeMemory
    nodes : sequence of str
        Node of each rank.
    depth : int
        Number of right-hand neighbours that hold a copy of each rank's stages, fewer than there are ranks.
    clear : callable
        Called once no copy made before the engine's start can be needed any more.
    """

    sides: Sequence[tuple[Copy, Copy]]
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
        comm, sides, memory, nodes, depth = links.comm, settings.sides, settings.memory, settings.nodes, settings.depth
        self.links, self.durable, self.recorder = links, durable, recorder
        self.rank, self.size, self.depth, self.start, self.clear = comm.rank, comm.size, depth, start, settings.clear
        self.right = links.right
        self.lanes: dict[tuple[int, int], Lane] = {}
        links.to_left.on(ReplicaComplete, self._complete)
        leaves = [_leaves(nodes, owner, depth) for owner in range(comm.size)]
        shapes = [[copies[0].shape for copies in sides]]  # by distance: of the stages of rank - distance
        for distance in range(1, depth + 1):
            shapes.append(comm.sendrecv(shapes[-1], self.right, source=(comm.rank - 1) % comm.size))
            if leaves[(self.rank - distance) % self.size]:
                for c, shape in enumerate(shapes[distance]):
                    self._add(comm, Lane(c, distance, memory.create(shape, comm.rank), start - 1))
        for c, copies in enumerate(sides):
            if leaves[self.rank]:
                durable[c].version = start - 1
                self._add(comm, Lane(c, 0, copies, start))
        self.cleared, self.probe = False, probe

    def _add(self, comm: "Intracomm", lane: Lane) -> None:
        self.lanes[lane.distance, lane.chunk] = lane
        lane.sent = self.start - 1 if lane.distance < self.depth else 1 << 62
        for side, copy in enumerate(lane.sides):
            payload = copy.payload
            cuts = range(0, len(payload), PIECE)
            lane_here = lane.chunk * self.size + lane.distance
            if lane.distance:
                source = (self.rank - 1) % self.size
                tag = tag_of("replica", lane_here)
                lane.receives[side].extend(comm.Recv_init(payload[at : at + PIECE], source, tag) for at in cuts)
            if lane.distance < self.depth:
                tag = tag_of("replica", lane_here + 1)
                lane.sends[side].extend(comm.Send_init(payload[at : at + PIECE], self.right, tag) for at in cuts)
        if lane.distance:
            self._post(lane)

    # ---- while training -----------------------------------------------------------------------------------------

    def updated(self, chunk: int, version: int) -> None:
        """This rank has made a version of its own."""
        lane = self.lanes.get((0, chunk))
        if lane:
            lane.newest = version
            self._send(lane)
        if version >= self.start + 2 and not self.cleared:  # so version start + 1 is whole everywhere
            self.cleared = True
            self.clear()

    def poll(self) -> None:
        """Move on what is on its way."""
        for lane in self.lanes.values():
            if lane.distance:
                self._receive(lane)
            if lane.sent < lane.newest:
                self._send(lane)

    def _complete(self, sender: int, message: ReplicaComplete) -> None:
        """The last holder of a stage of this rank, or of a rank to its left, has a version completely."""
        chunk, version, hops = message
        if hops > 1:
            self._send_left(ReplicaComplete(chunk, version, hops - 1))
            self.lanes[hops - 1, chunk].told = version
        else:
            self.durable[chunk].version = version

    def _send_left(self, message: ReplicaComplete) -> None:
        self.links.to_left.send(self.links.left, message, None)

    def _side(self, version: int) -> int:
        return (version - self.start) % 2

    def _post(self, lane: Lane) -> None:
        requests = lane.receives[self._side(lane.newest + 1)]
        while lane.posted < min(len(requests), lane.arrived + _AHEAD):
            requests[lane.posted].Start()
            lane.posted += 1

    def _receive(self, lane: Lane) -> None:
        side = self._side(lane.newest + 1)
        requests = lane.receives[side]
        while requests[lane.arrived].Test():
            if not lane.arrived:
                lane.sides[side].begin()
            lane.arrived += 1
            if lane.arrived < len(requests):
                self._post(lane)
                continue
            lane.newest, lane.arrived, lane.posted = lane.newest + 1, 0, 0
            lane.sides[side].commit(lane.newest)
            if lane.distance == self.depth:
                self._send_left(ReplicaComplete(lane.chunk, lane.newest, lane.distance))
            else:
                self._send(lane)
            # The version that comes next overwrites the one before this, which has gone on: the owner waited for that.
            self._post(lane)
            return

    def _send(self, lane: Lane) -> None:
        flying, version = lane.flying, lane.sent + 1
        while flying and flying[0].Test():
            flying.popleft()
        requests = lane.sends[self._side(version)]
        while lane.started < len(requests) and len(flying) < _AHEAD:
            if self.probe:
                self.probe.at("replicate", version - 1)
            begin = clock()
            requests[lane.started].Start()
            flying.append(requests[lane.started])
            copy = lane.sides[self._side(version)]
            size = min(PIECE, len(copy.payload) - lane.started * PIECE)
            self.recorder.record("replicate", begin, clock(), version - 1, -1, self.right, size, copy.shape.stage)
            lane.started += 1
        if lane.started == len(requests) and not flying:
            lane.sent, lane.started = version, 0

    # ---- end ----------------------------------------------------------------------------------------------------

    def finished(self, version: int) -> bool:
        """Whether every copy of `version` is where it belongs, the left ranks' here included."""
        if any(lane.newest < version or lane.sent < version for lane in self.lanes.values()):
            return False
        # Who says good-bye before it has passed on what others wait for lets them wait for ever.
        between = [lane for lane in self.lanes.values() if 0 < lane.distance < self.depth]
        return all(lane.told >= version for lane in between) and all(gate.version >= version for gate in self.durable)

    def requests(self) -> "list[Prequest]":
        """All persistent requests."""
        lanes = self.lanes.values()
        return [each for lane in lanes for side in (*lane.receives, *lane.sends) for each in side]

    def close(self) -> None:
        """Give back all requests; when nothing is on its way."""
        for lane in self.lanes.values():
            requests = lane.receives[self._side(lane.newest + 1)]
            for request in requests[: lane.posted]:
                request.Cancel()
                request.Wait()
        for request in self.requests():
            request.Free()


def _leaves(nodes: Sequence[str], owner: int, depth: int) -> bool:
    """Whether the copies of a rank's stages are sent: in the memory that they come from they would protect nothing."""
    return any(nodes[(owner + distance) % len(nodes)] != nodes[owner] for distance in range(1, depth + 1))

"""A server's ranges in its node's memory (`ringtmp.resilience.node_memory`): what they are after a step, in two versions.

Version k of a range is what it is once it has passed step k: every worker's gradients of the steps before k are in it,
and with SSP and ASP some of later ones. A range is copied while the server waits, or at the latest before its next
update, so that most of the cost hides behind the workers' computing.

Two rules keep a step whole on all servers at any moment, at most one behind the newest:

- A server writes version k + 1 over k - 1 only once every server has said that its version k is *durable*: copied, and
  on the rank of another node that mirrors it (`ps.mirror`). With that word goes the step that all its ranges have
  passed: where they are further, as after the loss of a slow worker with ASP, the next version is the least of these.
- The slowest workers get a server's *last* range, which their forward needs last, only once its version is durable. So
  copies that take longer than the forward of the layers before slow the training down, and never fall behind it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ps import messages as post
from ps.messages import Message, Post
from ps.mirror import Outgoing
from ps.server import Served
from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange
from ringtmp.nn.stage import Stage
from ringtmp.resilience.node_memory import ParameterRange, ReplicaLayout, StageReplica, arrays_of
from ringtmp.resilience.recovery import Recalled
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Sides = tuple[StageReplica, StageReplica]
Taken = dict[int, tuple[Array, dict[str, Array]]]  # by key range: weights and slots


def holders(ranges: Sequence[KeyRange]) -> list[int]:
    """Servers that have ranges: with few parameters some have none."""
    return sorted({keys.server for keys in ranges})


def layout_of(
    model: Model, ranges: Sequence[KeyRange], server: int, slots: Sequence[str], dtype: str, generation: int
) -> ReplicaLayout:
    """What a copy of a server's ranges holds; the first one's also layers that have no parameters."""
    parts = [(s.layer, s.start, s.stop) for keys in ranges if keys.server == server for s in keys.segments]
    if server == holders(ranges)[0]:
        parts += [(n, 0, 0) for n, layer in enumerate(model.layers) if not layer.count]
    return ReplicaLayout(
        generation,
        server,
        server,
        tuple(n for n, _, _ in parts),
        tuple(stop - start for _, start, stop in parts),
        tuple(model.layers[n].to_table() for n, _, _ in parts),
        len(model.layers),
        tuple(slots),
        dtype,
        tuple(start for _, start, _ in parts),
        tuple(model.layers[n].count for n, _, _ in parts),
    )


class Versions:
    """This server's versions.

    Parameters
    ----------
    served : sequence of Served
        This server's ranges, at least one, with their values after `start` steps.
    sides : two copies
        New ones.
    letters : Post
    servers : sequence of int
        All that have ranges.
    start, period : int
        Steps made before; steps between two exchanges.
    recorder : Recorder
    mirror : Outgoing or None
    clear : callable
        Called once nothing before `start` can be needed any more.
    """

    def __init__(
        self,
        served: Sequence[Served],
        sides: Sides,
        letters: Post,
        servers: Sequence[int],
        *,
        start: int,
        period: int,
        recorder: Recorder,
        mirror: Outgoing | None = None,
        clear: Callable[[], None] = lambda: None,
    ) -> None:
        self.served = {each.keys.number: each for each in served}
        self.sides, self.post, self.servers = list(sides), letters, servers  # the first one is written next
        self.start, self.period, self.recorder, self.mirror, self.clear = start, period, recorder, mirror, clear
        self.made = dict.fromkeys(self.served, start)  # steps that each range has passed
        self.last = max(self.served)  # the range that a forward needs last
        self.places: dict[int, int] = {}  # of each range's first segment among the copy's parts
        place = 0
        for number, each in self.served.items():
            self.places[number] = place
            place += len(each.keys.segments)
        for side in sides:
            for empty in range(place, len(side.layout.layers)):
                side.seal(empty)
        self.target = start  # the version that is being written, or was last
        self.committed = self.durable = -1
        self.agreed = True  # every server has the version before `target`
        self.lacking = set(self.served)  # ranges that `target` lacks
        self.reports: dict[int, dict[int, int]] = {}  # by version and server: the step that all its ranges have passed
        letters.on(post.HELD, self._held)
        while self.lacking:
            self._copy(min(self.lacking))
        self._commit()

    def passed(self, served: Served, steps: int) -> None:
        """A range holds the updates of so many steps."""
        self.made[served.keys.number] = steps

    def before_update(self, served: Served) -> None:
        """A range is about to change: copy it if it has not been yet."""
        if self._due(served.keys.number):
            self._keep(served.keys.number)

    def withholds(self, served: Served, step: int) -> bool:
        """Whether the answer to a worker's push of `step` has to wait."""
        number = served.keys.number
        if number != self.last:
            return False
        due = self.target if self.durable < self.target else self._after(self.target)
        return due <= step + 1 <= self.made[number]

    def poll(self, waiting: bool) -> bool:
        """Move on what is on its way, copy a range if this rank is `waiting`; whether anything has happened.

        A version that is complete counts, and one that is durable is told.
        """
        moved = self.mirror.poll() if self.mirror else False
        if waiting and not moved:
            number = next((number for number in self.lacking if self._due(number)), -1)
            if number >= 0:
                self._keep(number)
                moved = True
        if not self.lacking and self.committed < self.target:
            self._commit()
            moved = True
        if self.durable < self.committed and (not self.mirror or self.mirror.has(self.committed)):
            self.durable, self.agreed = self.committed, False
            self.post.tell(self.servers, post.HELD, self.durable, min(self.made.values()))
            moved = True
        return moved

    def _after(self, version: int) -> int:
        """The step of the exchange after that of `version`."""
        return (version // self.period + 1) * self.period

    def _due(self, number: int) -> bool:
        return self.agreed and number in self.lacking and self.made[number] >= self.target

    def _keep(self, number: int) -> None:
        begin, served = clock(), self.served[number]
        self._copy(number)
        size = served.weights.nbytes * (1 + len(served.slots))
        self.recorder.record("replicate", begin, clock(), self.target - 1, size=size, stage=number)

    def _copy(self, number: int) -> None:
        side, served = self.sides[0], self.served[number]
        if len(self.lacking) == len(self.served):
            side.begin()
            if self.mirror:
                self.mirror.begin(self.target, side)
        for place, (_, start, stop, at) in enumerate(served.keys.segments, self.places[number]):
            flat, slots = side.arrays(place)
            there = slice(at, at + stop - start)
            flat[...] = served.weights[there]
            for name, slot in slots.items():
                slot[...] = served.slots[name][there]
            side.seal(place)  # while it is in the cache
        self.lacking.discard(number)
        if self.mirror:
            self.mirror.add(self.target, number)

    def _commit(self) -> None:
        """Let a version count that is complete."""
        self.sides[0].commit(self.target)
        self.committed = self.target
        if self.mirror:
            self.mirror.add(self.target)
        self.sides.reverse()

    def _held(self, server: int, message: Message) -> None:
        """A server's version is durable; with the last of them the next one is agreed on, the same by all."""
        version = int(message[1])
        reports = self.reports.setdefault(version, {})
        reports[server] = int(message[2])
        if len(reports) < len(self.servers):
            return
        del self.reports[version]
        if version > self.start:
            clear, self.clear = self.clear, lambda: None
            clear()
        self.target, self.agreed = max(self._after(version), min(reports.values())), True
        self.lacking = set(self.served)

    def finish(self) -> bool:
        """Nothing follows; whether the mirror has been told."""
        return not self.mirror or self.mirror.finish()


# ---- going on from what the nodes remember ------------------------------------------------------------------------


def take(
    comm: "Intracomm",
    recalled: Recalled,
    ranges: Sequence[KeyRange],
    slots: Sequence[str],
    dtype: np.dtype,
    stage: Stage | None,
) -> Taken:
    """Bring remembered layers to whoever needs them. Collective over `comm`.

    Weights go to all ranks, as every worker needs them; slots to the servers that have those ranges, or to everybody
    where there are none.

    Parameters
    ----------
    comm : Intracomm
    recalled : Recalled
        The same on every rank.
    ranges : sequence of KeyRange
        All, as they are dealt from here on; empty where nobody serves.
    slots : sequence of str
        Those that a server keeps; what is not remembered of them begins at 0.
    dtype : numpy dtype
    stage : Stage or None
        A worker's layers, to be filled in.

    Returns
    -------
    dict
        This rank's ranges.
    """
    taken: Taken = {
        keys.number: (np.zeros(keys.size, dtype), {name: np.zeros(keys.size, dtype) for name in slots})
        for keys in ranges
        if keys.server == comm.rank
    }
    for part, (holder, path) in sorted(recalled.where.items()):
        held = arrays_of(path, part) if holder == comm.rank else None
        flat = held[0] if held else np.empty(part.stop - part.start, dtype)
        comm.Bcast(flat, holder)
        for keys in ranges:
            if keys.number in taken:
                _put(keys, part, flat, taken[keys.number][0])
        if stage:
            stage.states[part.layer].flat[part.start : part.stop] = flat
        takers = [rank for rank in range(comm.size) if not ranges or _meets(ranges, rank, part)]
        for number, name in enumerate(recalled.slots):
            if held:
                for rank in takers:
                    if rank != holder:
                        comm.Send(held[1][name], rank, number)
            if comm.rank not in takers:
                continue
            numbers = held[1][name] if held else np.empty_like(flat)
            if not held:
                comm.Recv(numbers, holder, number)
            for keys in ranges:
                if keys.number in taken and name in slots:
                    _put(keys, part, numbers, taken[keys.number][1][name])
            if not ranges and stage:
                stage.states[part.layer].slots[name][part.start : part.stop] = numbers
    return taken


def _put(keys: KeyRange, part: ParameterRange, numbers: Array, into: Array) -> None:
    """Put what a range has of a part of a layer in its place."""
    for layer, start, stop, at in keys.segments:
        first, last = max(start, part.start), min(stop, part.stop)
        if layer == part.layer and first < last:
            into[at + first - start : at + last - start] = numbers[first - part.start : last - part.start]


def _meets(ranges: Sequence[KeyRange], server: int, part: ParameterRange) -> bool:
    """Whether a server has numbers of a part of a layer."""
    mine = (segment for keys in ranges if keys.server == server for segment in keys.segments)
    return any(s.layer == part.layer and s.start < part.stop and part.start < s.stop for s in mine)

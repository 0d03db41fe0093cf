"""A server's ranges in its node's memory (`ringtmp.resilience.node_memory`): two versions, of the two newest steps.

Version k of a range is its state once it has passed step k: it contains every worker's gradients of the steps before k,
and with SSP and ASP some of later ones. A range is copied while the server waits, or at the latest before its next
update, so that most of the cost hides behind the workers' computing.

Two rules keep one step complete on all servers at any moment, at most one behind the newest:

- A server writes version k + 1 over k - 1 only once every server has reported that its version k is *durable*: copied,
  and received by the rank of another node that holds its copies (`ringtmp.ps.serving.mirror`). The message also carries
  the step that all ranges of the server have passed: if they are further, as after the loss of a slow worker with ASP,
  the next version is the least of these.
- The slowest workers get a server's *last* range, which their forward pass needs last, only once its version is
  durable. So copies that take longer than the forward pass of the layers before slow the training down, and never fall
  behind it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.messages import Mailbox
from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange
from ringtmp.nn.stage import Stage
from ringtmp.ps.messages import Durable
from ringtmp.ps.serving.mirror import Outgoing
from ringtmp.ps.serving.served_range import ServedRange
from ringtmp.resilience.node_memory import ParameterRange, ReplicaLayout, StageReplica, arrays_of
from ringtmp.resilience.recovery import Recalled
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ReplicaPair = tuple[StageReplica, StageReplica]  # memory for two versions
RestoredRanges = dict[int, tuple[Array, dict[str, Array]]]  # by number of the key range: weights and slots


def servers_of(ranges: Sequence[KeyRange]) -> list[int]:
    """Servers that have any of `ranges`, in order: with few parameters some have none."""
    return sorted({keys.server for keys in ranges})


def replica_layout(
    model: Model, ranges: Sequence[KeyRange], server: int, slots: Sequence[str], dtype: str, generation: int
) -> ReplicaLayout:
    """Contents of a copy of a server's ranges.

    The copy of the first server also lists the layers without parameters.

    Parameters
    ----------
    model : Model
        The whole model.
    ranges : sequence of KeyRange
        All ranges.
    server : int
        Rank of the server.
    slots : sequence of str
        Optimizer slots that servers keep.
    dtype : str
        Dtype of weights and slots, in NumPy's notation.
    generation : int
        Generation of the copies that this launch writes.
    """
    parts = [(s.layer, s.start, s.stop) for keys in ranges if keys.server == server for s in keys.segments]
    if server == servers_of(ranges)[0]:
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


class ServerReplica:
    """Writes this server's copies, and reports when they are durable.

    Parameters
    ----------
    ranges : sequence of ServedRange
        The ranges of this server, at least one, with their state after `start` steps.
    pair : two StageReplica
        New copies.
    mailbox : Mailbox
        Carries the reports.
    servers : sequence of int
        All servers that have ranges.
    start : int
        Steps made before this launch.
    period : int
        Steps between two exchanges, at least 1.
    recorder : Recorder
        Records the copies.
    mirror : Outgoing or None
        Sends the copies to a rank of another node, if another node takes part.
    on_durable : callable
        Called once, when no copy of a step up to `start` can be needed any more.
    """

    def __init__(
        self,
        ranges: Sequence[ServedRange],
        pair: ReplicaPair,
        mailbox: Mailbox,
        servers: Sequence[int],
        *,
        start: int,
        period: int,
        recorder: Recorder,
        mirror: Outgoing | None = None,
        on_durable: Callable[[], None] = lambda: None,
    ) -> None:
        self.mirror = mirror
        self._ranges = {each.keys.number: each for each in ranges}
        self._pair = list(pair)  # the first one is written next
        self._mailbox, self._servers, self._recorder = mailbox, servers, recorder
        self._start, self._period, self._on_durable = start, period, on_durable
        self._passed = dict.fromkeys(self._ranges, start)  # steps that each range has passed
        self._last = max(self._ranges)  # the range that a forward pass needs last
        self._target = start  # the version that is being written, or was last
        self._committed = self._durable = -1
        self._agreed = True  # every server has the version before `_target`
        self._lacking = set(self._ranges)  # ranges that `_target` lacks
        self._reports: dict[int, dict[int, int]] = {}  # by version and server: the step that all its ranges have passed

        # Index of each range's first segment among the copy's parts; what follows them has no parameters.
        self._first_part: dict[int, int] = {}
        place = 0
        for number, each in self._ranges.items():
            self._first_part[number] = place
            place += len(each.keys.segments)
        for copy in pair:
            for empty in range(place, len(copy.layout.layers)):
                copy.seal(empty)

        # The first version is written at once.
        mailbox.on(Durable, self._on_durable_message)
        while self._lacking:
            self._copy(min(self._lacking))
        self._commit()

    # ---- what the server tells and asks -------------------------------------------------------------------------

    def passed(self, served: ServedRange, steps: int) -> None:
        """Note that the range `served` contains every active worker's gradients of the first `steps` steps."""
        self._passed[served.keys.number] = steps

    def before_update(self, served: ServedRange) -> None:
        """Copy the range `served`, which is about to change, if that is still due."""
        if self._due(served.keys.number):
            self._keep(served.keys.number)

    def withholds(self, served: ServedRange, step: int) -> bool:
        """Whether the answer to a worker's push of step `step` to the range `served` has to wait."""
        number = served.keys.number
        if number != self._last:
            return False
        due = self._target if self._durable < self._target else self._after(self._target)
        return due <= step + 1 <= self._passed[number]

    # ---- copies -------------------------------------------------------------------------------------------------

    def poll(self, waiting: bool) -> bool:
        """Advance the copies; True if anything has happened.

        Parameters
        ----------
        waiting : bool
            Whether the server has nothing else to do, so that a range may be copied now.
        """
        # Copy a range.
        moved = self.mirror.poll() if self.mirror else False
        if waiting and not moved:
            number = next((number for number in self._lacking if self._due(number)), -1)
            if number >= 0:
                self._keep(number)
                moved = True

        # Mark a version that is complete here, and announce one that is durable.
        if not self._lacking and self._committed < self._target:
            self._commit()
            moved = True
        if self._durable < self._committed and (not self.mirror or self.mirror.has(self._committed)):
            self._durable, self._agreed = self._committed, False
            message = Durable(self._durable, min(self._passed.values()))
            self._mailbox.send_all(self._servers, message, self._durable)
            moved = True
        return moved

    def _after(self, version: int) -> int:
        """Step of the first exchange after `version`."""
        return (version // self._period + 1) * self._period

    def _due(self, number: int) -> bool:
        return self._agreed and number in self._lacking and self._passed[number] >= self._target

    def _keep(self, number: int) -> None:
        begin, served = clock(), self._ranges[number]
        self._copy(number)
        size = served.weights.nbytes * (1 + len(served.slots))
        self._recorder.record("replicate", begin, clock(), self._target - 1, size=size, stage=number)

    def _copy(self, number: int) -> None:
        copy, served = self._pair[0], self._ranges[number]
        if len(self._lacking) == len(self._ranges):
            copy.begin()
            if self.mirror:
                self.mirror.begin(self._target, copy)
        for place, (_, start, stop, at) in enumerate(served.keys.segments, self._first_part[number]):
            flat, slots = copy.arrays(place)
            part = slice(at, at + stop - start)
            flat[...] = served.weights[part]
            for name, slot in slots.items():
                slot[...] = served.slots[name][part]
            copy.seal(place)  # while it is in the cache
        self._lacking.discard(number)
        if self.mirror:
            self.mirror.add(self._target, number)

    def _commit(self) -> None:
        """Mark the copy complete; it holds version `_target`."""
        self._pair[0].commit(self._target)
        self._committed = self._target
        if self.mirror:
            self.mirror.add(self._target)
        self._pair.reverse()

    def _on_durable_message(self, server: int, message: Durable) -> None:
        """A server's version is durable; after the last server's message all agree on the same next one."""
        reports = self._reports.setdefault(message.version, {})
        reports[server] = message.passed
        if len(reports) < len(self._servers):
            return
        del self._reports[message.version]
        if message.version > self._start:
            on_durable, self._on_durable = self._on_durable, lambda: None
            on_durable()
        self._target, self._agreed = max(self._after(message.version), min(reports.values())), True
        self._lacking = set(self._ranges)


# ---- resuming from node memory --------------------------------------------------------------------------------------


def restore_ranges(
    comm: "Intracomm",
    recalled: Recalled,
    ranges: Sequence[KeyRange],
    slots: Sequence[str],
    dtype: np.dtype,
    stage: Stage | None,
) -> RestoredRanges:
    """Bring layers from node memory to the ranks that need them. Collective over `comm`.

    Weights go to all ranks, as every worker needs them; slots to the servers that have those ranges, or to all ranks
    if none serves.

    Parameters
    ----------
    comm : Intracomm
        All ranks.
    recalled : Recalled
        What node memory holds, the same on every rank.
    ranges : sequence of KeyRange
        All ranges of this launch; empty if no rank serves.
    slots : sequence of str
        Slots that a server keeps; those that node memory lacks start at 0.
    dtype : numpy dtype
        Dtype of weights and slots.
    stage : Stage or None
        A worker's layers, which are filled.

    Returns
    -------
    dict
        Weights and slots of this rank's ranges.
    """
    restored: RestoredRanges = {
        keys.number: (np.zeros(keys.size, dtype), {name: np.zeros(keys.size, dtype) for name in slots})
        for keys in ranges
        if keys.server == comm.rank
    }
    for part, (holder, path) in sorted(recalled.where.items()):
        # Weights of this part of a layer: to all.
        held = arrays_of(path, part) if holder == comm.rank else None
        flat = held[0] if held else np.empty(part.stop - part.start, dtype)
        comm.Bcast(flat, holder)
        for keys in ranges:
            if keys.number in restored:
                _copy_part(keys, part, flat, restored[keys.number][0])
        if stage:
            stage.states[part.layer].flat[part.start : part.stop] = flat

        # Its slots: to the ranks that keep them.
        receivers = [rank for rank in range(comm.size) if not ranges or _keeps(ranges, rank, part)]
        for number, name in enumerate(recalled.slots):
            if held:
                for rank in receivers:
                    if rank != holder:
                        comm.Send(held[1][name], rank, number)
            if comm.rank not in receivers:
                continue
            numbers = held[1][name] if held else np.empty_like(flat)
            if not held:
                comm.Recv(numbers, holder, number)
            for keys in ranges:
                if keys.number in restored and name in slots:
                    _copy_part(keys, part, numbers, restored[keys.number][1][name])
            if not ranges and stage:
                stage.states[part.layer].slots[name][part.start : part.stop] = numbers
    return restored


def _copy_part(keys: KeyRange, part: ParameterRange, numbers: Array, into: Array) -> None:
    """Copy to a range, `into`, what it shares with `part` of a layer, whose numbers are `numbers`."""
    for layer, start, stop, at in keys.segments:
        first, last = max(start, part.start), min(stop, part.stop)
        if layer == part.layer and first < last:
            into[at + first - start : at + last - start] = numbers[first - part.start : last - part.start]


def _keeps(ranges: Sequence[KeyRange], server: int, part: ParameterRange) -> bool:
    """Whether a server keeps numbers of `part` of a layer."""
    mine = (segment for keys in ranges if keys.server == server for segment in keys.segments)
    return any(s.layer == part.layer and s.start < part.stop and part.start < s.stop for s in mine)

"""Checkpoints of servers: ranges are copied as they pass the step of a checkpoint, and collected layer by layer.

Each layer has a home, the server of its first key, which writes it whole, so that a checkpoint does not depend on how
the keys were divided. No server waits for another: copies travel, and are written, beside the training.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.checkpoint.writer import LayerArrays, records_of
from ringtmp.comm.messages import Mailbox
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange
from ringtmp.ps.messages import CheckpointOrder
from ringtmp.ps.serving.served_range import ServedRange

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_FLAT = "flat"  # name of the parameters among a range's or a layer's arrays


def layer_homes(ranges: Sequence[KeyRange], layers: int) -> list[int]:
    """The server that writes each layer: that of its first key, or rank 0 for a layer without parameters.

    Parameters
    ----------
    ranges : sequence of KeyRange
        All ranges.
    layers : int
        Number of layers.
    """
    homes = [-1] * layers
    for keys in ranges:
        for segment in keys.segments:
            if homes[segment.layer] < 0:
                homes[segment.layer] = keys.server
    return [max(home, 0) for home in homes]


class _Collection:
    """A checkpoint that is being collected on one server."""

    def __init__(self) -> None:
        self.copies: dict[int, dict[str, Array]] = {}  # of this server's ranges, by number and name
        self.late = np.zeros(1)  # 1: copies of this server are of a later step
        self.others_late: list[Array] = []  # the flags `late` of the servers that send something here
        self.seconds = 0.0  # time that collecting cost this server
        self.layers: dict[int, dict[str, Array]] = {}  # layers whose home is here, by index and name
        self.requests: list[Any] = []


class CheckpointCollector:
    """This server's part in all checkpoints.

    Parameters
    ----------
    comm : Intracomm
        Carries nothing else.
    model : Model
        The whole model.
    ranges : sequence of KeyRange
        All ranges.
    served : sequence of ServedRange
        The ranges of this server.
    slots : sequence of str
        Names of the optimizer's slots; those that servers do not keep are stored as zeros.
    checkpoints : CheckpointManager
        Writes this rank's parts; knows when checkpoints are due.
    period : int
        Steps between two exchanges, at least 1.
    start : int
        Steps made before this launch.
    mailbox : Mailbox
        Delivers orders.
    """

    def __init__(
        self,
        comm: "Intracomm",
        model: Model,
        ranges: Sequence[KeyRange],
        served: Sequence[ServedRange],
        slots: Sequence[str],
        checkpoints: CheckpointManager,
        period: int,
        start: int,
        mailbox: Mailbox,
    ) -> None:
        self.comm, self.model, self.ranges, self.served, self.slots = comm, model, ranges, served, slots
        self.checkpoints, self.period = checkpoints, period
        self.homes = layer_homes(ranges, len(model.layers))
        self.made = {each.keys.number: start for each in served}  # steps that each range has passed
        self._next = {each.keys.number: checkpoints.following(start, period) for each in served}  # checkpoint; -1: none
        self._open: dict[int, _Collection] = {}  # by step
        mailbox.on(CheckpointOrder, self._on_order)

    def _on_order(self, sender: int, message: CheckpointOrder) -> None:
        self.checkpoints.orders.add(message.step)
        self.ordered(message.step)

    def ordered(self, step: int) -> None:
        """Take part in the checkpoint after `step` steps.

        A range that has passed that step already is copied with its present state, since others wait for the copy, and
        is marked as late: the checkpoint fails.
        """
        for served in self.served:
            number = served.keys.number
            if self.made[number] >= step:
                self._open.setdefault(step, _Collection()).late[:] = 1
                self._copy(served, step)
            elif self._next[number] < 0:
                self._next[number] = step

    def passed(self, served: ServedRange, steps: int) -> None:
        """Note that the range `served` contains every active worker's gradients of the first `steps` steps."""
        number = served.keys.number
        self.made[number] = steps
        while 0 <= self._next[number] <= steps:
            self._copy(served, self._next[number])
            self._next[number] = self.checkpoints.following(self._next[number], self.period)

    def _copy(self, served: ServedRange, step: int) -> None:
        """Copy a range for the checkpoint of `step`; after this server's last one collect the layers."""
        begin = time.perf_counter()
        collection = self._open.setdefault(step, _Collection())
        collection.copies[served.keys.number] = {_FLAT: served.weights.copy()} | {
            name: slot.copy() for name, slot in served.slots.items()
        }
        if len(collection.copies) == len(self.served):
            self._collect(collection)
        collection.seconds += time.perf_counter() - begin

    def _collect(self, collection: _Collection) -> None:
        """Assemble the layers whose home is here: copy this server's parts, receive the rest, send what others need."""
        mine, names = self.comm.rank, (_FLAT, *self.slots)

        # Make room.
        for layer, home in enumerate(self.homes):
            if home == mine:
                count = self.model.layers[layer].count
                dtype = next(iter(collection.copies.values()))[_FLAT].dtype
                collection.layers[layer] = {name: aligned(count, dtype) for name in names}

        # Every server tells those to which it sends a part whether its copies are late.
        for sender, home in sorted({(k.server, self.homes[s.layer]) for k in self.ranges for s in k.segments}):
            if home == mine != sender:
                collection.others_late.append(np.zeros(1))
                collection.requests.append(self.comm.Irecv(collection.others_late[-1], sender, 0))
            elif sender == mine != home:
                collection.requests.append(self.comm.Isend(collection.late, home, 0))

        # Then come the parts, each under a tag that all servers count alike.
        tag = 0
        for keys in self.ranges:
            for layer, start, stop, at in keys.segments:
                home = self.homes[layer]
                for name in names:
                    tag += 1
                    copy = collection.copies[keys.number].get(name) if keys.server == mine else None
                    if home == mine and keys.server == mine:
                        if copy is not None:
                            collection.layers[layer][name][start:stop] = copy[at : at + stop - start]
                    elif home == mine and self._kept(name):
                        into = collection.layers[layer][name][start:stop]
                        collection.requests.append(self.comm.Irecv(into, keys.server, tag))
                    elif keys.server == mine and copy is not None:
                        collection.requests.append(self.comm.Isend(copy[at : at + stop - start], home, tag))

    def _kept(self, name: str) -> bool:
        """Whether servers keep the array of that name."""
        return name == _FLAT or name in self.served[0].slots

    def poll(self) -> bool:
        """Hand the next checkpoint that is collected to the writer; True if one was handed over."""
        moved = False
        for step, collection in sorted(self._open.items()):
            collected = len(collection.copies) == len(self.served)
            if not collected or not all(request.Test() for request in collection.requests):
                continue
            if self.checkpoints.writer.busy:  # the checkpoint waits, and this server does not
                break
            del self._open[step]
            if self.comm.rank in self.homes:
                if any(late[0] for late in (collection.late, *collection.others_late)):
                    self.checkpoints.fail(step, "it was ordered too late")
                else:
                    records = records_of(self.model, self._layers(collection))
                    self.checkpoints.hand_over(step, records, collection.seconds)
            moved = True
        return moved

    def idle(self) -> bool:
        """Whether no checkpoint is being collected that can still be completed."""
        return not any(len(each.copies) == len(self.served) for each in self._open.values())

    def final(self) -> list[LayerArrays]:
        """The present layers whose home is here. Collective over all servers, when no copy is under way."""
        collection = _Collection()
        collection.copies = {each.keys.number: {_FLAT: each.weights} | each.slots for each in self.served}
        self._collect(collection)
        for request in collection.requests:
            request.Wait()
        return self._layers(collection)

    def _layers(self, collection: _Collection) -> list[LayerArrays]:
        return [
            LayerArrays(layer, arrays[_FLAT], {name: arrays[name] for name in self.slots})
            for layer, arrays in sorted(collection.layers.items())
        ]


class WorkerCheckpoints:
    """A worker's part in checkpoints if no rank serves: each writer saves layers as it passes the step.

    Parameters
    ----------
    rank : int
        Rank of this worker.
    writers : collection of int
        Ranks that write a part of each checkpoint.
    checkpoints : CheckpointManager
        Writes this rank's parts; knows when checkpoints are due.
    layers : callable
        Returns the present layers that this rank writes.
    start : int
        Steps made before this launch.
    mailbox : Mailbox
        Delivers orders.
    """

    def __init__(
        self,
        rank: int,
        writers: Collection[int],
        checkpoints: CheckpointManager,
        layers: Callable[[], list[LayerArrays]],
        start: int,
        mailbox: Mailbox,
    ) -> None:
        self.writes, self.checkpoints, self.layers = rank in writers, checkpoints, layers
        self._made = start
        mailbox.on(CheckpointOrder, self._on_order)

    def _on_order(self, sender: int, message: CheckpointOrder) -> None:
        if self.writes:
            self.checkpoints.ordered(message.step, self._made)

    def passed(self, step: int) -> bool:
        """Note that this worker has made `step` steps; return whether its layers are to be saved now."""
        self._made = step
        return self.checkpoints.due(step) and self.writes

    def save(self, step: int) -> None:
        """Save the layers, which hold the weights after `step` steps."""
        self.checkpoints.save(step, self.layers())

"""Checkpoints of servers: ranges are copied as they pass the step of a set, and brought together layer by layer.

Each layer has a home, the server of its first key, which writes it whole, so that a set does not tell who held what. No
server waits for another: copies travel, and are written, beside the training.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ps.server import Served
from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.checkpoint.writer import LayerArrays, records_of
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_FLAT = "flat"


def homes(ranges: Sequence[KeyRange], layers: int) -> list[int]:
    """The server at which each layer is at home; that of rank 0 for layers without parameters."""
    found = [-1] * layers
    for keys in ranges:
        for segment in keys.segments:
            if found[segment.layer] < 0:
                found[segment.layer] = keys.server
    return [max(home, 0) for home in found]


class _Set:
    """A set that is being made: copies of this server's ranges, layers of which it is the home, what is on its way."""

    def __init__(self) -> None:
        self.copies: dict[int, dict[str, Array]] = {}
        self.void = np.zeros(1)  # 1: copies of this server are of another step
        self.voids: list[Array] = []  # the same of those who send something here
        self.seconds = 0.0  # for which this server was held up
        self.layers: dict[int, dict[str, Array]] = {}
        self.requests: list[Any] = []


class CheckpointCollector:
    """This server's part in all sets.

    Parameters
    ----------
    comm : Intracomm
        Where nothing else is sent.
    model : Model
    ranges : sequence of KeyRange
        All of them.
    served : sequence of Served
        This server's.
    slots : sequence of str
        Names of the optimizer's slots; those that servers do not have are stored as zeros.
    sets : CheckpointManager
        Has this rank's part of a set written beside the rest; says when sets are due.
    period : int
        Steps between two exchanges.
    """

    def __init__(
        self,
        comm: "Intracomm",
        model: Model,
        ranges: Sequence[KeyRange],
        served: Sequence[Served],
        slots: Sequence[str],
        to: CheckpointManager,
        period: int,
        start: int,
    ) -> None:
        self.comm, self.model, self.ranges, self.served, self.slots = comm, model, ranges, served, slots
        self.to, self.period = to, period
        self.homes = homes(ranges, len(model.layers))
        self.made = {each.keys.number: start for each in served}
        self.wanted = {each.keys.number: to.following(start, period) for each in served}
        self.sets: dict[int, _Set] = {}

    def passed(self, served: Served, steps: int) -> None:
        """A range holds the updates of so many steps."""
        self.made[served.keys.number] = steps
        wanted = self.wanted[served.keys.number]
        while 0 <= wanted <= steps:
            self._copy(served, wanted)
            self.wanted[served.keys.number] = wanted = self.to.following(wanted, self.period)

    def ordered(self, step: int) -> None:
        """A set after so many steps is ordered.

        Where a range holds them already the order has come too late. The range is copied as it is, since the others
        wait for it, and who gets it is told that the set is void.
        """
        for served in self.served:
            if self.made[served.keys.number] >= step:
                self.sets.setdefault(step, _Set()).void[:] = 1
                self._copy(served, step)
            elif self.wanted[served.keys.number] < 0:
                self.wanted[served.keys.number] = step

    def _copy(self, served: Served, step: int) -> None:
        """Keep a range as it is for the set of `step`; with the last one of this server layers come together."""
        begin = time.perf_counter()
        being_made = self.sets.setdefault(step, _Set())
        being_made.copies[served.keys.number] = {_FLAT: served.weights.copy()} | {
            name: slot.copy() for name, slot in served.slots.items()
        }
        if len(being_made.copies) == len(self.served):
            self._bring_together(being_made)
        being_made.seconds += time.perf_counter() - begin

    def _bring_together(self, being_made: _Set) -> None:
        """Put what belongs to layers at home here in place, send what does not, receive the rest."""
        mine = self.comm.rank
        kinds = (_FLAT, *self.slots)
        for layer, home in enumerate(self.homes):
            if home == mine:
                count = self.model.layers[layer].count
                dtype = next(iter(being_made.copies.values()))[_FLAT].dtype
                being_made.layers[layer] = {kind: aligned(count, dtype) for kind in kinds}
        for sender, home in sorted({(k.server, self.homes[s.layer]) for k in self.ranges for s in k.segments}):
            if home == mine != sender:
                being_made.voids.append(np.zeros(1))
                being_made.requests.append(self.comm.Irecv(being_made.voids[-1], sender, 0))
            elif sender == mine != home:
                being_made.requests.append(self.comm.Isend(being_made.void, home, 0))
        tag = 0
        for keys in self.ranges:
            for layer, start, stop, at in keys.segments:
                home = self.homes[layer]
                for kind in kinds:
                    tag += 1
                    here = being_made.copies[keys.number].get(kind) if keys.server == mine else None
                    if home == mine and keys.server == mine:
                        if here is not None:
                            being_made.layers[layer][kind][start:stop] = here[at : at + stop - start]
                    elif home == mine and self._kept(kind):
                        into = being_made.layers[layer][kind][start:stop]
                        being_made.requests.append(self.comm.Irecv(into, keys.server, tag))
                    elif keys.server == mine and here is not None:
                        being_made.requests.append(self.comm.Isend(here[at : at + stop - start], home, tag))

    def _kept(self, kind: str) -> bool:
        """Whether servers have this slot."""
        return kind == _FLAT or kind in self.served[0].slots

    def poll(self) -> bool:
        """Have the next set written that has come together; whether there was one."""
        moved = False
        for step, being_made in sorted(self.sets.items()):
            if len(being_made.copies) < len(self.served) or not all(each.Test() for each in being_made.requests):
                continue
            if self.to.writer.busy:  # it waits, and this server does not
                break
            del self.sets[step]
            if self.comm.rank in self.homes:
                if any(void[0] for void in (being_made.void, *being_made.voids)):
                    self.to.fail(step, "it was ordered too late")
                else:
                    self.to.hand_over(step, records_of(self.model, self._held(being_made)), being_made.seconds)
            moved = True
        return moved

    def idle(self) -> bool:
        """No set is being made that can still be completed."""
        return not any(len(each.copies) == len(self.served) for each in self.sets.values())

    def final(self) -> list[LayerArrays]:
        """The layers at home here as they are now. Collective over all servers, when nothing is on its way."""
        being_made = _Set()
        being_made.copies = {each.keys.number: {_FLAT: each.weights} | each.slots for each in self.served}
        self._bring_together(being_made)
        for request in being_made.requests:
            request.Wait()
        return self._held(being_made)

    def _held(self, being_made: _Set) -> list[LayerArrays]:
        return [
            LayerArrays(layer, arrays[_FLAT], {name: arrays[name] for name in self.slots})
            for layer, arrays in sorted(being_made.layers.items())
        ]

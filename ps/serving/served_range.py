"""A key range on its server: weights, optimizer slots, and the progress of each worker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.optimizers import Optimizer, make_slots
from ringtmp.nn.shards import KeyRange
from ringtmp.ps.compression import Compressor
from ringtmp.ps.consistency import VectorClock


@dataclass
class ServedRange:
    """A key range on its server.

    Weights do not change while an answer that carries them is under way: an update in the meantime goes to another
    buffer.

    Attributes
    ----------
    keys : KeyRange
        The range.
    buffers : list of array [keys.size]
        `buffers[live]` holds the newest weights; answers under way may still read the others.
    slots : dict of str to array [keys.size]
        Slots of the optimizer, by name.
    gradients : array [workers, keys.size]
        The newest gradient of each worker.
    clock : VectorClock
        Steps that each active worker has pushed.
    version : int
        Updates made since the run's first step.
    read_version : dict of int to int
        By worker: version of the weights that it has received last.
    sends : list of int
        Answers under way from each buffer; with compressed weights, from each of `messages`.
    messages : list of array
        Compressed weights; `messages[newest]` holds those of version `packed`.
    pending : dict of int to tuple
        By worker: step and samples of a gradient that is not applied yet.
    owed : dict of int to int
        By worker: step of the push that is not answered yet.
    received, answered : dict of int to int
        By worker: gradients received and answers sent. A worker waits for the answer before its next push.
    """

    keys: KeyRange
    buffers: list[Array]
    slots: dict[str, Array]
    gradients: Array
    clock: VectorClock
    version: int
    read_version: dict[int, int]
    received: dict[int, int]
    answered: dict[int, int]
    sends: list[int] = field(default_factory=lambda: [0])
    live: int = 0
    messages: list[Array] = field(default_factory=list)
    newest: int = 0
    packed: int = -1
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)

    @property
    def weights(self) -> Array:
        """The newest weights [keys.size]."""
        return self.buffers[self.live]

    def load(self, layer: int, flat: Array, slots: dict[str, Array]) -> None:
        """Copy this range's part of a layer.

        Parameters
        ----------
        layer : int
            Number of the layer.
        flat : array [count]
            The layer's parameters.
        slots : dict of array [count]
            Its optimizer slots; those that the range does not have are ignored.
        """
        for index, start, stop, at in self.keys.segments:
            if index == layer:
                self.weights[at : at + stop - start] = flat[start:stop]
                for name in self.slots.keys() & slots.keys():
                    self.slots[name][at : at + stop - start] = slots[name][start:stop]

    def leave_busy_buffer(self) -> None:
        """Copy the weights to a buffer from which nothing is being sent, if theirs is busy."""
        if self.sends[self.live]:
            before = self.weights
            self.live = self._free(self.buffers, lambda: aligned(before.size, before.dtype))
            self.weights[...] = before

    def message(self, compressor: Compressor) -> tuple[int, Array]:
        """Array that an answer carries, the weights or their form under `compressor`, after its index in `sends`."""
        if not compressor.compresses_weights:
            return self.live, self.weights
        if self.packed != self.version:
            free = self._free(self.messages, lambda: compressor.weights_buffer(self.keys.size))
            compressor.compress_weights(self.weights, self.messages[free])
            self.newest, self.packed = free, self.version
        return self.newest, self.messages[self.newest]

    def _free(self, pool: list[Array], make: Callable[[], Array]) -> int:
        """Index of a buffer in `pool` from which nothing is being sent; of a new one if all are busy."""
        free = next((n for n in range(len(pool)) if not self.sends[n]), len(pool))
        if free == len(pool):
            pool.append(make())
            self.sends.extend([0] * (len(pool) - len(self.sends)))
        return free


class RangeListener(Protocol):
    """Receives the progress of a server's ranges."""

    def passed(self, served: ServedRange, steps: int) -> None:
        """Note that the range `served` contains every active worker's gradients of the first `steps` steps."""


class AnswerGate(Protocol):
    """May hold a server's answers back: its copy in node memory (`ringtmp.ps.serving.node_memory`)."""

    def before_update(self, served: ServedRange) -> None:
        """Note that the weights of the range `served` are about to change."""

    def withholds(self, served: ServedRange, step: int) -> bool:
        """Whether the answer to a worker's push of step `step` to the range `served` has to wait."""


def make_served_ranges(
    ranges: Sequence[KeyRange], workers: Sequence[int], optimizer: Optimizer, dtype: np.dtype, start: int
) -> list[ServedRange]:
    """The ranges of a server, with weights and slots of zeros.

    Parameters
    ----------
    ranges : sequence of KeyRange
        Those of this server.
    workers : sequence of int
        Ranks that work, in the order of the rows of `ServedRange.gradients`.
    optimizer : Optimizer
        Names the slots.
    dtype : numpy dtype
        Dtype of weights and slots.
    start : int
        Steps made before this launch.
    """
    return [
        ServedRange(
            keys,
            [aligned(keys.size, dtype)],
            make_slots(optimizer, aligned(keys.size, dtype), aligned),
            aligned(len(workers) * keys.size, dtype).reshape(len(workers), -1),
            VectorClock(workers, start),
            start,
            dict.fromkeys(workers, start),
            dict.fromkeys(workers, 0),
            dict.fromkeys(workers, 0),
        )
        for keys in ranges
    ]

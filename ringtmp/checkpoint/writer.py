"""Checkpoints beside the training: a copy of the layers, and one thread that does everything that waits for a disk.

A rank stops for as long as the copy takes (some GB/s) and trains on while the file is made, written and flushed. The
thread never talks MPI, which is only for the main thread ("funneled"), and never writes the trace.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringtmp.checkpoint.format import LayerRecord
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import Model

Held = tuple[int, Array, dict[str, Array]]  # index of a layer, its flat parameters, its flat slots by name


def records_of(model: Model, held: Iterable[Held]) -> Iterator[LayerRecord]:
    """Layers as a checkpoint stores them, made one at a time by whoever writes them."""
    return (LayerRecord.of(model, index, flat, slots) for index, flat, slots in held)


class Snapshot:
    """Copies of layers as they are at one moment, in memory that is made once for each layer."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._copies: list[Held] = []

    def take(self, layers: Iterable[Held]) -> None:
        """Copy the layers, mostly the same ones each time; nobody may be reading the last copy any more."""
        layers = list(layers)
        if [index for index, _, _ in self._copies] != [index for index, _, _ in layers]:
            there = {index: (index, flat, slots) for index, flat, slots in self._copies}
            self._copies = [
                there.get(index)
                or (index, aligned(flat.size, flat.dtype), {s: aligned(a.size, a.dtype) for s, a in slots.items()})
                for index, flat, slots in layers
            ]
        for (_, flat, slots), (_, copy, copies) in zip(layers, self._copies, strict=True):
            np.copyto(copy, flat)
            for name, slot in slots.items():
                np.copyto(copies[name], slot)

    def records(self) -> Iterator[LayerRecord]:
        """The layers as a checkpoint stores them."""
        return records_of(self.model, self._copies)


@dataclass(frozen=True)
class Outcome:
    """How a piece of work went: what it returned, or the `OSError` that ended it."""

    kind: str
    step: int
    value: Any
    error: OSError | None


class Writer:
    """Does pieces of work one after the other in a thread of its own, which is made for the first one.

    All methods are for the main thread. An `OSError`, as on a full disk, is an outcome; any other exception is raised
    by the next call of `finished`, as if the work had been done there, and nothing that was to follow is done.
    """

    def __init__(self) -> None:
        self._work: deque[tuple[str, int, Callable[[], Any]] | None] = deque()
        self._outcomes: deque[Outcome | BaseException] = deque()
        self._changed = threading.Condition()
        self._open = 0  # pieces of work that are not done
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether there is work that is not done."""
        return self._open > 0

    def put(self, kind: str, step: int, work: Callable[[], Any]) -> None:
        """Have `work()` done after what was put before; `kind` and `step` come back with its outcome."""
        if self._thread is None:
            # A daemon: a process that has to end does not wait for a disk that hangs.
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        with self._changed:
            self._work.append((kind, step, work))
            self._open += 1
            self._changed.notify_all()

    def finished(self) -> list[Outcome]:
        """What has been done since the last call, in order."""
        outcomes = []
        while self._outcomes:
            outcome = self._outcomes.popleft()
            if not isinstance(outcome, Outcome):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Until everything is done, calling `meanwhile` again and again."""
        while meanwhile and self._open:
            meanwhile()
            time.sleep(0.0005)
        if self._open:
            with self._changed:
                self._changed.wait_for(lambda: not self._open)

    def close(self, patience: float | None = None) -> None:
        """End the thread after what it is doing; go on without it after `patience` seconds."""
        if self._thread is None:
            return
        with self._changed:
            self._work.append(None)
            if patience is not None:  # something has failed: begin nothing more
                self._work.appendleft(None)
            self._changed.notify_all()
        self._thread.join(patience)
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work)
                item = self._work.popleft()
            if item is None:
                return
            kind, step, work = item
            outcome: Outcome | BaseException
            try:
                outcome = Outcome(kind, step, work(), None)
            except OSError as error:
                outcome = Outcome(kind, step, None, error)
            except BaseException as error:  # the main thread raises it
                outcome = error
            del item, work  # what it holds may be large
            with self._changed:
                self._outcomes.append(outcome)
                self._open -= 1
                if not isinstance(outcome, Outcome):
                    self._work.clear()
                    self._open = 0
                self._changed.notify_all()

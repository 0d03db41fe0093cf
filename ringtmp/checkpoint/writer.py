"""Write checkpoints in the background: a copy of the layers, and one thread for everything that waits for a disk.

A rank stops for as long as the copy takes (some GB/s) and continues training while the file is written and flushed.
The thread never calls MPI, which only the main thread may do ("funneled"), and never writes the trace.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ringtmp.checkpoint.format import LayerRecord
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.model import Model


class LayerArrays(NamedTuple):
    """A layer's state in flat arrays.

    Attributes
    ----------
    layer : int
        Index of the layer in the model.
    flat : array [parameters]
        Its parameters.
    slots : dict
        Optimizer slots by name, each an array [parameters].
    """

    layer: int
    flat: Array
    slots: dict[str, Array]


def records_of(model: Model, layers: Iterable[LayerArrays]) -> Iterator[LayerRecord]:
    """Convert `layers` of `model` to the form of a checkpoint, one at a time as the writer asks for them."""
    return (LayerRecord.of(model, index, flat, slots) for index, flat, slots in layers)


class Snapshot:
    """Copies of layers at one moment, in memory that is allocated once for each layer.

    Parameters
    ----------
    model : Model
        Model of the layers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._copies: list[LayerArrays] = []

    def take(self, layers: Iterable[LayerArrays]) -> None:
        """Copy `layers`. The last copy is overwritten: it must have been written to disk."""
        layers = list(layers)

        # Allocate memory for layers that were not copied last time: mostly none.
        if [copy.layer for copy in self._copies] != [layer.layer for layer in layers]:
            known = {copy.layer: copy for copy in self._copies}
            self._copies = [known.get(layer.layer) or _empty_like(layer) for layer in layers]

        # Copy.
        for (_, flat, slots), (_, copy, copies) in zip(layers, self._copies, strict=True):
            np.copyto(copy, flat)
            for name, slot in slots.items():
                np.copyto(copies[name], slot)

    def records(self) -> Iterator[LayerRecord]:
        """Convert the copies to the form in which a checkpoint stores them."""
        return records_of(self.model, self._copies)


def _empty_like(layer: LayerArrays) -> LayerArrays:
    slots = {name: aligned(slot.size, slot.dtype) for name, slot in layer.slots.items()}
    return LayerArrays(layer.layer, aligned(layer.flat.size, layer.flat.dtype), slots)


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes
    ----------
    kind, step : str, int
        Arguments of `Writer.put`.
    value : object
        Result of the work.
    error : OSError or None
        Error that ended it.
    """

    kind: str
    step: int
    value: Any
    error: OSError | None


class Writer:
    """Does pieces of work one after the other in a thread, which is started for the first one.

    All methods are for the main thread. An `OSError`, such as that of a full disk, is an outcome; any other exception
    is raised by the next call of `finished`, and the work that was to follow is not done.
    """

    def __init__(self) -> None:
        self._work: deque[tuple[str, int, Callable[[], Any]] | None] = deque()
        self._outcomes: deque[Outcome | BaseException] = deque()
        self._changed = threading.Condition()
        self._open = 0  # unfinished pieces of work
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether there is unfinished work."""
        return self._open > 0

    def put(self, kind: str, step: int, work: Callable[[], Any]) -> None:
        """Call `work()` in the thread after the work put before; its outcome carries `kind` and `step`."""
        if self._thread is None:
            # A daemon: a process that has to end does not wait for a disk that hangs.
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        with self._changed:
            self._work.append((kind, step, work))
            self._open += 1
            self._changed.notify_all()

    def finished(self) -> list[Outcome]:
        """Outcomes of the work that has been finished since the last call, in order."""
        outcomes = []
        while self._outcomes:
            outcome = self._outcomes.popleft()
            if not isinstance(outcome, Outcome):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def wait(self, meanwhile: Callable[[], object] | None = None) -> None:
        """Wait until all work is finished, calling `meanwhile` repeatedly."""
        while meanwhile and self._open:
            meanwhile()
            time.sleep(0.0005)
        if self._open:
            with self._changed:
                self._changed.wait_for(lambda: not self._open)

    def close(self, patience: float | None = None) -> None:
        """End the thread.

        Parameters
        ----------
        patience : float or None
            None: finish all work first. Else finish the present piece only, and wait at most that many seconds for it.
        """
        if self._thread is None:
            return
        with self._changed:
            self._work.append(None)
            if patience is not None:  # the run has failed: begin no further work
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

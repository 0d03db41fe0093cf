"""The checkpoints of a launch on this rank: when they are due, written in the background, committed.

    due, or ordered -> save: copy the layers, continue training    (each rank; the writer's thread writes the file)
    all parts are finished -> settle                               (rank 0; its thread commits or discards the set)

A *set* is a checkpoint of one step; each writing rank writes a *part* of it. A set that is due while the one before is
still being written waits for it.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.format import LayerRecord
from ringtmp.checkpoint.interval import CheckpointInterval
from ringtmp.checkpoint.writer import LayerArrays, Outcome, Snapshot, Writer
from ringtmp.comm.mpi import warn
from ringtmp.nn.model import Model
from ringtmp.storage.run_folder import RunFolder
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PART, _SET = "part", "set"


class Part(NamedTuple):
    """A part that this rank has finished.

    Attributes
    ----------
    step : int
        Updates in it.
    whole : bool
        Whether it was written.
    cost : float
        Seconds by which it has held up the rank.
    """

    step: int
    whole: bool
    cost: float


class CheckpointManager:
    """Decides when checkpoints are due, has this rank's parts written and, on rank 0, commits the sets.

    Parameters
    ----------
    folder : RunFolder or None
        Folder to write to; None: no checkpoint is ever due.
    model : Model
        Model of the layers.
    facts : dict
        Facts on the run for the marker of each set (rank 0).
    rank : int
        This rank.
    writers : sequence of int
        Ranks that write a part of each set.
    total : int
        Steps of the run; the set after the last one is written at the end.
    recorder : Recorder
        Records the time that checkpoints take.
    every : int
        Steps between two sets; 0: none before the end.
    mtbf : float or None
        Expected seconds between failures; if given, the interval follows from it instead of from `every`.
    probe : FaultProbe or None
        Called before each layer is written.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        model: Model,
        facts: dict[str, Any],
        rank: int,
        writers: Sequence[int],
        total: int,
        recorder: Recorder,
        *,
        every: int = 0,
        mtbf: float | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self.folder, self.facts, self.rank, self.writers = folder, facts, rank, writers
        self.total, self.recorder, self.every, self.mtbf, self.probe = total, recorder, every, mtbf, probe
        self.orders: set[int] = set()  # steps of ordered sets, where the interval follows from `mtbf`
        self.newest, self.cost = -1, 0.0  # of the parts that are finished here
        self.costs: dict[int, float] = {}  # of unfinished parts, and on rank 0 of unsettled sets
        self.unsettled: deque[int] = deque()  # steps of the sets of which rank 0 has begun its part (rank 0)
        self.committed = -1  # step of the newest set that this launch has committed (rank 0)
        self.interval = CheckpointInterval(mtbf) if mtbf and folder and not rank else None
        self.writer, self.snapshot = Writer(), Snapshot(model)

    # ---- when ---------------------------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether a set is known to be due after `step` updates; False for the last step, whose set `finish` writes."""
        return step == self.following(step - 1)

    def following(self, step: int, period: int = 1) -> int:
        """Find the first set that is known to be due after more than `step` updates.

        Parameters
        ----------
        step : int
            Updates, from 0.
        period : int
            The set can only be made at a multiple of it.

        Returns
        -------
        int
            Step of the set; -1: none is known.
        """
        if not self.folder:
            return -1
        if self.mtbf:
            return min((order for order in self.orders if order > step), default=-1)
        if not self.every:
            return -1
        following = (step // self.every + 1) * self.every
        following = -(-following // period) * period
        return following if following < self.total else -1

    def wanted(self, step: int) -> bool:
        """Decide, after each step (rank 0), whether to order a set after `step` updates from all ranks."""
        if not self.interval or not self.interval.step() or step >= self.total:
            return False
        self.interval.ordered()
        return True

    def ordered(self, step: int, made: int) -> None:
        """Take an order for a set after `step` updates on a rank that has made `made` updates.

        An order that comes too late (`made` is not below `step`) costs the set: the part counts as failed.
        """
        if made < step:
            self.orders.add(step)
        else:
            self.fail(step, "it was ordered too late")

    # ---- parts --------------------------------------------------------------------------------------------------

    def save(self, step: int, layers: Iterable[LayerArrays], meanwhile: Callable[[], object] | None = None) -> None:
        """Copy the layers and have this rank's part of a set written from the copy.

        Parameters
        ----------
        step : int
            Updates in the layers.
        layers : iterable of LayerArrays
            All layers that this rank writes.
        meanwhile : callable or None
            Called repeatedly while the part waits for the one before.
        """
        begin = time.perf_counter()
        with self.recorder.timed("checkpoint", step):
            self.writer.wait(meanwhile)
            self.snapshot.take(layers)
        self.hand_over(step, self.snapshot.records(), time.perf_counter() - begin)

    def _watched(self, probe: FaultProbe, step: int, records: Iterable[LayerRecord]) -> Iterator[LayerRecord]:
        """Yield the records, and call the fault probe before each."""
        for record in records:
            probe.at("checkpoint", step)
            yield record

    def hand_over(self, step: int, records: Iterable[LayerRecord], cost: float) -> None:
        """Have a part written.

        Parameters
        ----------
        step : int
            Updates in the layers.
        records : iterable of LayerRecord
            Layers of this rank, whose arrays must not change until the part is written.
        cost : float
            Seconds by which the part has held up this rank so far.
        """
        assert self.folder
        root = self.folder.checkpoints
        if self.probe:
            records = self._watched(self.probe, step, records)
        self._begin(step, partial(checkpoint.write_part, root, step, self.rank, records), cost)

    def fail(self, step: int, why: str) -> None:
        """Count this rank's part of the set of `step` as failed because of `why`, after earlier parts are written."""
        assert self.folder
        root = self.folder.checkpoints

        def work() -> None:
            checkpoint.withdraw(root, step, self.rank)
            raise OSError(why)

        self._begin(step, work, 0.0)

    def _begin(self, step: int, work: Callable[[], None], cost: float) -> None:
        self.costs[step] = cost
        if self.rank == 0:
            self.unsettled.append(step)
        self.orders.discard(step)
        self.writer.put(_PART, step, work)

    def poll(self) -> list[Part]:
        """Parts finished here since the last call. Raises an exception of the writer's thread that is no `OSError`."""
        parts = []
        for outcome in self.writer.finished():
            if outcome.kind == _SET:
                self._settled(outcome)
                continue
            if outcome.error:
                self._warn_part(outcome.step, outcome.error)
            self.newest, self.cost = outcome.step, self.costs.pop(outcome.step)
            parts.append(Part(outcome.step, outcome.error is None, self.cost))
        return parts

    def _warn_part(self, step: int, error: OSError) -> None:
        warn(f"could not write its checkpoint of step {step}: {error}; the one before it is kept")

    # ---- sets (rank 0) ------------------------------------------------------------------------------------------

    def settle_up_to(self, written: int, cost: float) -> None:
        """Settle all sets up to step `written`, of which every rank has finished its part (rank 0).

        `cost` is the number of seconds by which they have held up the rank that they held up longest.
        """
        while self.unsettled and self.unsettled[0] <= written:
            self.settle(self.unsettled[0], True, cost)

    def settle(self, step: int, written: bool, cost: float) -> None:
        """Have the thread commit or discard a set of which every rank has finished its part (rank 0).

        Parameters
        ----------
        step : int
            Step of the set.
        written : bool
            Whether every part may have been written; if not, the set is discarded.
        cost : float
            Seconds by which the set has held up the rank that it held up longest.
        """
        with suppress(ValueError):  # with servers rank 0 need not write a part
            self.unsettled.remove(step)
        self.costs[step] = cost
        self.writer.put(_SET, step, partial(self._complete, step, written))

    def _complete(self, step: int, written: bool) -> bool:
        """Commit a set if all its parts exist, else discard it; whether it counts. Raises `OSError`."""
        folder = self.folder
        assert folder
        try:
            if written and checkpoint.whole(
                folder.checkpoints, step, self.writers
            ):  # a rank that has failed has warned
                checkpoint.commit(folder.checkpoints, step, self.writers, self.facts)
                with suppress(OSError):
                    folder.set_status("running", step=step)
                return True
        except OSError:
            checkpoint.discard(folder.checkpoints, step)
            raise
        checkpoint.discard(folder.checkpoints, step)
        return False

    def _settled(self, outcome: Outcome) -> None:
        step = outcome.step
        cost = self.costs.pop(step, 0.0)
        if outcome.error:
            warn(f"could not complete the checkpoint of step {step}: {outcome.error}; the one before it is kept")
        elif outcome.value:
            self.committed = step
        if self.interval:
            self.interval.settled(cost)

    # ---- the end ------------------------------------------------------------------------------------------------

    def finish(self, comm: "Intracomm", step: int, records: Iterable[LayerRecord]) -> bool:
        """Settle unfinished sets, then write that of the last step. Collective over `comm`.

        Parameters
        ----------
        comm : Intracomm
            All ranks of the launch.
        step : int
            Updates made.
        records : iterable of LayerRecord
            This rank's layers.

        Returns
        -------
        bool
            Whether the last step's set is committed, the same on every rank.
        """
        writes = self.rank in self.writers
        with self.recorder.timed("checkpoint", step):
            # Settle what is being written.
            self._drain()
            written = min(comm.allgather(self.newest if writes else sys.maxsize))
            self.settle_up_to(written, self.cost)
            self._drain()
            if comm.bcast(self.committed == step):  # stopped just after a checkpoint
                return True

            # Write and commit the last set.
            if writes:
                self.hand_over(step, records, 0.0)
                self._drain()
            comm.Barrier()
            if self.rank == 0:
                self.settle(step, True, 0.0)
                self._drain()
            return comm.bcast(self.committed == step)

    def _drain(self) -> None:
        self.writer.wait()
        self.poll()

    def close(self, patience: float | None = None) -> None:
        """End the thread, and give up waiting for it after `patience` seconds (None: never)."""
        self.writer.close(patience)

"""This rank's part in the checkpoint sets of a launch: when they are due, written beside the training, made to count.

    due, or ordered -> save: copy the layers, train on    (each rank; the writer's thread writes the file)
    all parts are finished -> settle                      (rank 0; its thread commits the set, or gives its room back)

A set that is due while the one before is still being written waits for it.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.format import LayerRecord
from ringtmp.checkpoint.interval import CheckpointInterval
from ringtmp.checkpoint.writer import Held, Outcome, Snapshot, Writer
from ringtmp.comm.mpi import warn
from ringtmp.resilience.fault_probe import FaultProbe
from ringtmp.run.job import Job
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PART, _SET = "part", "set"


class Part(NamedTuple):
    """A part that this rank has finished: written or not, and the seconds for which it has held up the rank."""

    step: int
    whole: bool
    cost: float


class CheckpointManager:
    """CheckpointManager of a launch, as far as this rank has to do with them.

    Parameters
    ----------
    job : Job
        Without a run folder nothing is ever due.
    rank : int
    writers : sequence of int
        Ranks that write a part of each set.
    total : int
        Steps of the run; the set after the last one is written at the end.
    recorder : Recorder
    """

    def __init__(self, job: Job, rank: int, writers: Sequence[int], total: int, recorder: Recorder) -> None:
        self.job, self.rank, self.writers, self.total, self.recorder = job, rank, writers, total, recorder
        self.every, self.mtbf = job.config.checkpoint_every, job.config.mtbf
        self.orders: set[int] = set()  # steps, where sets come by the clock
        self.newest, self.cost = -1, 0.0  # of the parts that are finished here
        self.costs: dict[int, float] = {}  # of parts (rank 0: and of sets) that are on their way
        self.unsettled: deque[int] = deque()  # steps of the sets of which rank 0 has begun its part (rank 0)
        self.committed = -1  # step of the newest set that this launch has made (rank 0)
        self.cadence = CheckpointInterval(self.mtbf) if self.mtbf and job.folder and not rank else None
        self.facts = job.facts() if job.folder and not rank else {}  # takes some milliseconds: not while training
        self.writer, self.snapshot = Writer(), Snapshot(job.model)
        self.probe: FaultProbe | None = None

    # ---- when ---------------------------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether a set is due after `step` updates. The last one is written at the end."""
        return step == self.following(step - 1)

    def following(self, step: int, period: int = 1) -> int:
        """The step, a multiple of `period`, of the first set that is known to be due after so many steps; or -1."""
        if not self.job.folder:
            return -1
        if self.mtbf:
            return min((order for order in self.orders if order > step), default=-1)
        if not self.every:
            return -1
        following = (step // self.every + 1) * self.every
        following = -(-following // period) * period
        return following if following < self.total else -1

    def wanted(self, step: int) -> bool:
        """A step is done (rank 0): whether a set after `step` updates is to be ordered from all ranks."""
        if not self.cadence or not self.cadence.step() or step >= self.total:
            return False
        self.cadence.ordered()
        return True

    def ordered(self, step: int, made: int) -> None:
        """A set after `step` updates is ordered, of which so many are `made` here.

        If they are all made the order has come too late, which costs this set: the part counts as one that failed.
        """
        if made < step:
            self.orders.add(step)
        else:
            self.fail(step, "it was ordered too late")

    # ---- parts --------------------------------------------------------------------------------------------------

    def save(self, step: int, layers: Iterable[Held], meanwhile: Callable[[], None] | None = None) -> None:
        """Copy the layers as they are after `step` updates, and have this rank's part of the set written from that.

        `meanwhile`, if given, is called again and again while the part waits for the one before.
        """
        begin = time.perf_counter()
        with self.recorder.timed("checkpoint", step):
            self.writer.wait(meanwhile)
            self.snapshot.take(layers)
        self.hand_over(step, self.snapshot.records(), time.perf_counter() - begin)

    def _watched(self, probe: FaultProbe, step: int, records: Iterable[LayerRecord]) -> Iterator[LayerRecord]:
        """The records, with a word before each: this is where a fault may be wanted."""
        for record in records:
            probe.at("checkpoint", step)
            yield record

    def hand_over(self, step: int, records: Iterable[LayerRecord], cost: float) -> None:
        """Have a part written from arrays that nobody changes until that is done. `cost`: seconds it took so far."""
        assert self.job.folder
        root = self.job.folder.checkpoints
        if self.probe:
            records = self._watched(self.probe, step, records)
        self._begin(step, partial(checkpoint.write_part, root, step, self.rank, records), cost)

    def fail(self, step: int, why: str) -> None:
        """Let this rank's part of a set count as one that failed, after the parts before it."""
        assert self.job.folder
        root = self.job.folder.checkpoints

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
        """The parts that have been finished here since the last call; raises what else went wrong in the thread."""
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
        """Every rank has finished its parts of all sets up to that of step `written`."""
        while self.unsettled and self.unsettled[0] <= written:
            self.settle(self.unsettled[0], True, cost)

    def settle(self, step: int, written: bool, cost: float) -> None:
        """Every rank has finished its part of a set: have it made to count, or its room given back."""
        with suppress(ValueError):  # servers: rank 0 need not write itself
            self.unsettled.remove(step)
        self.costs[step] = cost
        self.writer.put(_SET, step, partial(self._complete, step, written))

    def _complete(self, step: int, written: bool) -> bool:
        """Make a set count if all parts are there, else give its room back. Raises `OSError`."""
        folder = self.job.folder
        assert folder
        try:
            if written and checkpoint.whole(folder.checkpoints, step, self.writers):  # who lacks has warned
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
        if self.cadence:
            self.cadence.settled(cost)

    # ---- the end ------------------------------------------------------------------------------------------------

    def finish(self, comm: "Intracomm", step: int, records: Iterable[LayerRecord]) -> bool:
        """Settle what is on its way, then write the set of the last step; whether that counts. Collective."""
        writes = self.rank in self.writers
        with self.recorder.timed("checkpoint", step):
            self._drain()
            written = min(comm.allgather(self.newest if writes else sys.maxsize))
            self.settle_up_to(written, self.cost)
            self._drain()
            if comm.bcast(self.committed == step):  # stopped just after a checkpoint
                return True
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
        """End the thread, after `patience` seconds at the latest."""
        self.writer.close(patience)

"""One launch of a job on this rank, the same for every trainer: set up, train, save, tell. What trains is its own."""

import hashlib
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.denormals import flush_denormals
from kernels.registry import compile_all
from kernels.tile import simd
from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.checkpoint.writer import Held, records_of
from ringtmp.comm import ulfm
from ringtmp.comm.clock_sync import compare_clocks
from ringtmp.comm.mpi import raise_on_all, sleeping_barrier
from ringtmp.comm.point_to_point import TAG_CLOCK
from ringtmp.config.schema import RunConfig
from ringtmp.nn.layer import Array
from ringtmp.resilience.fault_probe import FaultProbe, probe_from_environment
from ringtmp.resilience.incident import RecoveryReport, supervised
from ringtmp.resilience.node_memory import GENERATION, NodeMemory, node_name
from ringtmp.run.job import Job, open_folder
from ringtmp.run.progress import Reporter, summary
from ringtmp.run.result import Layers, Result
from ringtmp.trace.recorder import Recorder, clock, environment, peak_memory

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

_SIGNAL = 0.2  # seconds that a launcher may take to pass a signal on to all ranks
_PATIENCE = 5.0  # seconds that a launch which has failed gives a checkpoint that is being written


class Launch(ABC):
    """One launch of a job on this rank.

    Parameters
    ----------
    parent : Intracomm
        The caller's.
    comm, net : Intracomm
        For start, agreement and end; and for training.
    job : Job
    write, show : bool
        Whether there is a run folder, and whether rank 0 prints.
    stop_request : callable
        Number of the signal that asks for a stop, or 0.
    story : RecoveryReport
    """

    def __init__(
        self,
        parent: "Intracomm",
        comm: "Intracomm",
        net: "Intracomm",
        job: Job,
        write: bool,
        show: bool,
        stop_request: Callable[[], int],
        story: "RecoveryReport",
    ) -> None:
        self.story = story
        self.parent, self.comm, self.net, self.job, self.stop_request = parent, comm, net, job, stop_request
        self.rank, self.size = comm.rank, comm.size
        self.config, self.model = job.config, job.model
        self.table = job.timetable()
        self.places: list[tuple[str, int]] = []  # host and process number of each rank
        self.nodes: list[str] = []
        self.probe: FaultProbe | None = None
        self.memory: NodeMemory | None = None  # where there are copies
        self.write, self.show = write, show and self.rank == 0
        self.writers: Sequence[int] = range(self.size)  # ranks that write a part of each set
        self.reporter: Reporter | None = None
        self.recorder: Recorder
        self.sets: CheckpointManager

    # ---- a trainer's own ----------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def check(config: RunConfig, ranks: int) -> None:
        """Raise `UserError` for settings with which this trainer cannot run on so many ranks (rank 0)."""

    @abstractmethod
    def build(self) -> None:
        """Decide who holds what, and make it; before anything is written, and without kernels. Collective."""

    @abstractmethod
    def load(self) -> None:
        """Start values, and a first run of every kernel that is not to count; with kernels."""

    @abstractmethod
    def connect(self) -> None:
        """What talks and trains; there is a recorder now."""

    @abstractmethod
    def drive(self) -> None:
        """Train. On return nothing is on its way any more."""

    @abstractmethod
    def held(self) -> list[Held]:
        """The layers that this rank writes and digests, as they are now."""

    @abstractmethod
    def house(self, memory: NodeMemory) -> None:
        """Make room in the node's memory for what this rank keeps there. Collective."""

    def requests(self) -> "list[Prequest]":
        """All persistent requests, where the trainer `heals`."""
        return []

    def give_up(self) -> None:
        """Let go of what the next launch of this process takes up again."""
        if self.reporter:
            self.reporter.close()
        if self.job.lock:
            self.job.lock.close()
            self.job.lock = None

    @abstractmethod
    def describe(self) -> str:
        """How the work is dealt, for the first line."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What this rank's trace says of its part."""

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """This rank in the table at the end: `layers` or `role`, `shown` (as text), `parameters`, `late`."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Updates made since the run's first step."""

    @property
    @abstractmethod
    def stop_signal(self) -> int:
        """The signal that stopped the run, or 0 (rank 0)."""

    @staticmethod
    def members(comm: "Intracomm", job: Job) -> list[int]:
        """Ranks that take part: all, unless the trainer knows better. Collective over `comm`."""
        return list(range(comm.size))

    notes: list[str] = []  # more for the first lines
    heals = False  # whether the trainer can go on within a job that has lost processes
    rings = False  # whether the trainer knows of rings side by side
    recalls = False  # whether the trainer keeps its state in the nodes' memory, and can go on from there
    heading = "layers"  # of the column in which the table shows rows

    # ---- the course of a launch ---------------------------------------------------------------------------------

    def run(self) -> Result:
        """The whole launch."""
        with raise_on_all(self.job.everyone) if self.job.everyone else nullcontext():
            self.build()
            # Its lock comes first: another job would discard what is read.
            open_folder(self.comm, self.job, self.write)
        self.places = self.comm.allgather((socket.gethostname(), os.getpid()))
        self.nodes = self.comm.allgather(node_name())
        if self.rank == 0 and self.job.folder:
            with suppress(OSError):
                self.job.folder.set_processes(self.job.launch, self.places)
        self.reporter = self._reporter()
        self._say_first()
        log = self.reporter.say if self.reporter else None
        compile_all(self.job.dtype, self.model.families | self.families(), log=log)
        if self.config.node_speed:
            compile_all(np.float64, {"clock"})
        self.story.mark("split")
        self.probe = probe_from_environment()
        if self.config.state_copies and self.job.folder:
            self.memory = NodeMemory(self.job.folder.identity(), node_name())
            self.house(self.memory)
        if self.probe:
            self.probe.at("restore", self.job.start)
        self.load()
        self.story.mark("restore")
        self.recorder = self._recorder()
        self.sets = CheckpointManager(self.job, self.rank, self.writers, self.table.total, self.recorder)
        self.sets.probe = self.probe
        self.connect()
        sleeping_barrier(self.comm)
        clocks = compare_clocks(self.net, TAG_CLOCK)
        self.recorder.flush({"clock_first": clocks})  # a run that is killed leaves a trace that can be aligned
        self.comm.Barrier()
        if self.reporter:
            self.reporter.begin()
            self.reporter.first = self._recovered
        self.recorder.begin()
        try:
            with flush_denormals():
                self.drive()
        except BaseException:
            self.recorder.flush()  # what led to it
            self.sets.close(_PATIENCE)
            raise
        result = self._end()
        goes_on = result.leavers and (supervised() or ulfm.available())
        if result.saved and not goes_on:
            self._release()
        return result

    def _recovered(self) -> None:
        """The first step of this launch is done everywhere (rank 0)."""
        self.story.mark("redo")
        if self.story.cause and self.reporter:
            recalled = self.job.recalled
            newest = recalled.newest if recalled else self.story.cause.get("stopped", -1)
            again = max(newest - self.job.start, 0) if newest >= 0 else -1
            self.reporter.say(self.story.told(self.job.start, again))
            self.recorder.flush({"recovery": self.story.facts(self.job.start, again)})

    def forget_older(self) -> None:
        """Nothing that an earlier launch has left in the node's memory can be needed any more."""
        if self.memory:
            self.memory.forget(self.generation)

    @property
    def generation(self) -> int:
        """Of the copies that this launch writes."""
        return GENERATION * self.job.launch

    def _release(self) -> None:
        """Results are on disk: the nodes can forget the run."""
        if self.job.folder and (self.memory or self.job.recalled):
            NodeMemory(self.job.folder.identity(), node_name()).remove()

    def families(self) -> set[str]:
        """Families of kernels beside the model's."""
        return set()

    def _reporter(self) -> Reporter | None:
        if self.rank:
            return None
        job = self.job
        return Reporter(
            total=job.total,
            start=job.start,
            per_epoch=job.steps_per_epoch,
            batch_size=job.config.batch_size,
            test_samples=job.info.n_test,
            scored=self.model.scored,
            classes=job.info.target == "classes",
            show=self.show,
            history=job.folder.history if job.folder else None,
        )

    def _say_first(self) -> None:
        if not self.reporter:
            return
        job = self.job
        for note in job.notes:
            self.reporter.say(f"warning: {note}")
        self.reporter.say(
            f"{job.info.name}: {job.info.n_train:,} training and {job.info.n_test:,} test samples; "
            f"{len(self.model.layers)} layers, {self.model.parameters:,} parameters over {self.size} "
            f"rank{'s' * (self.size > 1)}{self.beside()}; {self.describe()}"
        )
        for note in self.notes:
            self.reporter.say(note)
        if job.folder:
            source = " from the memory of the nodes" if job.recalled else ""
            again = f", resumed at step {job.start}{source}" if job.marker else ""
            self.reporter.say(f"run folder: {job.folder.path}{again}")

    def beside(self) -> str:
        """What else there is beside these ranks."""
        return f" in each of {self.job.config.rings} rings" if self.job.across else ""

    def _recorder(self) -> Recorder:
        job = self.job
        path = job.folder.trace(job.launch, self.rank) if job.folder and self.config.trace else None
        return Recorder(
            path,
            {
                "rank": self.rank,
                "ranks": self.size,
                "start_step": job.start,
                **self.facts(),
                "config": job.config.stored(),
                "environment": environment(),
                "simd": simd(),
            },
        )

    def crowded(self) -> bool:
        """Whether ranks outnumber the cores of this host."""
        here = [host for host, _ in self.places].count(self.places[self.rank][0])
        return here * (self.job.config.rings if self.rings else 1) > len(os.sched_getaffinity(0))

    # ---- steps --------------------------------------------------------------------------------------------------

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""
        return self.job.rate(step)

    # ---- end ----------------------------------------------------------------------------------------------------

    def _end(self) -> Result:
        job, step = self.job, self.step
        held = self.held()
        saved = bool(job.folder) and self.sets.finish(self.comm, step, records_of(self.model, held))
        self.sets.close()
        self.recorder.ended = clock()
        late = compare_clocks(self.net, TAG_CLOCK)  # once more, for the drift
        self.recorder.flush({"ended": self.recorder.ended, "clock_last": late})
        layers = Layers(self.model, {index: flat for index, flat, _ in held})
        digests = {name: _digest(layers[name]) for name in layers}  # one at a time in its own shape
        mine = {
            "rank": self.rank,
            **self.row(),
            "parts": self.recorder.parts(),
            "memory": peak_memory(),
            "digests": digests,
        }
        ranks = self.comm.allgather(mine)
        every = dict(sorted(pair for row in ranks for pair in row.pop("digests").items()))
        sha256 = hashlib.sha256("".join(every.values()).encode()).hexdigest()
        state = "finished" if step == self.table.total else "stopped"
        stop = self.comm.bcast(self.stop_signal) if state == "stopped" else 0
        leavers = self._leavers() if state == "stopped" else []
        if self.reporter:
            self._tell(ranks, state, stop, step, sha256, saved, leavers)
        path = str(job.folder.path) if job.folder else None
        rows = self.reporter.rows if self.reporter else []
        everyone = ranks if self.rank == 0 else []
        return Result(layers, sha256, rows, everyone, state, stop, step, path, saved, leavers, self.parent)

    def _tell(
        self,
        ranks: list[dict[str, Any]],
        state: str,
        stop: int,
        step: int,
        sha256: str,
        saved: bool,
        leavers: list[int],
    ) -> None:
        reporter, job = self.reporter, self.job
        assert reporter
        reporter.close()
        if job.folder:
            with suppress(OSError):  # a full disk: what could not be saved has been told already
                job.folder.set_status(
                    state,
                    step=step,
                    signal=stop,
                    sha256=sha256,
                    saved=saved,
                    leavers=[(rank, self.places[rank][0], self.nodes[rank]) for rank in leavers],
                )
        if not self.show:
            return
        working = [row["parts"] for row in ranks if row.get("role") != "server"]
        idle = sum(parts["wait"] for parts in working) / max(1, sum(sum(parts.values()) for parts in working))
        seconds = sum(sum(row["parts"].values()) for row in ranks) / len(ranks) / 1e9
        score = f"accuracy {reporter.test_score:.2%}" if reporter.classes else f"R2 {reporter.test_score:.4f}"
        summary(ranks, self.heading, f"{state} at step {step} after {seconds:.1f} s: test {score}, idle {idle:.1%}")
        late = max(row["late"] for row in ranks)
        if late > 0.02:
            reporter.say(
                f"warning: actions took up to {late:.0%} longer than --node-speed says: this machine is too slow for it"
            )
        reporter.say(f"weights sha256 {sha256}")
        if state == "stopped" and saved and job.folder:
            reporter.say(f"go on with: --resume {job.folder.path}")

    def _leavers(self) -> list[int]:
        """Ranks that were told to leave; none if all were. Collective."""
        if signal.SIGUSR1 in self.comm.allgather(self.stop_request()):
            time.sleep(_SIGNAL)  # one that is for all does not reach all at the same time
        told = [number == signal.SIGUSR1 for number in self.comm.allgather(self.stop_request())]
        return [] if all(told) else [rank for rank in range(self.size) if told[rank]]


def _digest(arrays: dict[str, Array]) -> str:
    """SHA-256 of a layer's parameters in their own shapes, the same however they are packed."""
    joined = hashlib.sha256()
    for array in arrays.values():
        joined.update(np.ascontiguousarray(array).data)
    return joined.hexdigest()

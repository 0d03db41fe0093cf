"""`ringtmp.train`: from a configuration to trained weights, on a communicator of any size."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

import kernels
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.stage import LayerState, Stage
from ringtmp.ring.engine import Engine
from ringtmp.ring.layout import make_layout, resolve_auto
from ringtmp.ring.links import TAG_CLOCK
from ringtmp.ring.result import Result
from ringtmp.run import checkpoint
from ringtmp.run.clocks import compare_clocks
from ringtmp.run.job import Feeder, Job, open_folder, prepare
from ringtmp.run.mpi import abort, meet, warn
from ringtmp.run.progress import Reporter, summary
from ringtmp.run.timetable import Phase
from ringtmp.run.trace import Recorder, clock, environment, peak_memory

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


_BEFORE = "weights-before"  # slot of a checkpoint that holds the weights of the step before (2BW)


def train(
    *, comm: "Intracomm | None" = None, data: Any = None, out: str | None = None, progress: bool = True, **settings: Any
) -> Result:
    """Train a network whose layers are dealt over the ranks of `comm`. Collective over `comm`.

    On several ranks an exception on any one of them, other than `UserError`, is printed and ends all processes of the
    job: the other ranks would wait for this one for ever.

    Parameters
    ----------
    comm : Intracomm, optional
        The ring; by default the world (one rank in a notebook).
    data : str or tuple of arrays, optional
        As `--data`, or (x, y) or (x, y, x_test, y_test) from Python.
    out : str, optional
        Where to make a run folder; by default nothing is written, unless `resume` names a folder to go on in.
    progress : bool
        Whether rank 0 prints its progress.
    **settings
        Any field of `RunConfig`: model, epochs, batch_size, ...

    Returns
    -------
    Result

    Raises
    ------
    UserError
        Bad input; on every rank.
    """
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    arrays = data if isinstance(data, tuple) else None
    settings = {key: value for key, value in settings.items() if value is not None}
    flags = dict(settings) | ({"out": out} if out else {})
    if data is not None:
        flags["data"] = "arrays" if arrays else data
    try:
        return run(comm, {}, flags, arrays=arrays, write=bool(out or settings.get("resume")), show=progress)
    except UserError:
        raise
    except BaseException as error:
        if comm.size > 1:
            abort(comm, error)
        raise


def run(
    parent: "Intracomm", from_file: dict[str, Any], flags: dict[str, Any], *, arrays: tuple[Array, ...] | None = None,
    write: bool = True, show: bool = True, stop_request: Callable[[], int] = lambda: 0,
) -> Result:  # fmt: skip
    """Check, train, write what is to be written, and tell how it went. Collective over `parent`."""
    comm = parent.Dup()  # start, agreement and end
    ring = parent.Dup()  # training: neighbours only

    def free() -> None:
        comm.Free()
        ring.Free()

    job: Job | None = None
    try:
        job = prepare(comm, from_file, flags, arrays)
        result = _Run(parent, comm, ring, job, write, show, stop_request).run()
        free()
        return result
    except UserError:  # on every rank
        free()
        raise
    except BaseException as error:
        if job and job.folder:
            with suppress(OSError):  # the disk may be what failed
                job.folder.set_status("failed", rank=comm.rank, error=f"{type(error).__name__}: {error}")
        if comm.size == 1:  # on several ranks the job ends
            free()
        raise
    finally:
        if job and job.lock:
            job.lock.close()


class _Run:
    """One launch of a job on this rank; also the engine's surroundings."""

    def __init__(
        self, parent: "Intracomm", comm: "Intracomm", ring: "Intracomm", job: Job, write: bool, show: bool,
        stop_request: Callable[[], int],
    ) -> None:  # fmt: skip
        self.parent, self.comm, self.ring, self.job, self.stop_request = parent, comm, ring, job, stop_request
        self.rank, self.size = comm.rank, comm.size
        self.chosen = resolve_auto(comm, job)
        self.table = job.timetable()
        self.config, self.model = job.config, job.model
        self.layout = make_layout(comm, job)
        self.policy = self.layout.policy(self.rank)
        self.write, self.show = write, show and self.rank == 0
        self.committed = -1  # step of the newest set that this launch has made (rank 0)

    def run(self) -> Result:
        """The whole launch."""
        job, config = self.job, self.config
        self.stages = [
            Stage(self.model, first, last, job.dtype, job.optimizer(), self.table.rows, self.policy.room(c),
                  config.threads, config.recompute)
            for c, (first, last) in enumerate(self.layout.layers(self.rank))
        ]  # fmt: skip
        open_folder(self.comm, job, self.write)  # its lock comes first: another job would discard sets that are read
        self.reporter = self._reporter()
        self._say_first()
        kernels.compile_all(job.dtype, self.model.families, log=self.reporter.say if self.reporter else None)
        if config.pace:
            kernels.compile_all(np.float64, {"clock"})
        stashed = self._start_values()  # with kernels: never before one rank of this machine has compiled them
        paces = self.layout.paces(self.rank)
        for c, stage in enumerate(self.stages):
            stage.warm_up(self.table.sizes, self.policy.window(c))
            if self.size > 1:  # alone there is no inbox to look at
                stage.cut([ns * self.table.rows / 1e9 for ns in paces[c].layers] if paces else stage.weight_seconds())
        self.feeder = Feeder(job) if self.rank == 0 else None
        self.recorder = self._recorder()
        crowded = self._ranks_on_node() > len(os.sched_getaffinity(0))
        self.engine = engine = Engine(
            self.ring, self.stages, self.table, self.policy, self, self.recorder, start=job.start,
            w_group=self.layout.w_group, seed=config.seed, crowded=crowded,
            synchronous=config.sends == "synchronous", delay=config.delay, stall_timeout=config.stall_timeout,
            lag=self.layout.lag, stashed=stashed, paces=paces, stop_request=self.stop_request,
        )  # fmt: skip
        meet(self.comm)
        clocks = compare_clocks(self.ring, TAG_CLOCK)
        self.recorder.flush({"clock_first": clocks})  # a run that is killed leaves a trace that can be aligned
        self.comm.Barrier()
        if self.reporter:
            self.reporter.begin()
        self.recorder.begin()
        try:
            with kernels.flush_denormals():
                engine.run()
        except BaseException:
            self.recorder.flush()  # what led to it
            raise
        with self.recorder.timed("wait", engine.updates):
            self.comm.Barrier()  # the others' last actions; then nothing is on its way any more
        engine.close()
        return self._end(engine)

    # ---- start --------------------------------------------------------------------------------------------------

    def _start_values(self) -> bool:
        """Weights and slots to begin with; whether those of the step before came with them (2BW) and are stashed."""
        if self.job.marker is None:
            for stage in self.stages:
                stage.initialise(self.config.seed)
            return False
        assert self.job.resume
        names = [self.model.layer_name(state.index) for state in self._states()]
        stored = checkpoint.read_layers(self.job.resume.checkpoints, self.job.marker, names)
        records = dict(zip(names, stored, strict=True))
        stash = self.layout.lag == 1 and all(_BEFORE in record.slots for record in stored)
        for stage in self.stages:
            mine = [(state, records[self.model.layer_name(state.index)]) for state in stage.states]
            if stash:
                for state, record in mine:
                    state.layer.store(state.flat, record.slots[_BEFORE])
                stage.derive()
                stage.stash(0)
            for state, record in mine:
                state.layer.store(state.flat, record.parameters)
                for slot, flat in state.slots.items():
                    state.layer.store(flat, record.slots.get(slot, {}))
            stage.derive()
        return stash

    def _states(self) -> list[LayerState]:
        """Every layer of this rank, in the order of the chain."""
        return [state for stage in self.stages for state in stage.states]

    def _reporter(self) -> Reporter | None:
        if self.rank:
            return None
        job = self.job
        return Reporter(
            total=job.total, start=job.start, per_epoch=job.steps_per_epoch, batch_size=job.config.batch_size,
            test_samples=job.info.n_test, scored=self.model.scored, classes=job.info.target == "classes",
            show=self.show,
            history=job.folder.history if job.folder else None,
        )  # fmt: skip

    def _say_first(self) -> None:
        if not self.reporter:
            return
        job = self.job
        for note in job.notes:
            self.reporter.say(f"warning: {note}")
        self.reporter.say(
            f"{job.info.name}: {job.info.n_train:,} training and {job.info.n_test:,} test samples; "
            f"{len(self.model.layers)} layers, {self.model.parameters:,} parameters over {self.size} "
            f"rank{'s' * (self.size > 1)}; batch {self.config.batch_size} in {self.config.micro_batches}; "
            f"{self.layout.describe()}"
        )
        if self.chosen:
            self.reporter.say(self.chosen)
        if self.config.mode == "ready" and self.config.schedule not in (None, "auto", "2bw"):
            self.reporter.say(
                f"note: --schedule {self.config.schedule} is not used in --mode ready, which follows no plan"
            )
        if job.folder:
            again = f", resumed at step {job.start}" if job.marker else ""
            self.reporter.say(f"run folder: {job.folder.path}{again}")

    def _recorder(self) -> Recorder:
        job = self.job
        path = job.folder.trace(job.launch, self.rank) if job.folder and self.config.trace else None
        return Recorder(path, {
            "rank": self.rank, "ranks": self.size, "chunks": self.layout.chunks,
            "layers": self.layout.layers(self.rank), "start_step": job.start, "mode": self.layout.mode,
            "schedule": self.layout.schedule if self.layout.mode == "strict" or self.layout.lag else "",
            "config": job.config.stored(),
            "environment": environment(), "simd": kernels.simd(),
        })  # fmt: skip

    def _ranks_on_node(self) -> int:
        from mpi4py import MPI

        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        size = node.size
        node.Free()
        return size

    # ---- what the engine asks for -------------------------------------------------------------------------------

    def read(self, phase: Phase, number: int, x: Array, labels: Array) -> None:
        """Fill in a micro-batch (rank 0)."""
        assert self.feeder
        self.feeder.read(phase, number, x, labels)

    def rate(self, step: int) -> float:
        """Learning rate of `step`."""
        return self.job.rate(step)

    def save(self, step: int) -> bool:
        """Write this rank's part of a set if one is due after `step` updates. The last set is written at the end."""
        every = self.config.checkpoint_every
        if not (self.job.folder and every and step % every == 0 and step < self.table.total):
            return True
        return self._write_part(step)

    def _write_part(self, step: int) -> bool:
        assert self.job.folder
        with self.recorder.timed("checkpoint", step):
            try:
                checkpoint.write_part(self.job.folder.checkpoints, step, self.rank, self._records())
                return True
            except OSError as error:
                warn(f"could not write its checkpoint of step {step}: {error}; the one before it is kept")
                return False

    def _records(self) -> list[checkpoint.LayerRecord]:
        """This rank's layers as a checkpoint stores them; where weights lag by one update, those before it as well."""
        records = []
        for chunk in self.engine.chunks:
            before = chunk.versions.stashed_before() if self.layout.lag == 1 else None
            for n, state in enumerate(chunk.stage.states):
                slots = state.slots | ({_BEFORE: before[n]} if before else {})
                records.append(checkpoint.LayerRecord(
                    self.model.layer_name(state.index), state.layer.to_dict(), state.layer.natural(state.flat),
                    {slot: state.layer.natural(flat) for slot, flat in slots.items()},
                ))  # fmt: skip
        return records

    def trained(self, step: int, loss: float, correct: float, idle: float, saved: bool) -> None:
        """A step is done on every rank (rank 0)."""
        assert self.reporter
        self.reporter.trained(step, loss, correct, idle, self.rate(step))
        every = self.config.checkpoint_every
        if self.job.folder and every and (step + 1) % every == 0 and step + 1 < self.table.total:
            with self.recorder.timed("checkpoint", step):
                self._settle(step + 1, saved)

    def _settle(self, step: int, saved: bool) -> bool:
        """Every rank has tried to write its part of a set (rank 0): make the set count, or give its room back."""
        assert self.job.folder
        if saved:
            try:
                checkpoint.commit(self.job.folder.checkpoints, step, self.size, self.job.facts())
                self.committed = step
            except OSError as error:
                warn(f"could not complete the checkpoint of step {step}: {error}; the one before it is kept")
        if self.committed != step:
            checkpoint.discard(self.job.folder.checkpoints, step)
            return False
        with suppress(OSError):
            self.job.folder.set_status("running", step=step)
        return True

    def tested(self, step: int, loss: float, correct: float) -> None:
        """An evaluation is complete (rank 0)."""
        assert self.reporter and self.feeder
        self.reporter.tested(step, loss, correct, self.feeder.spread)

    # ---- end ----------------------------------------------------------------------------------------------------

    def _end(self, engine: Engine) -> Result:
        job, step = self.job, engine.updates
        saved = False
        if job.folder:
            saved = self.comm.bcast(self.committed == step)  # stopped just after a checkpoint
            if not saved:
                written = all(self.comm.allgather(self._write_part(step)))
                saved = self.comm.bcast(self._settle(step, written) if self.rank == 0 else None)
        self.recorder.ended = clock()
        late = compare_clocks(self.ring, TAG_CLOCK)  # once more, for the drift
        self.recorder.flush({"ended": self.recorder.ended, "clock_last": late})
        digests = {state.index: _digest(state.layer.natural(state.flat)) for state in self._states()}
        mine = {
            "rank": self.rank, "layers": self.layout.layers(self.rank),
            "parameters": sum(state.flat.size for state in self._states()), "parts": self.recorder.parts(),
            "memory": peak_memory(), "digests": digests,
            "late": sum(pace.late for pace in engine.paces) / max(1, sum(pace.total for pace in engine.paces)),
        }  # fmt: skip
        ranks = self.comm.allgather(mine)
        every = dict(sorted(pair for row in ranks for pair in row["digests"].items()))
        sha256 = hashlib.sha256("".join(every.values()).encode()).hexdigest()
        state = "finished" if step == self.table.total else "stopped"
        stop = self.comm.bcast(engine.tokens.stop_signal) if state == "stopped" else 0
        if self.reporter:
            self._tell(ranks, state, stop, step, sha256, saved)
        layers = {self.model.layer_name(s.index): s.layer.natural(s.flat) for s in self._states()}
        path = str(job.folder.path) if job.folder else None
        rows = self.reporter.rows if self.reporter else []
        everyone = ranks if self.rank == 0 else []
        return Result(layers, sha256, rows, everyone, state, stop, step, path, saved, self.parent)

    def _tell(self, ranks: list[dict[str, Any]], state: str, stop: int, step: int, sha256: str, saved: bool) -> None:
        reporter, job = self.reporter, self.job
        assert reporter
        reporter.close()
        if job.folder:
            with suppress(OSError):  # a full disk: what could not be saved has been told already
                job.folder.set_status(state, step=step, signal=stop, sha256=sha256, saved=saved)
        if not self.show:
            return
        waited = sum(row["parts"]["wait"] for row in ranks)
        wall = sum(sum(row["parts"].values()) for row in ranks)
        seconds = wall / len(ranks) / 1e9
        score = f"accuracy {reporter.test_score:.2%}" if reporter.classes else f"R2 {reporter.test_score:.4f}"
        summary(ranks, f"{state} at step {step} after {seconds:.1f} s: test {score}, idle {waited / max(wall, 1):.1%}")
        late = max(row["late"] for row in ranks)
        if late > 0.02:
            reporter.say(
                f"warning: actions took up to {late:.0%} longer than --pace says: this machine is too slow for it"
            )
        reporter.say(f"weights sha256 {sha256}")
        if state == "stopped" and saved and job.folder:
            reporter.say(f"go on with: --resume {job.folder.path}")


def _digest(arrays: dict[str, Array]) -> str:
    """SHA-256 of a layer's parameters in their own shapes, the same however they are packed."""
    joined = hashlib.sha256()
    for array in arrays.values():
        joined.update(np.ascontiguousarray(array).data)
    return joined.hexdigest()

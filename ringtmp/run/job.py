"""What comes before the first step, the same for every trainer: configuration, data, model, run folder, resume."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.registry import compile_all
from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm.mpi import from_rank_0, raise_on_all
from ringtmp.config.schema import RunConfig, make_config, read_toml
from ringtmp.data.dataset import DataInfo, DataSet, epoch_order, open_data
from ringtmp.errors import RunFailure, UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.model_spec import gpt_options
from ringtmp.nn.optimizers import Optimizer, learning_rate
from ringtmp.nn.sliced import cut
from ringtmp.resilience.incident import supervised
from ringtmp.resilience.recovery import Recalled, recall
from ringtmp.run.history import tested
from ringtmp.run.timetable import Timetable
from ringtmp.storage.run_folder import RunFolder, lock, make_run_folder, open_run_folder, store_config
from ringtmp.trace.recorder import environment

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

# What a checkpoint fixes: with another value its weights, slots or place in the data order would mean something else.
_FIXED = ("data", "dtype", "optimizer", "seed", "batch_size", "test_fraction", "normalise", "loss")

_LOCK = 120.0  # seconds that a job which goes on after a failure waits for what is left of the one before

# Settings that a later value of another one puts out of force.
_INSTEAD = {
    "steps": ("epochs",),
    "epochs": ("steps",),
    "mtbf": ("checkpoint_every",),
    "checkpoint_every": ("mtbf",),
    "servers": ("colocate",),
    "colocate": ("servers",),
    "consistency": ("staleness", "backup", "servers", "colocate", "compression", "local_steps"),
}


@dataclass
class Job:
    """A run that has been checked and can begin. `data` is there on rank 0 only."""

    config: RunConfig
    info: DataInfo
    model: Model
    data: DataSet | None
    resume: RunFolder | None = None
    folder: RunFolder | None = None
    launch: int = 0
    start: int = 0
    marker: dict[str, Any] | None = None
    lock: Any = None
    notes: list[str] = field(default_factory=list)
    given: tuple[str, ...] = ()  # keys that were set, in a file, by a flag or by the run that is resumed
    recalled: Recalled | None = None  # where the layers come from, if not from a checkpoint
    again: bool = False  # the evaluation that belongs to `start` was lost
    writes: bool = True  # a run folder, with a checkpoint at the end
    ring: int = 0  # which of several rings side by side this rank belongs to
    members: tuple[int, ...] = ()  # ranks of the job that form this ring, if not all do
    across: Any = None  # communicator of the ranks that hold the same layers in all rings, if there are several
    everyone: Any = None  # and of all ranks of all rings

    @property
    def dtype(self) -> np.dtype:
        """Of weights, activations and gradients."""
        return np.dtype(self.config.dtype)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training samples; each epoch leaves out another remainder."""
        return self.info.n_train // self.config.batch_size

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.config.steps or self.config.epochs * self.steps_per_epoch

    def timetable(self) -> Timetable:
        """Phases of the run."""
        every = self.config.eval_every
        every = self.steps_per_epoch if every is None else every
        return Timetable(
            self.total,
            self.config.batch_size,
            self.config.micro_batches,
            self.info.n_test,
            every,
            self.start if self.again else -1,
            self.ring,
            self.config.rings,
        )

    @property
    def pace(self) -> str:
        """`--node-speed` of this ring's ranks; empty: none."""
        courses = (self.config.node_speed or "").split(",")
        if self.members and len(courses) == self.everyone.size:
            courses = [courses[rank] for rank in self.members]
        return ",".join(courses)

    def optimizer(self) -> Optimizer:
        """The update rule."""
        c = self.config
        return Optimizer(c.optimizer, c.effective_weight_decay, c.momentum, c.clip_value, c.clip_norm)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        c = self.config
        return learning_rate(c.lr_schedule, c.lr, self.total, c.warmup_steps, c.lr_every, c.lr_factor)(step)

    def facts(self) -> dict[str, Any]:
        """What every checkpoint says of its run."""
        return {
            "config": self.config.stored(),
            "data": self.info.to_json(),
            "model": {"layers": self.model.to_list(), "loss": self.model.loss.name},
            "environment": environment(),
        }


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later values over earlier ones; what cannot stand beside a later value gives way to it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for one, others in _INSTEAD.items():
            for other in others if one in layer else ():
                if other not in layer:
                    merged.pop(other, None)
        merged |= layer
    return merged


def prepare(
    comm: "Intracomm",
    from_file: dict[str, Any],
    flags: dict[str, Any],
    arrays: tuple[Array, ...] | None,
    check: Callable[[RunConfig, int], None] = lambda config, ranks: None,
    recalls: bool = False,
) -> Job:
    """Check everything that can be checked before a run folder is touched. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
    from_file, flags : dict
        Values of the configuration file and over them those of the command line. Only rank 0's count.
    arrays : tuple or None
        Data given from Python instead of `data`.
    check : callable
        Raises `UserError` for settings with which the trainer cannot run on so many ranks.
    recalls : bool
        Whether the trainer can go on from what the nodes' memory holds.

    Raises
    ------
    UserError
        On every rank, whichever rank found the fault.
    """
    data: DataSet | None = None
    run = from_rank_0(comm, lambda: _identity(merge(from_file, flags)))
    recalled, lost = recall(comm, run) if run and recalls else (None, [])

    def on_rank_0() -> dict[str, Any]:
        nonlocal data
        values = merge(from_file, flags)
        stored: dict[str, Any] = {}
        resume, marker, done = None, None, True
        notes: list[str] = []
        if values.get("resume"):
            folder = open_run_folder(
                str(values["resume"]), str(values.get("out", RunConfig.model_fields["out"].default))
            )
            stored, resume = folder.config(), str(folder.path)
            marker, notes = find_start(folder, recalled, lost)
            done = folder.status().get("state") in ("finished", "stopped")
        config = make_config(merge(stored, values))
        if isinstance(config.model, str) and config.model.endswith(".toml"):
            config = config.model_copy(update={"model": _layers_of(config.model)})
        check(config, comm.size)
        if marker:
            _check_fixed(make_config(marker["facts"]["config"]), config)
        data = _data(config, arrays, DataInfo.from_json(marker["facts"]["data"]) if marker else None)
        if config.batch_size > data.info.n_train:
            raise UserError(
                f"batch_size: {config.batch_size} exceeds the {data.info.n_train} training samples of {config.data}"
            )
        return {
            "config": config.model_dump(),
            "info": data.info.to_json(),
            "resume": resume,
            "marker": marker,
            "notes": notes,
            "given": tuple(merge(stored, values)),
            "done": done,
        }

    common = from_rank_0(comm, on_rank_0)
    config = RunConfig.model_construct(**common["config"])
    info = DataInfo.from_json(common["info"])
    model = _model(config, info)
    resume = RunFolder(Path(common["resume"])) if common["resume"] else None
    job = Job(
        config, info, model, data, resume=resume, marker=common["marker"], notes=common["notes"], given=common["given"]
    )
    if job.marker:
        job.start, job.recalled = job.marker["step"], job.marker.get("recalled")
        _check_model(job)
        _check_tested(comm, job)
        if job.start > job.total or (job.start == job.total and common["done"]):
            raise UserError(
                f"resume: {common['resume']} has made {job.start} steps already, {job.total} are asked for; "
                "give more --epochs or --steps"
            )
    return job


def rehearse(from_file: dict[str, Any], flags: dict[str, Any], reads: bool) -> None:
    """Load everything that a launch which resumes a run will need, kernels and (where it `reads`) data included.

    Raises `UserError`.
    """
    values = merge(from_file, flags)
    folder = open_run_folder(str(values["resume"]), str(values.get("out", RunConfig.model_fields["out"].default)))
    config, info = make_config(merge(folder.config(), values)), DataInfo.from_json(folder.data())
    compile_all(config.dtype, _model(config, info).families | {"keep", "serve"})
    if reads:
        _data(config, None, info)


def _model(config: RunConfig, info: DataInfo) -> Model:
    def build(spec: str | list[dict[str, Any]]) -> Model:
        return build_model(
            spec, config.loss, info.sample_shape, info.target, info.outputs, info.labels, bool(info.alphabet)
        )

    model = build(config.model)
    return build(cut(model.layers, config.slices)) if config.slices > 1 else model


def _data(config: RunConfig, arrays: tuple[Array, ...] | None, like: DataInfo | None) -> DataSet:
    return open_data(
        arrays or config.data,
        dtype=np.dtype(config.dtype),
        normalise=config.normalise,
        test_fraction=config.test_fraction,
        context=_context(config.model),
        like=like,
    )


def _context(model: str | list[dict[str, Any]]) -> int:
    """Characters that a sample of text has for `model`; 0: the data must say."""
    if isinstance(model, str):
        return gpt_options(model)["context"] if model.startswith("gpt:") else 0
    shape = model[0].get("shape") if model and isinstance(model[0], dict) else None
    return shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else 0


def _layers_of(path: str) -> list[dict[str, Any]]:
    tables = read_toml(path, "model")
    if set(tables) != {"layers"} or not isinstance(tables["layers"], list):
        raise UserError(
            f"model: {path}: expected [[layers]] tables and nothing else, got {', '.join(tables) or 'nothing'}"
        )
    return tables["layers"]


def _identity(values: dict[str, Any]) -> str:
    """The identity of the run that is gone on with in its own folder; empty if none is (rank 0)."""
    if not values.get("resume") or values.get("name"):
        return ""
    folder = open_run_folder(str(values["resume"]), str(values.get("out", RunConfig.model_fields["out"].default)))
    try:
        return folder.identity()
    except OSError as error:
        raise UserError(f"out: cannot write to {folder.path}: {error.strerror}") from None


def find_start(
    folder: RunFolder, recalled: Recalled | None, lost: list[str], begins: bool = False
) -> tuple[dict[str, Any] | None, list[str]]:
    """Where a run goes on from: the nodes' memory or its newest sound set, whichever is newer; and notes on that.

    None: from its beginning; only a supervised run, or one that `begins`, may have nothing to go on from.
    """
    newest = max(checkpoint.committed(folder.checkpoints), default=-1)
    marker: dict[str, Any] | None = None
    notes: list[str] = []
    if recalled is None or recalled.step < newest:
        try:
            marker, notes = find_set(folder)
        except UserError:
            if recalled is None and (not (begins or supervised()) or newest >= 0):
                raise
    notes = lost + notes
    if recalled and (marker is None or recalled.step > marker["step"]):
        facts = {"config": folder.config(), "data": folder.data(), "model": {"layers": recalled.tables}}
        marker = {"step": recalled.step, "facts": facts, "recalled": recalled}
    elif lost:
        where = f"the checkpoint of step {marker['step']}" if marker else "the beginning"
        notes.append(f"goes on from {where}")
    return marker, notes


def go_on(comm: "Intracomm", job: Job) -> Job:
    """A job that has lost processes, with those who are left: from where, and with which data. Collective over `comm`.

    Raises `RunFailure` if what is lost cannot be had again.
    """
    folder = job.folder
    assert folder
    recalled, lost = recall(comm, folder.identity())
    marker, notes = from_rank_0(comm, lambda: find_start(folder, recalled, lost, begins=True))
    config = job.config.model_copy(update={"name": None, "resume": str(folder.path)})
    data = job.data
    if comm.rank == 0 and data is None:
        if config.data == "arrays":
            raise RunFailure("the data were given from Python to a process that is lost")
        data = _data(config, None, job.info)
    resumed = Job(config, job.info, job.model, data, resume=folder, marker=marker, notes=notes, given=job.given)
    if marker:
        resumed.start, resumed.recalled = marker["step"], marker.get("recalled")
        _check_tested(comm, resumed)
    return resumed


def find_set(folder: RunFolder) -> tuple[dict[str, Any], list[str]]:
    """The newest set of a run whose files are all as they were written, and a note for each newer one that is not."""
    notes: list[str] = []
    for step in reversed(checkpoint.steps(folder.checkpoints)):
        try:
            marker = checkpoint.read_marker(folder.checkpoints, step)
            checkpoint.verify(folder.checkpoints, marker)
            return marker, notes
        except checkpoint.DamagedError as error:
            notes.append(f"checkpoint of step {step} is not used: {error}")
    reason = f": {notes[0]}" if notes else " (checkpoints/ holds none)"
    raise UserError(f"resume: {folder.path} has no checkpoint that can be used{reason}")


def _check_fixed(stored: RunConfig, config: RunConfig) -> None:
    for key in _FIXED:
        old, new = getattr(stored, key), getattr(config, key)
        if old != new:
            raise UserError(f"resume: {key} was {old!r} in the checkpoint's run and cannot become {new!r}")


def _check_tested(comm: "Intracomm", job: Job) -> None:
    """Find out whether the evaluation that is due where the run goes on has been made. Collective."""
    assert job.resume
    due = job.start % job.timetable().every == 0 or job.start == job.total
    history = job.resume.history
    job.again = from_rank_0(comm, lambda: due and not job.config.name and not tested(history, job.start))


def _check_model(job: Job) -> None:
    assert job.marker
    stored, mine = job.marker["facts"]["model"]["layers"], job.model.to_list()
    if len(stored) != len(mine):
        raise UserError(f"resume: the checkpoint's model has {len(stored)} layers, this one {len(mine)}")
    for index, (old, new) in enumerate(zip(stored, mine, strict=True)):
        if old != new:
            raise UserError(f"resume: layer {index} of the checkpoint is {old}, of this model {new}")


def open_folder(comm: "Intracomm", job: Job, out: bool) -> None:
    """Make the run folder, or go on in the one that is resumed. Collective over `comm`; nothing if not `out`."""

    if not out:
        return
    new = not job.resume or bool(job.config.name)
    path = from_rank_0(comm, lambda: str(make_run_folder(job.config, job.info.to_json()).path)) if new else None
    folder = RunFolder(Path(path)) if path else job.resume
    assert folder

    def begin() -> int:
        try:
            job.lock = lock(folder, _LOCK if supervised() else 0.0)
            if not new:
                checkpoint.clear(folder.checkpoints)
                store_config(folder, job.config)
                folder.set_status("running", step=job.start)
            return folder.next_launch()
        except OSError as error:
            raise UserError(f"out: cannot write to {folder.path}: {error.strerror}") from None

    try:
        with raise_on_all(comm):
            if not folder.path.is_dir():
                raise UserError(f"out: {folder.path} is not visible on every host; it must be on a shared file system")
        job.launch = from_rank_0(comm, begin)
    except UserError:
        if new and comm.rank == 0:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    job.folder = folder


class Feeder:
    """Reads samples in the order of (seed, epoch) on a rank that holds the data."""

    def __init__(self, job: Job) -> None:
        assert job.data
        self.data, self.seed, self.n = job.data, job.config.seed, job.info.n_train
        self.batch, self.per_epoch = job.config.batch_size, job.steps_per_epoch
        self.info, self.dtype = job.info, job.dtype
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._gives_r2 = job.model.loss.gives_r2
        self._spread: float | None = None

    def train(self, step: int, first: int, x: Array, labels: Array) -> None:
        """Fill `x` and `labels` with the samples of a step's batch from number `first` on."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.n)
        first += place * self.batch
        self.data.read("train", self._order[first : first + len(x)], x, labels)

    def test(self, first: int, x: Array, labels: Array) -> None:
        """Fill `x` and `labels` with test samples from number `first` on."""
        self.data.read("test", np.arange(first, first + len(x)), x, labels)

    def spread(self) -> float:
        """What guessing the test targets' mean would lose, summed over the test samples; 0 where R2 does not follow."""
        if self._spread is None:
            self._spread = 0.0
            if self._gives_r2:
                every = np.empty((self.info.n_test, self.info.outputs), self.dtype)
                for first in range(0, len(every), 256):
                    rows = every[first : first + 256]
                    x = np.empty((len(rows), math.prod(self.info.sample_shape)), self.dtype)
                    self.test(first, x, rows)
                wide = every.astype(np.float64)
                self._spread = float(np.mean(((wide - wide.mean(0)) ** 2).sum(0)))
        return self._spread

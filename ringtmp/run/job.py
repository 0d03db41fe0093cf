"""A job: a run that has been checked and can begin, the same for every trainer."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ringtmp.config.schema import RunConfig
from ringtmp.data.dataset import DataInfo, DataSet
from ringtmp.emulate.node_speed import own_costs
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer, learning_rate
from ringtmp.resilience.recovery import Recalled
from ringtmp.run.timetable import Timetable
from ringtmp.storage.run_folder import RunFolder
from ringtmp.trace.recorder import environment

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass
class Job:
    """The task of a launch, and the step at which it begins.

    Attributes
    ----------
    config : RunConfig
        Configuration of the run.
    info : DataInfo
        Facts on the data.
    model : Model
        The model.
    data : DataSet or None
        On rank 0 only, unless the trainer shares it.
    resume : RunFolder or None
        Folder of the run that is resumed.
    folder : RunFolder or None
        Folder to which this launch writes.
    launch : int
        Number of this launch among those of its run folder, from 0.
    start : int
        Updates made before this launch.
    marker : dict or None
        Body of the marker of the checkpoint that is resumed, or a stand-in for one if `recalled` is set.
    recalled : Recalled or None
        Copies in the nodes' memory from which the layers are restored, instead of from a checkpoint.
    lock : file or None
        Open for as long as this launch writes to its folder (rank 0).
    notes : list of str
        Warnings to print first.
    explicit : tuple of str
        Settings that a file, a flag or the resumed run has set.
    repeat_test : bool
        Whether the evaluation after `start` updates was lost and has to be repeated.
    writes : bool
        Whether the run has a folder, with a checkpoint at the end.
    ring : int
        Number of this rank's ring among rings side by side, from 0.
    members : tuple of int
        Ranks of the job that form this ring; empty: all.
    across : Intracomm or None
        Ranks that hold the same layers in all rings, if several rings run side by side.
    everyone : Intracomm or None
        All ranks of the job, if not all form this ring.
    """

    config: RunConfig
    info: DataInfo
    model: Model
    data: DataSet | None
    resume: RunFolder | None = None
    folder: RunFolder | None = None
    launch: int = 0
    start: int = 0
    marker: dict[str, Any] | None = None
    recalled: Recalled | None = None
    lock: Any = None
    notes: list[str] = field(default_factory=list)
    explicit: tuple[str, ...] = ()
    repeat_test: bool = False
    writes: bool = True
    ring: int = 0
    members: tuple[int, ...] = ()
    across: "Intracomm | None" = None
    everyone: "Intracomm | None" = None

    @property
    def dtype(self) -> np.dtype:
        """Type of weights, activations and gradients."""
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
        """Make the timetable of the run's training steps and evaluations."""
        every = self.config.eval_every
        every = self.steps_per_epoch if every is None else every
        return Timetable(
            self.total,
            self.config.batch_size,
            self.config.micro_batches,
            self.info.n_test,
            every,
            self.start if self.repeat_test else -1,
            self.ring,
            self.config.rings,
        )

    @property
    def node_speed(self) -> str:
        """`--node-speed` of this ring's ranks; empty: nodes are not emulated."""
        speeds = (self.config.node_speed or "").split(",")
        if self.members and self.everyone and len(speeds) == self.everyone.size:
            speeds = [speeds[rank] for rank in self.members]
        return ",".join(speeds)

    def optimizer(self) -> Optimizer:
        """Make the update rule."""
        c = self.config
        return Optimizer(c.optimizer, c.effective_weight_decay, c.momentum, c.clip_value, c.clip_norm)

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, from 0."""
        c = self.config
        return learning_rate(c.lr_schedule, c.lr, self.total, c.warmup_steps, c.lr_every, c.lr_factor)(step)

    def own_costs(self, comm: "Intracomm", rows: int, micro_batches: int) -> list[float]:
        """Seconds of a step that each layer takes on this rank, timed here or emulated. Collective over `comm`.

        Parameters
        ----------
        comm : Intracomm
            Ranks of one host measure in turn.
        rows : int
            Samples of a micro-batch.
        micro_batches : int
            Micro-batches of a step.

        Raises
        ------
        UserError
            On every rank, if one of them cannot measure its layers.
        """
        return own_costs(comm, self.model, self.dtype, self.optimizer(), self.node_speed, rows, micro_batches)

    def facts(self) -> dict[str, Any]:
        """Configuration, data, model and environment, for the marker of every checkpoint."""
        return {
            "config": self.config.stored(),
            "data": self.info.to_json(),
            "model": {"layers": self.model.to_list(), "loss": self.model.loss.name},
            "environment": environment(),
        }

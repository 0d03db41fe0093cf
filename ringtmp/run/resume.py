"""Resume a run: find the step from which it continues, and check that it can."""

from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.loading import newest_checkpoint
from ringtmp.comm.mpi import from_rank_0
from ringtmp.config.schema import RunConfig
from ringtmp.errors import RunFailure, UserError
from ringtmp.resilience.incident import supervised
from ringtmp.resilience.recovery import Recalled, recall
from ringtmp.run.history import tested
from ringtmp.run.inputs import open_run_data
from ringtmp.run.job import Job
from ringtmp.storage.run_folder import RunFolder, open_run_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

# Settings with another value of which the checkpoint's weights, slots or place in the data order would mean
# something else.
_FIXED = ("data", "dtype", "optimizer", "seed", "batch_size", "test_fraction", "normalise", "loss")


def resumed_folder(values: dict[str, Any]) -> RunFolder:
    """Open the run folder that the setting `resume` in `values` names. Raises `UserError` if it does not exist."""
    return open_run_folder(str(values["resume"]), str(values.get("out", RunConfig.model_fields["out"].default)))


def identity_of(values: dict[str, Any]) -> str:
    """Identity of the run that settings continue in its own folder; empty if they continue none (rank 0).

    `values` are the settings, by name. Raises `UserError` if the folder cannot be used.
    """
    if not values.get("resume") or values.get("name"):
        return ""
    folder = resumed_folder(values)
    try:
        return folder.identity()
    except OSError as error:
        raise UserError(f"out: cannot write to {folder.path}: {error.strerror}") from None


def find_start(
    folder: RunFolder, recalled: Recalled | None, lost: list[str], from_beginning: bool = False
) -> tuple[dict[str, Any] | None, list[str]]:
    """Find where a run continues: the nodes' memory or its newest intact checkpoint, whichever is newer.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    recalled : Recalled or None
        The newest step that the nodes' memory holds completely.
    lost : list of str
        Notes on losses of the nodes' memory.
    from_beginning : bool
        Whether a run that has neither may begin again; a supervised one always may.

    Returns
    -------
    marker : dict or None
        Marker of the checkpoint, or a stand-in with the same keys for the nodes' memory; None: begin again.
    notes : list of str
        Lines on what is not used, and why.

    Raises
    ------
    UserError
        The run has nothing to continue from.
    """
    newest = max(checkpoint.committed(folder.checkpoints), default=-1)
    marker: dict[str, Any] | None = None
    notes: list[str] = []

    # Verify checkpoints only where the memory does not hold a newer step: that reads all their bytes.
    if recalled is None or recalled.step < newest:
        try:
            marker, notes = newest_checkpoint(folder)
        except UserError:
            if recalled is None and (not (from_beginning or supervised()) or newest >= 0):
                raise
    notes = lost + notes

    # Choose the newer one.
    if recalled and (marker is None or recalled.step > marker["step"]):
        facts = {"config": folder.config(), "data": folder.data(), "model": {"layers": recalled.tables}}
        marker = {"step": recalled.step, "facts": facts, "recalled": recalled}
    elif lost:
        where = f"the checkpoint of step {marker['step']}" if marker else "the beginning"
        notes.append(f"continues from {where}")
    return marker, notes


def continue_after_loss(comm: "Intracomm", job: Job) -> Job:
    """Make the job with which the surviving ranks of a job continue. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The surviving ranks.
    job : Job
        The job that has lost processes.

    Raises
    ------
    RunFailure
        The data were given from Python to a process that is lost.
    """
    folder = job.folder
    assert folder
    recalled, lost = recall(comm, folder.identity())
    marker, notes = from_rank_0(comm, lambda: find_start(folder, recalled, lost, from_beginning=True))
    config = job.config.model_copy(update={"name": None, "resume": str(folder.path)})
    data = job.data
    if comm.rank == 0 and data is None:
        if config.data == "arrays":
            raise RunFailure("the data were given from Python to a process that is lost")
        data = open_run_data(config, None, job.info)
    resumed = Job(config, job.info, job.model, data, resume=folder, marker=marker, notes=notes, explicit=job.explicit)
    if marker:
        resumed.start, resumed.recalled = marker["step"], marker.get("recalled")
        find_lost_test(comm, resumed)
    return resumed


def check_fixed(stored: RunConfig, config: RunConfig) -> None:
    """Raise `UserError` if `config` differs from `stored` in a setting that a resumed run cannot change."""
    for key in _FIXED:
        old, new = getattr(stored, key), getattr(config, key)
        if old != new:
            raise UserError(f"resume: {key} was {old!r} in the checkpoint's run and cannot become {new!r}")


def check_model(job: Job) -> None:
    """Raise `UserError` if the checkpoint's layers are not those of the model of `job`."""
    assert job.marker
    stored, mine = job.marker["facts"]["model"]["layers"], job.model.to_list()
    if len(stored) != len(mine):
        raise UserError(f"resume: the checkpoint's model has {len(stored)} layers, this one {len(mine)}")
    for index, (old, new) in enumerate(zip(stored, mine, strict=True)):
        if old != new:
            raise UserError(f"resume: layer {index} of the checkpoint is {old}, of this model {new}")


def find_lost_test(comm: "Intracomm", job: Job) -> None:
    """Set `repeat_test` of `job` if the evaluation due after `job.start` updates is not in the history.

    Collective over `comm`.
    """
    assert job.resume
    due = job.start % job.timetable().every == 0 or job.start == job.total
    history = job.resume.history
    job.repeat_test = from_rank_0(comm, lambda: due and not job.config.name and not tested(history, job.start))

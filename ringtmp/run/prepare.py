"""Prepare a job: check everything that can be checked first, then make its run folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringtmp.checkpoint import format as checkpoint
from ringtmp.comm.mpi import from_rank_0, raise_on_all
from ringtmp.config.overrides import merge
from ringtmp.config.schema import RunConfig, make_config
from ringtmp.data.dataset import DataInfo, DataSet
from ringtmp.errors import UserError
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.layer import Array
from ringtmp.nn.optimizers import Optimizer
from ringtmp.resilience.incident import supervised
from ringtmp.resilience.recovery import Recalled, recall
from ringtmp.run.inputs import build_run_model, open_run_data, read_model_file
from ringtmp.run.job import Job
from ringtmp.run.resume import check_fixed, check_model, find_lost_test, find_start, identity_of, resumed_folder
from ringtmp.storage.run_folder import RunFolder, lock, make_run_folder, store_config

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_LOCK = 120.0  # seconds that a job which continues after a failure waits for the end of the job before it


def prepare(
    comm: "Intracomm",
    from_file: dict[str, Any],
    flags: dict[str, Any],
    arrays: tuple[Array, ...] | None,
    check: Callable[[RunConfig, int], None] = lambda config, ranks: None,
    uses_node_memory: bool = False,
) -> Job:
    """Check everything that can be checked before a run folder is touched. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        All ranks of the job.
    from_file, flags : dict
        Settings of the configuration file and of the command line, which have precedence. Only rank 0's count.
    arrays : tuple of array or None
        Data given from Python instead of the setting `data`.
    check : callable
        Raises `UserError` for a configuration with which the trainer cannot run on that number of ranks.
    uses_node_memory : bool
        Whether the trainer can continue from copies in the nodes' memory.

    Raises
    ------
    UserError
        Bad input; on every rank, whichever rank found it.
    """
    # See what the nodes' memory holds of the run, then let rank 0 check settings and open the data.
    run = from_rank_0(comm, lambda: identity_of(merge(from_file, flags)))
    recalled, lost = recall(comm, run) if run and uses_node_memory else (None, [])
    data: list[DataSet] = []
    common = from_rank_0(
        comm, lambda: _check_on_rank_0(merge(from_file, flags), arrays, check, comm.size, recalled, lost, data)
    )

    # Make the same job on every rank.
    config = RunConfig.model_construct(**common["config"])
    info = DataInfo.from_json(common["info"])
    job = Job(
        config,
        info,
        build_run_model(config, info),
        data[0] if data else None,
        resume=RunFolder(Path(common["resume"])) if common["resume"] else None,
        marker=common["marker"],
        notes=common["notes"],
        explicit=common["explicit"],
    )

    # Check what is resumed against the model and the number of steps.
    if job.marker:
        job.start, job.recalled = job.marker["step"], job.marker.get("recalled")
        check_model(job)
        find_lost_test(comm, job)
        if job.start > job.total or (job.start == job.total and common["done"]):
            raise UserError(
                f"resume: {common['resume']} has made {job.start} steps already, {job.total} are asked for; "
                "give more --epochs or --steps"
            )
    return job


def _check_on_rank_0(
    values: dict[str, Any],
    arrays: tuple[Array, ...] | None,
    check: Callable[[RunConfig, int], None],
    ranks: int,
    recalled: Recalled | None,
    lost: list[str],
    data: list[DataSet],
) -> dict[str, Any]:
    """Values that `prepare` sends from rank 0 to all ranks; the open data set is appended to `data`."""
    # Find the checkpoint of the run that is resumed.
    stored: dict[str, Any] = {}
    resume, marker, done = None, None, True
    notes: list[str] = []
    if values.get("resume"):
        folder = resumed_folder(values)
        stored, resume = folder.config(), str(folder.path)
        marker, notes = find_start(folder, recalled, lost)
        done = folder.status().get("state") in ("finished", "stopped")

    # Check the settings, all of them and against the checkpoint.
    config = make_config(merge(stored, values))
    if isinstance(config.model, str) and config.model.endswith(".toml"):
        config = config.model_copy(update={"model": read_model_file(config.model)})
    check(config, ranks)
    if marker:
        check_fixed(make_config(marker["facts"]["config"]), config)

    # Open the data.
    opened = open_run_data(config, arrays, DataInfo.from_json(marker["facts"]["data"]) if marker else None)
    if config.batch_size > opened.info.n_train:
        raise UserError(
            f"batch_size: {config.batch_size} exceeds the {opened.info.n_train} training samples of {config.data}"
        )
    data.append(opened)
    return {
        "config": config.model_dump(),
        "info": opened.info.to_json(),
        "resume": resume,
        "marker": marker,
        "notes": notes,
        "explicit": tuple(merge(stored, values)),
        "done": done,
    }


def preload(from_file: dict[str, Any], flags: dict[str, Any], reads_data: bool) -> None:
    """Load in advance what a launch that resumes a run needs: kernels and, if requested, data.

    Parameters
    ----------
    from_file, flags : dict
        Settings of the configuration file and of the command line, which have precedence; `resume` is set.
    reads_data : bool
        Whether this process opens the data.

    Raises
    ------
    UserError
        The run cannot be resumed with these settings.
    """
    values = merge(from_file, flags)
    folder = resumed_folder(values)
    config, info = make_config(merge(folder.config(), values)), DataInfo.from_json(folder.data())
    Optimizer(config.optimizer).load()
    prepare_kernels(config.dtype, build_run_model(config, info).families | {"keep", "serve"})
    if reads_data:
        open_run_data(config, None, info)


def open_folder(comm: "Intracomm", job: Job) -> None:
    """Make the run folder, or lock the one that is resumed, and set `folder`, `launch` and `lock` of `job`.

    Collective over `comm`; raises `UserError` on every rank if the folder cannot be made, written or seen.
    """
    # Make the folder of a new run, which is rank 0's work.
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

    # Check that every rank sees it, then lock it and begin a launch.
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

"""Finds the program that starts MPI ranks, and the words that start a Python module on them."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ringtmp.errors import UserError

# What launchers set for each process that they start: number of processes, the process's rank, and who sets them. The
# launcher closest to the processes comes first: SLURM sets its variables in a batch script as well, where mpirun may
# start fewer ranks than the job has tasks.
LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK", "an mpirun or srun that speaks PMI (MPICH, Intel MPI)"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "Open MPI's mpirun"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("SLURM_NTASKS", "SLURM_PROCID", "a SLURM job"),
)
RANK_VARIABLES = tuple(dict.fromkeys(rank for _, rank, _ in LAUNCHERS))


def find_mpirun() -> str:
    """The launcher of this Python's MPI: $MPIRUN, else the one beside the interpreter, else the one on the PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return os.environ.get("MPIRUN") or (str(beside) if beside.exists() else "mpirun")


def started_by_launcher() -> bool:
    """Whether mpirun or srun has started this process, so that it is a rank already."""
    in_batch_script = "SLURM_STEP_ID" not in os.environ  # where SLURM_PROCID is set all the same
    names = {*RANK_VARIABLES, "PMIX_RANK"} - ({"SLURM_PROCID"} if in_batch_script else set())
    return any(name in os.environ for name in names)


def rank_command(module: str, flags: Sequence[str], ranks: int, launcher: str = "") -> list[str]:
    """The command that starts `python -m MODULE FLAGS` on `ranks` ranks.

    Parameters
    ----------
    module : str
        Import name of a program.
    flags : sequence of str
        Its flags.
    ranks : int
        Number of ranks, from 1.
    launcher : str
        Words that start ranks, such as "mpirun --oversubscribe"; empty: srun inside a SLURM job, otherwise
        `find_mpirun`.

    Raises
    ------
    UserError
        The launcher does not exist.
    """
    words = shlex.split(launcher) or (_srun() if "SLURM_JOB_ID" in os.environ else shlex.split(find_mpirun()))
    if not shutil.which(words[0]):
        raise UserError(
            f"launcher: {words[0]} does not exist; install an MPI (pip install 'ringtmp[mpich]'), load the site's, or "
            "name it with --launcher or MPIRUN"
        )
    return [*words, "-n", str(ranks), sys.executable, "-m", module, *flags]


def _srun() -> list[str]:
    """The scheduler's launcher: a rank that fails ends the job step, and ranks are bound to cores."""
    kind = os.environ.get("SLURM_MPI_TYPE", "pmi2")  # pmi2 fits MPICH and its kin, pmix Open MPI
    return ["srun", f"--mpi={kind}", "--kill-on-bad-exit=1", "--cpu-bind=cores"]

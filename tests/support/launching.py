"""Where the project is, and how its jobs are started under the real launcher."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = os.environ.get("MPIRUN") or str(Path(sys.executable).parent / "mpirun")


def command(ranks: int, *arguments: str) -> list[str]:
    """The words that run ``python ARGUMENTS`` on `ranks` ranks."""
    return [MPIRUN, "-n", str(ranks), sys.executable, *arguments]


def job_flags(steps: int, *more: str) -> list[str]:
    """Flags of the small job that the resilience tests strike, of `steps` steps, followed by `more`.

    Checkpoints and evaluations fall on different steps.
    """
    values = {"model": "mlp:64-48x6-10", "steps": steps, "eval-every": 7, "checkpoint-every": 9, "batch-size": 32}
    return [word for key, value in (values | {"name": "run"}).items() for word in (f"--{key}", str(value))] + [*more]

"""Where the project is, and how its jobs are started under the real launcher."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = os.environ.get("MPIRUN") or str(Path(sys.executable).parent / "mpirun")


def command(ranks: int, *arguments: str) -> list[str]:
    """The words that run ``python ARGUMENTS`` on `ranks` ranks."""
    return [MPIRUN, "-n", str(ranks), sys.executable, *arguments]

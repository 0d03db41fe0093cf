"""Whole jobs under the real launcher."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = os.environ.get("MPIRUN") or str(Path(sys.executable).parent / "mpirun")

Launch = Callable[..., subprocess.CompletedProcess]


def command(ranks: int, *arguments: str) -> list[str]:
    return [MPIRUN, "-n", str(ranks), sys.executable, *arguments]


@pytest.fixture
def launch(tmp_path) -> Launch:
    """Run `python ARGUMENTS` on so many ranks in an empty folder, with a time limit: nothing may hang."""

    def run(ranks: int, *arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(ranks, *arguments),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | env,
        )

    return run


@pytest.fixture
def train(launch) -> Launch:
    """Run `python -m ringtmp.train ARGUMENTS`."""
    return lambda ranks, *arguments, **more: launch(ranks, "-m", "ringtmp.train", *arguments, **more)

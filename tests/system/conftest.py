"""Whole jobs under the real launcher."""

import os
import subprocess
from collections.abc import Callable

import pytest
from launching import command

Launch = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def launch(tmp_path) -> Launch:
    """Run `python ARGUMENTS` on so many ranks in an empty folder, with a time limit: nothing may hang."""

    def run(ranks: int, *arguments: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess:
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

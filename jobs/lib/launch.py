"""The one launcher: real runs under mpirun, on this machine or on hosts with links of their own; rounds by turns.

launch(4, [{"way": "ring", "train": {...}, "skip": 3}])      # one answer for each run
for number, found in rounds(runs, 3, lambda some: launch(4, some)): ...
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ringtmp.comm.launcher import find_mpirun

ROOT = Path(__file__).resolve().parents[2]  # the repository, in a checkout
IN_CHECKOUT = (ROOT / "pyproject.toml").is_file()
MPIRUN = find_mpirun()
_HELD_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # hold OpenBLAS below what the processor can do
_ON_RANKS = "ringtmp.jobs.lib.on_ranks"

Found = TypeVar("Found")


class Elsewhere(Protocol):
    """Hosts other than this machine; `ringtmp.jobs.lib.hosts.Hosts` makes them."""

    def mpirun(
        self,
        words: Sequence[str],
        ranks: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        timeout: float | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program on the hosts.

        Parameters
        ----------
        words : sequence of str
            The program and its arguments.
        ranks : int, optional
            Number of ranks; by default one on each host.
        env : mapping, optional
            Environment of the program.
        cwd : str or Path
            Its working folder.
        timeout : float, optional
            Seconds after which it is killed.
        """


class LaunchFailed(SystemExit):
    """A launch that ended with an error; as a `SystemExit` its text ends a benchmark that does not catch it.

    Parameters
    ----------
    words : sequence of str
        The command.
    done : CompletedProcess
        Its result.

    Attributes
    ----------
    status : int
        Exit status of the launch.
    text : str
        All that it printed.
    """

    def __init__(self, words: Sequence[str], done: "subprocess.CompletedProcess[str]") -> None:
        super().__init__(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
        self.status, self.text = done.returncode, f"{done.stdout}{done.stderr}"

    @property
    def reason(self) -> str:
        """Why it failed, in one line: the refusal of rank 0, else the last line with an error, else the status."""
        if refused := re.search(r"^REFUSED (.*)$", self.text, re.MULTILINE):
            return refused[1]
        said = [line for line in self.text.splitlines() if "Error" in line]
        return said[-1].strip() if said else f"exit status {self.status}"


def fair_environment() -> dict[str, str]:
    """This environment with one thread for every library, and without settings that slow down a BLAS."""
    env = {key: value for key, value in os.environ.items() if key not in _HELD_BACK}
    if IN_CHECKOUT:  # a checkout may be used without having been installed
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return env | dict.fromkeys(threads, "1")


def run_json(
    module: str, asked: Mapping[str, Any], ranks: int = 0, hosts: Elsewhere | None = None, timeout: float = 600
) -> Any:
    """Run `python -m module ASKED` and return the JSON of the last line that it prints.

    Parameters
    ----------
    module : str
        A program that reads JSON from its only argument.
    asked : mapping
        That JSON.
    ranks : int
        Start it under mpirun on this many ranks; 0: alone.
    hosts : Elsewhere, optional
        Start it there, one rank on each host, instead of on this machine.
    timeout : float
        Seconds after which the launch is killed.

    Raises
    ------
    LaunchFailed
        The program ended with an error.
    """
    words = [sys.executable, "-m", module, json.dumps(asked)]
    if hosts:
        done = hosts.mpirun(words, env=fair_environment(), cwd=Path.cwd(), timeout=timeout)
    else:
        words = [MPIRUN, "-n", str(ranks), *words] if ranks else words
        done = subprocess.run(words, env=fair_environment(), capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise LaunchFailed(words, done)
    return json.loads(done.stdout.splitlines()[-1])


def launch(
    ranks: int,
    runs: Sequence[Mapping[str, Any]],
    hosts: Elsewhere | None = None,
    timeout: float = 600,
    memory_limit: int = 0,
) -> list[dict[str, Any]]:
    """Train several runs one after the other in one launch; the answer of `ringtmp.jobs.lib.on_ranks` for each.

    Parameters
    ----------
    ranks : int
        Ranks of the launch; on `hosts` one for each host.
    runs : sequence of mapping
        Each with `trainer` ("ring" or "ps"), `train` (settings), `skip` (steps left out at the beginning).
    hosts : Elsewhere, optional
        Start it there, one rank on each host, instead of on this machine.
    timeout : float
        Seconds after which the launch is killed.
    memory_limit : int
        Bytes of heap that no rank may exceed (RLIMIT_DATA); 0: no limit.

    Raises
    ------
    LaunchFailed
        A run failed.
    """
    return run_json(_ON_RANKS, {"runs": list(runs), "memory_limit": memory_limit}, ranks, hosts, timeout)


def measure_link(hosts: Elsewhere | None = None) -> dict[str, float]:
    """Measured `latency` (s) and `bandwidth` (bytes/s, each way) between two ranks, on `hosts` if given."""
    return run_json(_ON_RANKS, {"link": True}, 2, hosts, 60)


def steps_for(step: float, seconds: float, skip: int, least: int, most: int) -> int:
    """Steps of a run that lasts a given time.

    Parameters
    ----------
    step : float
        Seconds of a step.
    seconds : float
        Seconds that the run is to last, without the skipped steps.
    skip : int
        Steps added at the beginning.
    least, most : int
        Bounds of the steps that are not skipped.
    """
    return skip + min(most, max(least, math.ceil(seconds / step)))


def rounds(
    runs: Mapping[str, Any], count: int, run_all: Callable[[list[Any]], Sequence[Found]]
) -> Iterator[tuple[int, dict[str, Found]]]:
    """Measure all runs `count` times by turns, every other round backwards.

    Parameters
    ----------
    runs : mapping
        Runs by name, in the order of the first round.
    count : int
        Number of rounds, 1 or more.
    run_all : callable
        Receives the runs of a round in their order; returns a result for each.

    Yields
    ------
    (int, dict)
        Number of the round (0, 1, ...), and the results by name, in the order of `runs`.
    """
    for number in range(count):
        names = list(runs)[:: -1 if number % 2 else 1]
        found = dict(zip(names, run_all([runs[name] for name in names]), strict=True))
        yield number, {name: found[name] for name in runs}

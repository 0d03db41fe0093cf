"""One job under a launcher, as its supervisor sees it: its processes, the first one that ends, and a clean end.

A launcher's exit status says little (0 was seen for a lost job), and the launcher may take seconds to end. Therefore
each rank on this host is watched through a descriptor of its process (pidfd): the first one to end is known at once
and by its number, and no later process is ever mistaken for it.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ringtmp.comm.peers import Peers
from ringtmp.storage.run_folder import RunFolder

_GRACE = 15.0  # seconds that a launcher may take to end after the run has
_LOOK = 0.02  # seconds between two looks for the processes of a job that starts


@dataclass
class End:
    """How a job ended.

    Attributes
    ----------
    status : int or None
        Exit status of the launcher; None if it had to be killed.
    lost : int
        The first rank that was lost, or -1.
    where : str
        That rank's name for a message; empty if none was lost.
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
        Command line, with the launcher.
    env : mapping
        Environment variables besides those of this process.
    survives_losses : bool
        Whether the job itself continues when it loses a process.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], survives_losses: bool = False) -> None:
        self.survives_losses, self._looked = survives_losses, 0.0
        self.srun = Path(command[0]).name == "srun" and "SLURM_JOB_ID" in os.environ
        self.before, self.left = _segments(), set[Path]()
        self.started = time.time()
        # In a separate session: Ctrl-C reaches the supervisor alone, which passes it on.
        self.process = subprocess.Popen(command, env=os.environ | env, stdin=subprocess.DEVNULL, start_new_session=True)
        self.ranks: dict[int, int] = {}  # descriptor of each process on this host, by rank
        self.peers = Peers([])

    def send_signal(self, number: int) -> None:
        """Send signal `number` to all ranks through the launcher, or with scancel: srun would have the ranks killed."""
        with suppress(OSError):
            if self.srun:
                subprocess.run(["scancel", f"--signal={number}", os.environ["SLURM_JOB_ID"]], timeout=60)
            else:
                self.process.send_signal(number)

    def wait(self, folder: RunFolder | None, until: float) -> End | None:
        """Wait for the end of the job.

        Parameters
        ----------
        folder : RunFolder or None
            Folder of the run, which lists the job's processes; None: it does not exist yet.
        until : float
            Seconds since the epoch at which to stop waiting.

        Returns
        -------
        End or None
            None: the job still runs.
        """
        while self.process.poll() is None:
            # Give up a launcher that waits for its agent on a lost host.
            left = until - time.time()
            if self._is_overdue(folder):
                return End(None)
            if left <= 0:
                return None

            # Find the job's processes, and wait until one of them ends.
            if not self.ranks:
                self._find_ranks(folder)
            if not self.ranks:
                time.sleep(_LOOK)
                continue
            ended, _, _ = select.select(list(self.ranks.values()), [], [], min(left, 0.5))
            if not ended:
                continue

            # A job that survives losses is watched further, by its other ranks.
            noticed = time.time()
            lost = next(rank for rank, handle in self.ranks.items() if handle in ended)
            if self.survives_losses and len(self.ranks) > 1:
                os.close(self.ranks.pop(lost))
                continue
            return self._end_of(lost, noticed, folder)
        return End(self.process.returncode)

    def _is_overdue(self, folder: RunFolder | None) -> bool:
        """Whether the run has stated its end long ago, and the launcher still runs."""
        if folder is None or time.time() - self._looked < 1.0:
            return False
        self._looked = time.time()
        status = folder.status()
        ended = status.get("state") in ("finished", "stopped") and status.get("time", 0) >= self.started
        return ended and time.time() - status["time"] > _GRACE

    def _end_of(self, lost: int, noticed: float, folder: RunFolder | None) -> End:
        """The end that began with the rank `lost`: a loss, unless the run has stated its own end."""
        ended = folder is not None and folder.status().get("state") in ("finished", "stopped")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30 if ended else 1)
        status = self.process.returncode
        return End(status, noticed=noticed) if ended else End(status, lost, self.peers.name(lost), noticed)

    def _find_ranks(self, folder: RunFolder | None) -> None:
        """Open a descriptor for each process of the job on this host, once the run folder states them."""
        if folder is None:
            return
        found = sorted(folder.path.glob("traces/*/processes.json"))
        try:
            if not found or found[-1].stat().st_mtime < self.started:
                return
            self.peers = Peers(json.loads(found[-1].read_text()))
        except (OSError, ValueError):
            return
        for rank in self.peers.local():
            with suppress(OSError):
                self.ranks[rank] = os.pidfd_open(self.peers.places[rank][1])

    def clear(self) -> None:
        """Kill the processes of the job that remain on this host."""
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
        """Remove the shared memory that the MPI of a killed job has left; called after `clear`, when time permits."""
        _remove(self.left)


def _segments() -> set[Path]:
    """This user's segments of MPICH and Open MPI in shared memory."""
    found = set()
    for pattern in ("mpich_shm_*", "sm_segment.*", "vader_segment.*"):
        for path in Path("/dev/shm").glob(pattern):
            with suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    found.add(path)
    return found


def _remove(segments: set[Path]) -> None:
    """Remove the segments that no process has mapped."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if segments else ():
        with suppress(OSError):
            text = maps.read_text()
            mapped |= {path for path in segments if str(path) in text}
    for path in segments - mapped:
        path.unlink(missing_ok=True)

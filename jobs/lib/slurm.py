"""A SLURM cluster on this one machine, for as long as a block lasts: real sbatch, requeue and preemption signals.

    with Slurm(folder, nodes=2) as slurm:
        job = slurm.submit("jobs/slurm/supervise.sbatch", ["--steps", "100"], {"PYTHON": sys.executable})
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        slurm.wait(job)

Needs Debian's slurmctld, slurmd, slurm-client, munge and libpmi2-0 (apt-get install), and root. Every slurmd is on
loopback with its own port; nothing under /etc changes, and nothing remains afterwards. The unusual settings in
slurm.conf were found necessary where there is neither systemd nor a cgroup tree, or spares minutes of waiting.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ringtmp.comm.mpi import runs

_TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue")
_CONF = """ClusterName=ringtmp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why a cluster cannot be made here, in one line; None if it can."""
    missing = [tool for tool in _TOOLS if not _find(tool)]
    if missing:
        return f"SLURM needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge libpmi2-0)"
    return None if os.getuid() == 0 else "SLURM's daemons need root here"


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Slurm:
    """A cluster of some nodes.

    Parameters
    ----------
    folder : Path
        Folder of its files; short, because socket paths must fit into 108 characters.
    nodes, cpus : int
        Number of nodes, and of CPUs that each claims to have.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4) -> None:
        self.folder, self.nodes = folder, [f"node{n + 1}" for n in range(nodes)]
        for name in ("state", "spool", "key"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "key").chmod(0o700)
        port, host = _ports(nodes + 1), socket.gethostname().split(".")[0]
        lines = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + n} CPUs={cpus} State=UNKNOWN"
            for n, name in enumerate(self.nodes)
        )
        self.conf = folder / "slurm.conf"
        self.conf.write_text(_CONF.format(host=host, port=port, folder=folder, nodes=lines))
        # slurmd looks for cgroups, and ends where /sys/fs/cgroup is not mounted, though nothing uses them.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.env = os.environ | {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        key = self.folder / "key" / "munge"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {
            "key-file": key,
            "socket": self.folder / "munge.sock",
            "pid-file": self.folder / "key" / "munged.pid",
            "seed-file": self.folder / "key" / "seed",
            "log-file": self.folder / "key" / "log",
        }
        try:
            self._daemon("munged", "--force", *(f"--{name}={path}" for name, path in files.items()))
            self._daemon("slurmctld", "-c", "-f", str(self.conf))
            for name in self.nodes:
                (self.folder / "spool" / name).mkdir(exist_ok=True)
                self._daemon("slurmd", "-c", "-N", name, "-f", str(self.conf))
            self._until(lambda: self.run("sinfo", "-hN", "-t", "idle", "-o", "%N").split() == self.nodes, "nodes", 30)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _daemon(self, name: str, *words: str) -> None:
        tool = _find(name)
        assert tool
        subprocess.run([tool, *words], env=self.env, check=True, capture_output=True, timeout=30)

    def run(self, *words: str) -> str:
        """Run one of SLURM's commands, `words`; return its output."""
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=30).stdout.strip()

    def submit(self, script: str, flags: Sequence[str], env: Mapping[str, str], *options: str, cwd: Path) -> str:
        """Submit a batch script; return the number of its job.

        Parameters
        ----------
        script : str
            Path of the script.
        flags : sequence of str
            Its arguments.
        env : mapping
            Added to its environment.
        *options : str
            Options of sbatch.
        cwd : Path
            Its working folder.

        Raises
        ------
        RuntimeError
            SLURM refused it.
        """
        words = ["sbatch", "--parsable", "--export=ALL", *options, script, *flags]
        done = subprocess.run(words, env=self.env | dict(env), cwd=cwd, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """State of the job `job`: RUNNING, COMPLETED, ...; empty: unknown."""
        words = self.run("scontrol", "-o", "show", "job", job).split()
        return next((word[9:] for word in words if word.startswith("JobState=")), "")

    def wait(self, job: str, *states: str, timeout: float = 60) -> str:
        """Wait until a job is in a given state; return the state.

        Parameters
        ----------
        job : str
            Number of the job.
        *states : str
            States to wait for; by default any end state.
        timeout : float
            Seconds to wait.

        Raises
        ------
        TimeoutError
            It did not reach such a state in time.
        """
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self._until(lambda: self.state(job) in wanted, f"job {job} {' or '.join(wanted)}", timeout)
        return self.state(job)

    def lose(self, node: str) -> None:
        """Kill all processes of the node called `node`, its daemon first, and mark it down.

        SLURM itself would notice only after minutes.
        """
        os.kill(int((self.folder / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
        said = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        parents, lost = {}, set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                pid = int(process.name)
                parents[pid] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if said <= set((process / "environ").read_bytes().split(b"\0")):
                    lost.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in lost} - lost:
            lost |= more  # mpirun gives ranks the environment of the node on which it runs
        for pid in lost:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def _until(self, condition, what: str, seconds: float) -> None:  # noqa: ANN001
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {what} after {seconds:g} s")
            time.sleep(0.1)

    def close(self) -> None:
        """Cancel all jobs and end the daemons."""
        self.run("scancel", "--full", "--user=root")
        pids = [path for path in (*self.folder.glob("*.pid"), self.folder / "key" / "munged.pid") if path.exists()]
        numbers = [int(path.read_text()) for path in pids]
        for number in numbers:
            with suppress(OSError):
                os.kill(number, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while any(map(runs, numbers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for number in filter(runs, numbers):
            os.kill(number, signal.SIGKILL)


def _ports(count: int) -> int:
    """First of `count` consecutive ports that are free now."""
    for first in range(17000, 30000, 50):
        try:
            for port in range(first, first + count):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports")

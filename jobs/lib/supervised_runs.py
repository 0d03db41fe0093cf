"""Supervised runs of equal layers on emulated nodes, each with separate memory, whose ranks are killed."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringtmp.jobs.lib.struck_job import Healing, Struck, Supervised
from ringtmp.jobs.lib.watch import Moment, Watch, useful
from ringtmp.jobs.lib.ways import Way

# 64 inputs, 64 outputs and equal layers: they divide evenly over 3, 4, 7 and 8 nodes.
DATA = "synthetic:samples=2048,features=64,classes=64"
WIDTH, ROWS = 64, 48  # of a layer, and samples of a step


def chain(layers: int) -> str:
    """Specification of a model of `layers` equal layers."""
    return f"mlp:{WIDTH}-{WIDTH}x{layers - 1}-{WIDTH}"


def pace_of(layers: int, seconds: float, share: float) -> float:
    """GFLOP/s of a node on which a part of a step takes a given time.

    Parameters
    ----------
    layers : int
        Layers of the model; see `chain`.
    seconds : float
        Seconds that the node computes in a step.
    share : float
        Share of a step's work that the node does, 0 to 1.
    """
    return float(f"{6 * WIDTH * WIDTH * layers * ROWS * share / seconds / 1e9:.3g}")


def paced(layers: int, seconds: float, share: float, steps: int, **more: Any) -> list[str]:
    """Flags of a run of equal layers on emulated nodes.

    Parameters
    ----------
    layers : int
        Layers of the model; see `chain`.
    seconds, share : float
        Set the speed of the nodes; see `pace_of`.
    steps : int
        Steps of the run.
    **more
        Further flags, with underscores; they override the others.
    """
    flags: dict[str, Any] = {
        "data": DATA,
        "model": chain(layers),
        "batch-size": ROWS,
        "steps": steps,
        "eval-every": 0,
        "name": "run",
        "node-speed": pace_of(layers, seconds, share),
        "jitter": 0.2,
        "lr": 1e-3,
    } | {key.replace("_", "-"): value for key, value in more.items()}
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


@dataclass(frozen=True)
class Recovery:
    """A way to recover; `RECOVERIES` in `ringtmp.jobs.experiments.resilience` lists all.

    Attributes
    ----------
    name : str
        Name in result files and tables.
    start : callable
        Starts a ring, given a folder, a number of ranks, and flags of the trainer.
    stands_by : bool
        Whether stand-by processes must have loaded everything before a fault counts.
    aim : float
        Seconds from a kill to the first new step.
    kills : int
        Most kills in one run, if each leaves one rank fewer; 0: any number.
    """

    name: str
    start: Callable[[Path, int, Sequence[str]], Struck]
    stands_by: bool
    aim: float
    kills: int = 0


def relaunch(*options: str) -> Callable[[Path, int, Sequence[str]], Struck]:
    """Start jobs under `ringtmp supervise` with `options`, each rank on a node with separate memory."""

    def start(folder: Path, ranks: int, flags: Sequence[str]) -> Struck:
        return Supervised(folder, ranks, flags, [*apart(ranks), *options])

    return start


def heal(folder: Path, ranks: int, flags: Sequence[str]) -> Struck:
    """Start a job under Open MPI with ULFM, which continues within the job (arguments: those of `Healing`)."""
    return Healing(folder, ranks, [*flags, "--state-copies", "1"])


def apart(ranks: int) -> list[str]:
    """Options of the supervisor: `ranks` nodes a, b, c, ... with separate memory, up while the file `up` names them."""
    names = [chr(ord("a") + rank) for rank in range(ranks)]
    return ["--hosts", ",".join(names), "--emulate", "--probe", "cat up", "--probe-every", "1"]


@contextmanager
def place(ranks: int) -> Iterator[Path]:
    """A folder for a run whose `ranks` nodes are all up, and node memory; both are removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="resilience-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "up").write_text(" ".join(chr(ord("a") + rank) for rank in range(ranks)))
        before, os.environ["RINGTMP_NODE_MEMORY"] = os.environ.get("RINGTMP_NODE_MEMORY"), memory_of(folder)
        try:
            yield folder
        finally:
            os.environ.pop("RINGTMP_NODE_MEMORY")
            if before is not None:
                os.environ["RINGTMP_NODE_MEMORY"] = before
            with suppress(OSError):
                for path in sorted(Path(memory_of(folder)).rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                Path(memory_of(folder)).rmdir()


def memory_of(folder: Path) -> str:
    """Folder of the node memory of a run in `folder`: in /dev/shm if that can be written."""
    shared = Path("/dev/shm")
    return str(shared / folder.name if os.access(shared, os.W_OK) else folder / "memory")


def lose_node(folder: Path, rank: int) -> None:
    """Remove the node of rank `rank` and its memory for a run in `folder`; the caller still has to kill the process."""
    name = chr(ord("a") + rank)
    up = folder / "up"
    up.write_text(" ".join(word for word in up.read_text().split() if word != name))
    for path in Path(memory_of(folder)).glob(f"*/{name}"):
        for copy in path.iterdir():
            copy.unlink(missing_ok=True)
        path.rmdir()


# ---- processes that stand by ----------------------------------------------------------------------------------------


def standing_by(job: Struck) -> list[int]:
    """Stand-by processes of the job `job`, loaded or not."""
    mark = b"RINGTMP_STANDBY=" + os.fsencode(os.path.realpath(job.folder))
    here, found = set(job.pids()), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes()
            if b"python" in words.split(b"\0")[0] and mark in (path / "environ").read_bytes():
                found.append(int(path.name))
    return [pid for pid in found if pid not in here]


def loaded(job: Struck, number: int, timeout: float = 45.0) -> bool:
    """Wait until `number` processes of `job` stand by and no longer compute; False if not within `timeout` seconds."""
    deadline, before = time.monotonic() + timeout, -1.0
    while time.monotonic() < deadline:
        pids = standing_by(job)
        used = sum(map(_used, pids))
        if len(pids) >= number and before >= 0 and used - before < 0.05 * number:
            return True
        before = used if len(pids) >= number else -1.0
        time.sleep(0.5)
    return False


def _used(pid: int) -> float:
    """Seconds of processor time of a process."""
    with suppress(OSError):
        parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# ---- whole runs -----------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """A run from its first step to its last one, and the faults that struck it.

    Attributes
    ----------
    moments : list of (float, int)
        Seconds since the epoch and step, from `Watch`.
    strikes : list of float
        Moments of the kills, in seconds since the epoch.
    text : str
        Output of the run.
    status : int
        Exit status; -1: it was ended.
    ended : float
        Moment of its end, in seconds since the epoch.
    """

    moments: list[Moment] = field(default_factory=list)
    strikes: list[float] = field(default_factory=list)
    text: str = ""
    status: int = -1
    ended: float = 0.0  # seconds since the epoch

    @property
    def begin(self) -> float:
        """The moment of the first step."""
        return self.moments[0][0]

    @property
    def finished(self) -> bool:
        """Whether it has made all its steps."""
        return self.status == 0

    @property
    def seconds(self) -> float:
        """From the first step to the last new one; to the end of the run if it did not finish."""
        return (useful(self.moments)[-1][0] if self.finished else self.ended) - self.begin

    @property
    def rate(self) -> float:
        """Useful steps a second in `seconds`."""
        new = useful(self.moments)
        return (new[-1][1] - new[0][1]) / self.seconds


def run_through(
    way: Way,
    ranks: int,
    flags: Sequence[str],
    schedule: Sequence[tuple[float, int]],
    limit: float,
    options: Sequence[str] = (),
) -> Course:
    """A supervised run in which ranks are killed, to its end or its limit.

    Parameters
    ----------
    way : Way
        The ring or a parameter server.
    ranks : int
        Ranks, each on a node with separate memory.
    flags : sequence of str
        Flags of the trainer, besides those of `way`.
    schedule : sequence of (float, int)
        Seconds after the first step, ascending, and the rank that is killed then.
    limit : float
        Seconds after the first step at which the run is ended.
    options : sequence of str
        Further options of the supervisor.
    """
    course = Course()
    with place(ranks) as folder:
        job = Supervised(folder, ranks, [*way.flags, *flags], [*apart(ranks), *options], way.module)
        with job, Watch(job) as watch:
            try:
                begin = watch.until(1, 90)
                for at, rank in schedule:
                    while time.time() < begin + at and job.process.poll() is None:
                        time.sleep(0.005)
                    if job.process.poll() is not None:
                        break
                    with suppress(TimeoutError):
                        course.strikes.append(job.signal(rank, signal.SIGKILL)[0])
                course.status = job.wait(max(1.0, begin + limit - time.time()))
            except Exception as error:
                print(f"{way.label}: {type(error).__name__}: {error}", file=sys.stderr)
                job.end()
            course.ended = time.time()
        course.moments, course.text = watch.moments, job.text
        if course.finished:  # a rank that was struck while the run was being ended has held up nothing
            course.strikes = [at for at in course.strikes if at < course.begin + course.seconds]
    return course

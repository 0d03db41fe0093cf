"""What the measurements of `jobs.experiments.resilience` share: ways to run, progress seen from outside, and arithmetic.

Progress is what stands in history.csv: a row appears when a step is done by every rank, whoever trains. It is watched
from outside, by one clock, over all launches of a run; a step counts once, when it is done for the first time, so steps
that are made again cost what they cost.
"""

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jobs.experiments.faults import Healing, Struck, Supervised

# 64 inputs, as many outputs and layers that are all alike: they divide evenly over 3, 4, 7 and 8 nodes.
DATA = "synthetic:samples=2048,features=64,classes=64"
WIDTH, ROWS = 64, 48  # of a layer, and samples of a step
StepContext = tuple[float, int]  # seconds since the epoch, and a step that was done then


def chain(layers: int) -> str:
    """A model of so many equal layers."""
    return f"mlp:{WIDTH}-{WIDTH}x{layers - 1}-{WIDTH}"


def pace_of(layers: int, seconds: float, share: float) -> float:
    """GFLOP/s of a node on which a `share` of the work of a step of `chain(layers)` takes so many seconds."""
    return float(f"{6 * WIDTH * WIDTH * layers * ROWS * share / seconds / 1e9:.3g}")


@dataclass(frozen=True)
class Trainer:
    """Who trains: the ring, or workers with a parameter server."""

    name: str
    module: str
    flags: tuple[str, ...] = ()

    @property
    def ring(self) -> bool:
        """Whether it is the ring."""
        return self.module == "ringtmp.train"


RING = Trainer("ring", "ringtmp.train", ("--micro-batches", "8"))
BSP = Trainer("bsp", "ps.train", ("--consistency", "bsp"))
TRAINERS = (
    RING,
    BSP,
    Trainer("ssp 3", "ps.train", ("--consistency", "ssp", "--staleness", "3")),
    Trainer("asp", "ps.train", ("--consistency", "asp")),
)


@dataclass(frozen=True)
class Way:
    """A way to come back; `WAYS` in `jobs.experiments.resilience` has all.

    Attributes
    ----------
    name : str
    start : callable
        Starts a ring in a folder, on so many ranks, with flags of the trainer.
    stands_by : bool
        Whether processes stand by that have to have loaded before a fault is a fair one.
    aim : float
        Seconds from a kill to the first new step.
    kills : int
        That one run takes, where each leaves a rank less; 0: any number.
    """

    name: str
    start: Callable[[Path, int, Sequence[str]], Struck]
    stands_by: bool
    aim: float
    kills: int = 0


def relaunch(*options: str) -> Callable[[Path, int, Sequence[str]], Struck]:
    """Under `ringtmp supervise` with these options, each rank on a node with memory of its own."""

    def start(folder: Path, ranks: int, flags: Sequence[str]) -> Struck:
        return Supervised(folder, ranks, flags, [*apart(ranks), *options])

    return start


def heal(folder: Path, ranks: int, flags: Sequence[str]) -> Struck:
    """Under Open MPI with ULFM, which goes on within the job."""
    return Healing(folder, ranks, [*flags, "--state-copies", "1"])


def apart(ranks: int) -> list[str]:
    """Options of the supervisor: nodes a, b, c, ... with memory of their own, as long as the file `up` names them."""
    names = [chr(ord("a") + rank) for rank in range(ranks)]
    return ["--hosts", ",".join(names), "--emulate", "--probe", "cat up", "--probe-every", "1"]


@contextmanager
def place(ranks: int) -> Iterator[Path]:
    """A folder for a run, with nodes that are all up and node memory of its own, which goes when it ends."""
    with tempfile.TemporaryDirectory(prefix="survive-", ignore_cleanup_errors=True) as name:
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
    """Where the nodes of a run in this folder keep their memory: in memory indeed, if there is such a place."""
    shared = Path("/dev/shm")
    return str(shared / folder.name if os.access(shared, os.W_OK) else folder / "memory")


def lose_node(folder: Path, rank: int) -> None:
    """The node of this rank, with its memory, is gone for good; its process is still to be killed."""
    name = chr(ord("a") + rank)
    up = folder / "up"
    up.write_text(" ".join(word for word in up.read_text().split() if word != name))
    for path in Path(memory_of(folder)).glob(f"*/{name}"):
        for copy in path.iterdir():
            copy.unlink(missing_ok=True)
        path.rmdir()


# ---- progress, seen from outside ------------------------------------------------------------------------------------


class Watch:
    """Follows history.csv of a run in a thread, over all launches.

    Attributes
    ----------
    moments : list of (seconds since the epoch, step)
        Each step when it was seen done, again where it was made again.
    """

    EVERY = 0.005  # seconds between two looks

    def __init__(self, job: Struck) -> None:
        self.job = job
        self.moments: list[StepContext] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(4 * self.EVERY)
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        file, number, rest = None, 0, ""
        while not self._over.wait(self.EVERY):
            path = self.job.run / "history.csv"
            with suppress(OSError):
                inode = path.stat().st_ino
                if file is None or inode != number:  # a new launch has cut it back to where it goes on
                    file, number, rest = path.open(), inode, ""
                    file.read()
            if file:
                rest += file.read()
                lines = rest.split("\n")
                rest = lines.pop()
                now = time.time()
                self.moments += [(now, step) for step in trained(lines)]

    @property
    def newest(self) -> int:
        """The newest step that has been seen done."""
        return max((step for _, step in self.moments), default=0)

    def until(self, step: int, timeout: float) -> float:
        """Wait until a step is done; the moment. Raises `TimeoutError`, also if the job has ended."""
        deadline = time.time() + timeout
        while True:
            for moment, done in self.moments[-200:]:
                if done >= step:
                    return moment
            if time.time() > deadline or self.job.process.poll() is not None:
                raise TimeoutError(f"step {step} was not made:\n{self.job.text}")
            time.sleep(self.EVERY)


def trained(lines: Sequence[str]) -> list[int]:
    """Steps of the training rows among lines of history.csv."""
    return [int(line.split(",")[1]) for line in lines if line.startswith("train,") and line.count(",") > 1]


def useful(moments: Sequence[StepContext]) -> list[StepContext]:
    """The moments at which a step was done for the first time."""
    found: list[StepContext] = []
    for moment, step in moments:
        if not found or step > found[-1][1]:
            found.append((moment, step))
    return found


def rate(moments: Sequence[StepContext], begin: float = -np.inf, end: float = np.inf) -> float:
    """Useful steps a second between the first and the last one within `begin` and `end` (seconds since the epoch)."""
    within = [(moment, step) for moment, step in useful(moments) if begin <= moment <= end]
    if len(within) < 2:
        return 0.0
    (first, low), (last, high) = within[0], within[-1]
    return (high - low) / (last - first)


def pause(moments: Sequence[StepContext], fault: float) -> float:
    """Seconds without progress: the longest between two new steps of which the later one came after the fault."""
    new = useful(moments)
    gaps = [later - earlier for (earlier, _), (later, _) in zip(new, new[1:], strict=False) if later > fault]
    return max(gaps, default=float("inf"))


def fell_back(moments: Sequence[StepContext]) -> int:
    """Steps that were seen done more than once."""
    return len(moments) - len(useful(moments))


def per_second(moments: Sequence[StepContext], begin: float, width: float = 1.0) -> list[float]:
    """Useful steps a second in each interval of `width` seconds from `begin` on.

    Steps are spread evenly over the time since the one before, so that the intervals' borders make no pattern.
    """
    new = [(moment - begin, step) for moment, step in useful(moments) if moment >= begin]
    if len(new) < 2:
        return []
    at, steps = np.array(new, float).T
    edges = np.arange(0, at[-1] + width, width)
    made = np.interp(edges, at, steps)
    found = np.diff(made) / width
    return [float(value) for value in found[: int(at[-1] // width)]]


def recoveries_told(text: str) -> list[dict[str, Any]]:
    """What a run said of each of its recoveries: `what`, `step`, `again` (-1: not known) and `seconds` by phase.

    The same stands in traces; but a launch that is lost soon may leave its trace without it.
    """
    found = []
    for what, step, again, parts in re.findall(
        r"recovered: (.*?); went on at step (\d+)(?:, (\d+) steps? made again)?, after [\d.]+ s \((.*?)\)$",
        text,
        re.MULTILINE,
    ):
        seconds = {phase: float(value) for phase, value in (part.split(" ") for part in parts.split(", "))}
        found.append({"what": what, "step": int(step), "again": int(again) if again else -1, "seconds": seconds})
    return found


def efficiency(steps_a_second: float, undisturbed: float) -> float:
    """Useful steps per wall time against the undisturbed run."""
    return steps_a_second / undisturbed


def lost_seconds(share: float, seconds: float, failures: int) -> float:
    """Seconds that each failure has cost in a run of so many seconds that was efficient by this share."""
    return (1 - share) * seconds / failures if failures else float("nan")


def expected(cost: float, mean: float) -> float:
    """Efficiency where each failure costs so many seconds and one comes in `mean` seconds of wall time on average.

    Of a run as long as one likes: a measured one has seen a few failures more or less than the mean says.
    """
    return max(0.0, 1 - cost / mean)


def quartiles(values: Sequence[float]) -> list[float]:
    """Median and quartiles."""
    return [float(np.percentile(values, q)) for q in (50, 25, 75)] if len(values) else [float("nan")] * 3


# ---- processes that stand by ----------------------------------------------------------------------------------------


def standing_by(job: Struck) -> list[int]:
    """Processes of a job that stand by, loaded or not."""
    mark = b"RINGTMP_STANDBY=" + os.fsencode(os.path.realpath(job.folder))
    here, found = set(job.pids()), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes()
            if b"python" in words.split(b"\0")[0] and mark in (path / "environ").read_bytes():
                found.append(int(path.name))
    return [pid for pid in found if pid not in here]


def loaded(job: Struck, number: int, timeout: float = 45.0) -> bool:
    """Wait until so many processes stand by and have loaded everything (they no longer compute); whether they do."""
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
    """A run from its first step to its last one, and what struck it."""

    moments: list[StepContext] = field(default_factory=list)
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
        """From the first step to the last new one; of a run that was given up to its end."""
        return (useful(self.moments)[-1][0] if self.finished else self.ended) - self.begin

    @property
    def rate(self) -> float:
        """Useful steps a second of all these."""
        new = useful(self.moments)
        return (new[-1][1] - new[0][1]) / self.seconds


def run_through(
    trainer: Trainer,
    ranks: int,
    flags: Sequence[str],
    schedule: Sequence[tuple[float, int]],
    limit: float,
    options: Sequence[str] = (),
) -> Course:
    """A supervised run in which ranks are killed at given seconds after its first step, to its end or its limit."""
    import signal

    course = Course()
    with place(ranks) as folder:
        job = Supervised(folder, ranks, [*trainer.flags, *flags], [*apart(ranks), *options], trainer.module)
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
                print(f"{trainer.name}: {type(error).__name__}: {error}", file=sys.stderr)
                job.end()
            course.ended = time.time()
        course.moments, course.text = watch.moments, job.text
        if course.finished:  # a rank that was struck while the run was being ended has held up nothing
            course.strikes = [at for at in course.strikes if at < course.begin + course.seconds]
    return course


def final_loss(history: str) -> float:
    """Of the last test in the text of a history.csv."""
    rows = re.findall(r"^test,\d+,[^,]*,([^,]*)", history, re.MULTILINE)
    return float(rows[-1]) if rows else float("nan")


def paced(layers: int, seconds: float, share: float, steps: int, **more: Any) -> list[str]:
    """Flags of a run of equal layers on emulated nodes; see `pace_of`."""
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

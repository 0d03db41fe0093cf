"""Progress of a run, seen from outside over all its launches, and what is computed from it.

Progress is read from history.csv: a row appears when every rank has done a step, in the ring and with servers. One
clock watches it, over all launches of a run. A step counts once, when it is done for the first time, so repeated
steps cost their time.
"""

import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ringtmp.jobs.lib.struck_job import Struck

Moment = tuple[float, int]  # seconds since the epoch, and a step that was done then


class Watch:
    """Follows history.csv of a run in a thread, over all launches.

    Parameters
    ----------
    job : Struck
        The job; its run folder may appear later.

    Attributes
    ----------
    moments : list of (seconds since the epoch, step)
        Each step when it was seen done; a repeated step appears again.
    """

    EVERY = 0.005  # seconds between two looks

    def __init__(self, job: Struck) -> None:
        self.job = job
        self.moments: list[Moment] = []
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
                if file is None or inode != number:  # a new launch has shortened it
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
        """Wait until step `step` is done; return the moment.

        Raises `TimeoutError` after `timeout` seconds, or if the job has ended.
        """
        deadline = time.time() + timeout
        while True:
            for moment, done in self.moments[-200:]:
                if done >= step:
                    return moment
            if time.time() > deadline or self.job.process.poll() is not None:
                raise TimeoutError(f"step {step} was not made:\n{self.job.text}")
            time.sleep(self.EVERY)


def trained(lines: Sequence[str]) -> list[int]:
    """Steps of the training rows among the lines `lines` of history.csv."""
    return [int(line.split(",")[1]) for line in lines if line.startswith("train,") and line.count(",") > 1]


def useful(moments: Sequence[Moment]) -> list[Moment]:
    """Those of `moments` at which a step was done for the first time."""
    found: list[Moment] = []
    for moment, step in moments:
        if not found or step > found[-1][1]:
            found.append((moment, step))
    return found


def rate(moments: Sequence[Moment], begin: float = -np.inf, end: float = np.inf) -> float:
    """Useful steps a second between the first and the last of `moments` from `begin` to `end` (s since the epoch)."""
    within = [(moment, step) for moment, step in useful(moments) if begin <= moment <= end]
    if len(within) < 2:
        return 0.0
    (first, low), (last, high) = within[0], within[-1]
    return (high - low) / (last - first)


def pause(moments: Sequence[Moment], fault: float) -> float:
    """Longest time in seconds between two new steps of `moments`, of which the later one came after moment `fault`."""
    new = useful(moments)
    gaps = [later - earlier for (earlier, _), (later, _) in zip(new, new[1:], strict=False) if later > fault]
    return max(gaps, default=float("inf"))


def fell_back(moments: Sequence[Moment]) -> int:
    """Number of steps in `moments` that were done a second time."""
    return len(moments) - len(useful(moments))


def per_second(moments: Sequence[Moment], begin: float, width: float = 1.0) -> list[float]:
    """Useful steps a second in each interval of `width` seconds from `begin` (seconds since the epoch) on.

    The steps of `moments` are spread evenly over the time since the one before, so that the intervals' borders make no
    pattern.
    """
    new = [(moment - begin, step) for moment, step in useful(moments) if moment >= begin]
    if len(new) < 2:
        return []
    at, steps = np.array(new, float).T
    edges = np.arange(0, at[-1] + width, width)
    made = np.interp(edges, at, steps)
    found = np.diff(made) / width
    return [float(value) for value in found[: int(at[-1] // width)]]


def reported_recoveries(text: str) -> list[dict[str, Any]]:
    """Recoveries in the output `text` of a run: `what`, `step`, `again` (-1: not known) and `seconds` by phase.

    Traces hold the same; but a launch that is lost soon may leave its trace without it.
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
    """Useful steps a second, `steps_a_second`, as a share of those of the run without faults, `undisturbed`."""
    return steps_a_second / undisturbed


def lost_seconds(share: float, seconds: float, failures: int) -> float:
    """Seconds that each of `failures` cost in a run of `seconds` whose efficiency is `share`; nan without failures."""
    return (1 - share) * seconds / failures if failures else float("nan")


def expected(cost: float, mean: float) -> float:
    """Efficiency if each failure costs `cost` seconds and one comes every `mean` seconds of wall time on average.

    This holds for long runs: a measured one has seen a few failures more or less than the mean says.
    """
    return max(0.0, 1 - cost / mean)


def final_loss(history: str) -> float:
    """Loss of the last test in `history`, the text of a history.csv; nan without one."""
    rows = re.findall(r"^test,\d+,[^,]*,([^,]*)", history, re.MULTILINE)
    return float(rows[-1]) if rows else float("nan")

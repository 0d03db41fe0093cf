"""The cause of an interruption, and the time until the run trained again: for the log and the trace."""

import json
import os
import time
from typing import Any

SUPERVISED = "RINGTMP_SUPERVISED"  # environment variable: a supervisor restarts this job; its value says why it did

# Parts of the time without training, in order; the supervisor measures the first two.
PHASES = ("clear", "start", "agree", "split", "restore", "redo")


def supervised() -> bool:
    """Whether a supervisor restarts this job if it fails."""
    return SUPERVISED in os.environ


class RecoveryReport:
    """The cause of an interruption, and the seconds that each phase of the recovery took.

    Made when a launch begins.

    Parameters
    ----------
    cause : dict or None
        The interruption, if this job itself continues after it; None: the one that the supervisor states, if any.

    Attributes
    ----------
    cause : dict
        `what` was lost, when (seconds since the epoch) that was `noticed`, when all of the old job was `cleared`, ...
        Empty if this launch follows no interruption.
    seconds : dict
        By phase: clear (kill the rest of the job), start (processes and MPI), agree (on survivors and step), split
        (divide the layers, allocate, load kernels), restore (fetch the layers), redo (to the end of the first step).
    """

    def __init__(self, cause: dict[str, Any] | None = None) -> None:
        self.cause: dict[str, Any] = cause or json.loads(os.environ.get(SUPERVISED) or "{}")
        self.seconds: dict[str, float] = {}
        self._last = time.time()
        if self.cause:
            self.seconds["clear"] = self.cause["cleared"] - self.cause["noticed"]
            self.seconds["start"] = self._last - self.cause["cleared"]

    def mark(self, phase: str) -> None:
        """End the phase `phase`, one of `PHASES`: it lasted since the end of the phase before."""
        now = time.time()
        self.seconds[phase] = now - self._last
        self._last = now

    def facts(self, step: int, repeated: int) -> dict[str, Any]:
        """All facts, for the trace.

        Parameters
        ----------
        step : int
            Step at which the run continues.
        repeated : int
            Steps that are made a second time; -1: unknown.
        """
        return {**self.cause, "step": step, "again": repeated, "seconds": self.seconds}

    def summary(self, step: int, repeated: int) -> str:
        """The facts in one line: the run continues at step `step` and repeats `repeated` steps (-1: unknown)."""
        parts = ", ".join(f"{phase} {self.seconds[phase]:.2f}" for phase in PHASES if phase in self.seconds)
        redone = "" if repeated < 0 else f", {repeated} step{'s' * (repeated != 1)} made again"
        return (
            f"recovered: {self.cause['what']}; went on at step {step}{redone}, after "
            f"{sum(self.seconds.values()):.2f} s ({parts})"
        )

"""What had happened before a supervised launch, and how long it took to be back: for the log and the trace."""

import json
import os
import time
from typing import Any

SUPERVISED = "RINGTMP_SUPERVISED"  # environment variable: who started this job starts it again, and says why it did

# Parts of the time without training, in their order; the first two are the supervisor's.
PHASES = ("clear", "start", "agree", "split", "restore", "redo")


def supervised() -> bool:
    """Whether somebody starts this job again if it fails."""
    return SUPERVISED in os.environ


class RecoveryReport:
    """Made when a launch begins; `cause`: what happened within the job, if it is the same one that goes on.

    Attributes
    ----------
    cause : dict
        What the supervisor says: what was lost, and when (seconds since the epoch) that was noticed, all cleared away,
        and this launch started. Empty if this is no restart.
    seconds : dict
        By phase: clear (kill what is left), start (processes and MPI), agree (what is left, and which step counts),
        split (deal the layers, make room, load kernels), restore (fetch the layers), redo (to the first step's end).
    """

    def __init__(self, cause: dict[str, Any] | None = None) -> None:
        self.cause: dict[str, Any] = cause or json.loads(os.environ.get(SUPERVISED) or "{}")
        self.seconds: dict[str, float] = {}
        self._last = time.time()
        if self.cause:
            self.seconds["clear"] = self.cause["cleared"] - self.cause["noticed"]
            self.seconds["start"] = self._last - self.cause["cleared"]

    def mark(self, phase: str) -> None:
        """A phase has ended."""
        now = time.time()
        self.seconds[phase] = now - self._last
        self._last = now

    def facts(self, step: int, again: int) -> dict[str, Any]:
        """All of it; `again`: steps that are made a second time, -1 if that is not known."""
        return {**self.cause, "step": step, "again": again, "seconds": self.seconds}

    def told(self, step: int, again: int) -> str:
        """In one line."""
        parts = ", ".join(f"{phase} {self.seconds[phase]:.2f}" for phase in PHASES if phase in self.seconds)
        redone = "" if again < 0 else f", {again} step{'s' * (again != 1)} made again"
        return (
            f"recovered: {self.cause['what']}; went on at step {step}{redone}, after "
            f"{sum(self.seconds.values()):.2f} s ({parts})"
        )

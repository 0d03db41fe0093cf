"""Gates: conditions outside a chunk for which some of its actions wait.

What opens and closes a gate is made with the gate itself: the replicas set `CopyDurable.version`, the sums across
rings count `SumsComplete.missing`, the tokens set `NormKnown.norm`. A chunk only asks.
"""

from dataclasses import dataclass
from typing import Protocol


class Gate(Protocol):
    """A condition for an action."""

    def is_open(self, step: int) -> bool:
        """Whether a chunk that has made `step` updates may run the action."""


class CopyDurable:
    """Opens the last forward of step k once every replica of the stage holds version k (`ringtmp.ring.replicas`).

    Parameters
    ----------
    version : int
        Newest version that all replicas hold; `NO_COPIES` if there are none.
    """

    NO_COPIES = 1 << 62

    def __init__(self, version: int = NO_COPIES) -> None:
        self.version = version

    def is_open(self, step: int) -> bool:
        return self.version >= step


class SumsComplete:
    """Opens when the gradients of a chunk have been summed across rings (`ringtmp.ring.data_parallel`).

    Parameters
    ----------
    missing : int
        Sums for which the chunk still waits in this step.
    """

    def __init__(self, missing: int) -> None:
        self.missing = missing

    def is_open(self, step: int) -> bool:
        return not self.missing


class NormKnown:
    """Opens when the norm of all gradients of the step is known (`clip_norm`); one gate for all chunks of a rank."""

    def __init__(self) -> None:
        self.norm: float | None = None

    def is_open(self, step: int) -> bool:
        return self.norm is not None


@dataclass(frozen=True)
class Gates:
    """What the actions of one chunk wait for, beside its own micro-batches.

    Attributes
    ----------
    last_forward : tuple of Gate
        Before the last forward of a step.
    gradients : tuple of Gate
        Before the gradients of a step count as complete, which the norm and the update need.
    update : tuple of Gate
        Before an update, beyond those of `gradients`.
    """

    last_forward: tuple[Gate, ...] = ()
    gradients: tuple[Gate, ...] = ()
    update: tuple[Gate, ...] = ()


def all_open(gates: tuple[Gate, ...], step: int) -> bool:
    """Whether every one of `gates` is open."""
    return all(gate.is_open(step) for gate in gates)

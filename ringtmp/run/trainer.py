"""Interface between a launch and a trainer: that of `ringtmp.ring.trainer` or of `ringtmp.ps.trainer`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ringtmp.checkpoint.writer import LayerArrays
from ringtmp.config.schema import RunConfig
from ringtmp.run.job import Job
from ringtmp.run.session import Session

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


class Traits(NamedTuple):
    """Abilities of a kind of trainer.

    Attributes
    ----------
    heading : str
        Heading of the column in the table at the end that shows `row()["shown"]`.
    uses_node_memory : bool
        Whether it keeps copies of its state in the nodes' memory and can continue from them.
    survives_losses : bool
        Whether it can continue within a job that has lost processes (ULFM).
    side_by_side : bool
        Whether it can run as several rings side by side.
    ring : bool
        Whether it is the ring: ranks wait for neighbours, and with a synchronous schedule the numbers are the same on
        any number of ranks.
    """

    heading: str
    uses_node_memory: bool
    survives_losses: bool
    side_by_side: bool
    ring: bool


class Trainer(Protocol):
    """One launch of a trainer on this rank. `ringtmp.run.launch.run` calls the methods in the order given here.

    Parameters
    ----------
    session : Session
        The fields up to `stop_request` are set when the trainer is made; `Session` says when the others are.

    Attributes
    ----------
    traits : Traits
        Abilities of this kind of trainer.
    notes : list of str
        Lines to print first; known after `build`.
    writers : sequence of int
        Ranks that write a part of each checkpoint; known after `build`.
    """

    traits: Traits
    notes: list[str]
    writers: Sequence[int]

    def __init__(self, session: Session) -> None: ...

    @staticmethod
    def check(config: RunConfig, ranks: int) -> None:
        """Raise `UserError` for a `config` with which this trainer cannot run on `ranks` ranks (rank 0)."""

    @staticmethod
    def members(comm: "Intracomm", job: Job) -> list[int]:
        """Ranks of `comm` that take part in `job`. Collective over `comm`."""

    def build(self) -> None:
        """Distribute the layers over the ranks, and allocate them, without running kernels. Collective.

        Raises `UserError` on every rank. Nothing has been written yet.
        """

    def describe(self) -> str:
        """How the work is divided, for the first lines."""

    def kernel_families(self) -> set[str]:
        """Families of kernels that are needed besides the model's."""

    def reserve(self) -> None:
        """Allocate space in `session.memory` for this rank's copies. Collective."""

    def load(self) -> None:
        """Set start values, or those of the checkpoint or the nodes' memory; run every kernel once."""

    def trace_facts(self) -> dict[str, Any]:
        """Facts on this rank for the head of its trace."""

    def connect(self) -> None:
        """Make everything that communicates; `session.recorder` and `session.checkpoints` exist now."""

    def train(self) -> None:
        """Train. On return no message is on its way."""

    def layers(self) -> list[LayerArrays]:
        """The present layers of which this rank writes checkpoints and digests."""

    def row(self) -> dict[str, Any]:
        """This rank's row of the table at the end: `shown` (text), `parameters`, `late`, and further facts."""

    def requests(self) -> "list[Prequest]":
        """All persistent requests, if the trainer survives losses."""

    @property
    def step(self) -> int:
        """Updates made since the run's first step."""

    @property
    def stop_signal(self) -> int:
        """The signal that stopped the run, or 0 (rank 0)."""

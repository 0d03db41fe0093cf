"""The data that one rank's loop needs besides the session."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ringtmp.checkpoint.format import LayerRecord
from ringtmp.checkpoint.writer import LayerArrays
from ringtmp.config.schema import RunConfig
from ringtmp.emulate.nodes import Pace, Paced
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange
from ringtmp.nn.stage import Stage
from ringtmp.ps.batch_split import BatchSplit
from ringtmp.ps.membership import Membership
from ringtmp.ps.roles import Roles
from ringtmp.ps.serving.node_memory import ReplicaPair, RestoredRanges
from ringtmp.run.job import Job
from ringtmp.run.listener import RunListener
from ringtmp.run.session import Session
from ringtmp.run.timetable import Timetable


@dataclass(frozen=True)
class NodeSpeed:
    """The emulated node of a rank.

    Attributes
    ----------
    paces : sequence of Pace
        One for each layer of a worker; empty if no node is emulated.
    updates : Paced or None
        Pace of a server's updates, or of a worker's without servers.
    nanoseconds : float
        Duration of an update of one parameter at the node's first speed.
    """

    paces: Sequence[Pace] = ()
    updates: Paced | None = None
    nanoseconds: float = 0.0


@dataclass(frozen=True)
class RankSetup:
    """All that `RankLoop` needs; made once, before training starts.

    Attributes
    ----------
    session : Session
        The complete session.
    table : Timetable
        Steps and evaluations of the run.
    roles : Roles
        Which ranks serve and which work.
    membership : Membership
        Workers of each step, as this rank knows them.
    batch_split : BatchSplit
        Samples of each worker.
    ranges : sequence of KeyRange
        All ranges, with the server of each.
    stage : Stage or None
        A worker's layers, loaded.
    writers : sequence of int
        Ranks that write a part of each checkpoint.
    listener : RunListener or None
        Receives reports on rank 0.
    speed : NodeSpeed
        The emulated node of this rank.
    restored : dict
        This rank's ranges from node memory, if the run resumes from it.
    read_layers : callable
        Reads some layers, by index, from the checkpoint that the run resumes from.
    own_layers : callable
        Layers that this rank writes if no rank serves.
    replica_holders : mapping of int to int
        By server that has ranges: rank of another node that holds its copies, or -1; empty without node memory.
    replica_pairs : mapping of int to pair of copies
        By server: memory for the copies that this rank writes or receives.
    """

    session: Session
    table: Timetable
    roles: Roles
    membership: Membership
    batch_split: BatchSplit
    ranges: Sequence[KeyRange]
    stage: Stage | None
    writers: Sequence[int]
    listener: RunListener | None
    speed: NodeSpeed
    restored: RestoredRanges
    read_layers: Callable[[Sequence[int]], list[LayerRecord]]
    own_layers: Callable[[], list[LayerArrays]]
    replica_holders: Mapping[int, int]
    replica_pairs: Mapping[int, ReplicaPair]

    @property
    def rank(self) -> int:
        """This rank."""
        return self.session.rank

    @property
    def job(self) -> Job:
        """The job."""
        return self.session.job

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.session.job.config

    @property
    def model(self) -> Model:
        """The whole model."""
        return self.session.job.model

    @property
    def serves(self) -> bool:
        """Whether this rank is a server."""
        return self.rank in self.roles.servers

    @property
    def works(self) -> bool:
        """Whether this rank is a worker."""
        return self.rank in self.roles.workers

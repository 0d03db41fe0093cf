"""What one rank's loop needs of its launch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ps.batch_split import BatchSplit
from ps.coordinator import RunListener
from ps.membership import Membership
from ps.node_memory import ReplicaPair, RestoredRanges
from ps.roles import Roles
from ringtmp.checkpoint.format import LayerRecord
from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.checkpoint.writer import Held
from ringtmp.config.schema import RunConfig
from ringtmp.emulate.nodes import Pace, Paced
from ringtmp.nn.model import Model
from ringtmp.nn.shards import KeyRange
from ringtmp.nn.stage import Stage
from ringtmp.resilience.fault_probe import FaultProbe
from ringtmp.run.job import Job
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass(frozen=True)
class NodeSpeed:
    """The emulated node of a rank.

    Attributes
    ----------
    paces : sequence of Pace
        For each layer of a worker; empty where no node is emulated.
    updates : Paced or None
        For a server's updates, or a worker's without servers.
    nanoseconds : float
        Duration of an update of one parameter at the node's first speed.
    """

    paces: Sequence[Pace] = ()
    updates: Paced | None = None
    nanoseconds: float = 0.0


@dataclass(frozen=True)
class RankSetup:
    """All that `RankLoop` needs of the launch; made once, before training starts.

    Attributes
    ----------
    comm, net : Intracomm
        For agreement and the end; for training.
    job : Job
    roles : Roles
    membership : Membership
    batch_split : BatchSplit
    ranges : sequence of KeyRange
        All ranges, with the server of each.
    stage : Stage or None
        A worker's layers, loaded.
    writers : sequence of int
        Ranks that write a part of each checkpoint.
    checkpoints : CheckpointManager
    listener : RunListener
        Receives reports (rank 0).
    recorder : Recorder
    total, eval_every : int
        Steps of the run; steps between two evaluations.
    rate : callable
        Learning rate of a step.
    speed : NodeSpeed
    crowded : bool
        Whether ranks outnumber the cores of this node.
    restored : dict
        This rank's ranges from node memory, if the run resumes from there.
    read_layers : callable
        Reads some layers, by index, from the checkpoint that the run resumes from.
    own_layers : callable
        Layers that this rank writes where there are no servers.
    replica_holders : mapping of int to int
        By server that has ranges: rank of another node that holds its copies, or -1; empty without node memory.
    replica_pairs : mapping of int to pair of copies
        By server: memory for the copies that this rank writes or receives.
    forget_older : callable
        Frees copies that earlier launches left in node memory.
    stop_request : callable
        The number of the signal that requests a stop; 0: none.
    probe : FaultProbe or None
    """

    comm: "Intracomm"
    net: "Intracomm"
    job: Job
    roles: Roles
    membership: Membership
    batch_split: BatchSplit
    ranges: Sequence[KeyRange]
    stage: Stage | None
    writers: Sequence[int]
    checkpoints: CheckpointManager
    listener: RunListener
    recorder: Recorder
    total: int
    eval_every: int
    rate: Callable[[int], float]
    speed: NodeSpeed
    crowded: bool
    restored: RestoredRanges
    read_layers: Callable[[Sequence[int]], list[LayerRecord]]
    own_layers: Callable[[], list[Held]]
    replica_holders: Mapping[int, int]
    replica_pairs: Mapping[int, ReplicaPair]
    forget_older: Callable[[], None]
    stop_request: Callable[[], int]
    probe: FaultProbe | None = None

    @property
    def rank(self) -> int:
        """This rank."""
        return self.comm.rank

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.job.config

    @property
    def model(self) -> Model:
        """The whole model."""
        return self.job.model

    @property
    def dtype(self) -> np.dtype:
        """Of weights and gradients."""
        return self.job.dtype

    @property
    def serves(self) -> bool:
        """Whether this rank is a server."""
        return self.rank in self.roles.servers

    @property
    def works(self) -> bool:
        """Whether this rank is a worker."""
        return self.rank in self.roles.workers

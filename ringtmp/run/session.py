"""State that every part of a launch shares on this rank: communicators, the job, and the receivers of results."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.comm.peers import Peers
from ringtmp.resilience.incident import RecoveryReport
from ringtmp.resilience.node_memory import GENERATION, NodeMemory
from ringtmp.run.hosts import Host
from ringtmp.run.job import Job
from ringtmp.run.output.reporter import Reporter
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass
class Session:
    """One launch of a job on this rank, made once and handed to the trainer.

    The fields from `peers` on are set by `ringtmp.run.launch.run`, in their order, as the launch advances.

    Attributes
    ----------
    parent : Intracomm
        The caller's communicator, to which the result belongs.
    comm, net : Intracomm
        For start, agreement and end; and for the messages of training.
    job : Job
        The job.
    report : RecoveryReport
        Cost of the recovery, if this launch follows a failure.
    writes : bool
        Whether these ranks write a run folder.
    show : bool
        Whether rank 0 prints.
    stop_request : callable
        Returns the number of the signal that asks for a stop, or 0.
    peers : Peers
        Process of each rank.
    nodes : list of str
        Node of each rank.
    hosts : list of Host
        Hosts of the ranks of `everyone`.
    reporter : Reporter or None
        On rank 0: prints progress and writes history.csv.
    probe : FaultProbe or None
        Receives this rank's present action, if a fault injector listens.
    memory : NodeMemory or None
        The node's memory, which keeps copies of the state (`--state-copies`).
    recorder : Recorder
        This rank's trace.
    checkpoints : CheckpointManager
        This rank's checkpoints.
    """

    parent: "Intracomm"
    comm: "Intracomm"
    net: "Intracomm"
    job: Job
    report: RecoveryReport
    writes: bool = True
    show: bool = True
    stop_request: Callable[[], int] = lambda: 0
    peers: Peers = field(init=False)
    nodes: list[str] = field(init=False)
    hosts: list[Host] = field(init=False)
    reporter: Reporter | None = None
    probe: FaultProbe | None = None
    memory: NodeMemory | None = None
    recorder: Recorder = field(init=False)
    checkpoints: CheckpointManager = field(init=False)

    @property
    def rank(self) -> int:
        """This rank."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Number of ranks of the launch."""
        return self.comm.size

    @property
    def copies_generation(self) -> int:
        """First generation of the copies of the state that this launch writes into node memory."""
        return GENERATION * self.job.launch

    @property
    def everyone(self) -> "Intracomm":
        """All ranks that train: those of all rings, if several run side by side."""
        return self.job.everyone if self.job.across and self.job.everyone else self.comm

    @property
    def here(self) -> Host:
        """The host of this rank."""
        return next(host for host in self.hosts if self.everyone.rank in host.ranks)

    def is_crowded(self) -> bool:
        """Whether ranks outnumber the cores of this host."""
        return self.here.is_crowded()

    def release(self) -> None:
        """Close the history file and the run folder's lock, so that the next launch of this process can open them."""
        if self.reporter:
            self.reporter.close()
        if self.job.lock:
            self.job.lock.close()
            self.job.lock = None

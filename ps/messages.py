"""Control messages between the ranks of a parameter-server run: one NamedTuple a kind, and the mailbox for them.

Every worker exchanges messages with every server, and every rank with rank 0. The worker's pushes and the servers'
answers (gradients and weights) travel apart from these, by `ringtmp.ps.exchange` and `ringtmp.ps.serving.server`.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from ringtmp.comm.messages import Mailbox, MessageKinds
from ringtmp.comm.point_to_point import ControlChannel
from ringtmp.trace.recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Loss(IntEnum):
    """How a worker was lost."""

    FAILED = 0  # its training raised an exception; its process still answers
    SILENT = 1  # its process sends nothing; it may come back
    KILLED = 2  # its process has ended


# ---- a step ---------------------------------------------------------------------------------------------------------


class Begin(NamedTuple):
    """Worker -> servers: its next push of every key range is of `step`.

    `samples` is the number of samples in the gradient; 0: the push only requests weights. `generation` is the number of
    rejoins that the worker knows of.
    """

    step: int
    samples: int
    generation: int


class StepDone(NamedTuple):
    """Worker -> rank 0: sums of a step over the worker's samples; nanoseconds waited and elapsed since the last one."""

    step: int
    loss: float
    correct: float
    samples: int
    waited: int
    elapsed: int


class TestDone(NamedTuple):
    """Worker -> rank 0: sums of the evaluation after `step` steps over the worker's test samples."""

    step: int
    loss: float
    correct: float
    samples: int


class Skip(NamedTuple):
    """Server -> worker (backup workers): the gradient came too late; `step` is the step being made."""

    step: int


class Alive(NamedTuple):
    """Worker -> servers: it is computing; sent if it would otherwise be silent for long."""


class Done(NamedTuple):
    """Worker -> rank 0 and servers: it has received its last weights."""


# ---- membership: the protocol is in `ringtmp.ps.membership` ---------------------------------------------------------


class Leave(NamedTuple):
    """Worker -> servers: its training has failed; it sends no further gradients."""


class Drop(NamedTuple):
    """Rank 0 -> all: from `step` on the other workers divide the samples of `worker`. `loss` is a `Loss`."""

    worker: int
    step: int
    loss: int


class RejoinRequest(NamedTuple):
    """Worker -> rank 0: it was dropped but answers again; it has pushed every range `pushes` times."""

    pushes: int


class Rejoin(NamedTuple):
    """Rank 0 -> all: from `step` on `worker` has samples again.

    Its first `pushes` pushes are void. `generation` is the number of rejoins, this one included.
    """

    worker: int
    step: int
    pushes: int
    generation: int


# ---- checkpoints and copies in node memory --------------------------------------------------------------------------


class CheckpointOrder(NamedTuple):
    """Rank 0 -> all: write a checkpoint of the state after `step` steps."""

    step: int


class PartWritten(NamedTuple):
    """Writer -> rank 0: its part of the checkpoint is finished; whether it is on disk, and seconds it took."""

    step: int
    written: bool
    seconds: float


class Durable(NamedTuple):
    """Server -> servers: its copy of version `version` is durable; all its ranges have passed step `passed`."""

    version: int
    passed: int


class ForgetOlder(NamedTuple):
    """Rank 0 -> all: copies that earlier launches left in node memory are not needed any more."""


# ---- the end --------------------------------------------------------------------------------------------------------


class StopRequest(NamedTuple):
    """Any rank -> rank 0: it has received `signal`, which requests a stop."""

    signal: int


class Stop(NamedTuple):
    """Rank 0 -> all: train no step from `step` on."""

    step: int


class Over(NamedTuple):
    """Rank 0 -> all: every worker has ended."""


KINDS = MessageKinds(
    Begin,
    StepDone,
    TestDone,
    Skip,
    Alive,
    Done,
    Leave,
    Drop,
    RejoinRequest,
    Rejoin,
    CheckpointOrder,
    PartWritten,
    Durable,
    ForgetOlder,
    StopRequest,
    Stop,
    Over,
)


def make_mailbox(comm: "Intracomm", peers: Iterable[int], recorder: Recorder) -> Mailbox:
    """A mailbox with a channel to each peer, which stops waiting for workers that are dropped.

    Parameters
    ----------
    comm : Intracomm
        Carries the messages.
    peers : iterable of int
        Ranks to exchange messages with; each must name this rank as a peer too. This rank itself may be among them.
    recorder : Recorder
        Records sends and receives.
    """
    channels = {peer: ControlChannel(comm, peer, peer) for peer in peers if peer != comm.rank}
    mailbox = Mailbox(comm.rank, KINDS, channels, recorder)

    def on_drop(sender: int, message: Drop) -> None:
        if message.loss != Loss.FAILED:
            mailbox.unresponsive.add(message.worker)
        if message.loss == Loss.KILLED:
            mailbox.disconnect(message.worker)

    mailbox.on(Drop, on_drop)
    mailbox.on(Rejoin, lambda sender, message: mailbox.unresponsive.discard(message.worker))
    return mailbox

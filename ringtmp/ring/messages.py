"""What neighbours in the ring send each other: the tags of data, and one NamedTuple for each kind of control message.

A tag names only the direction and the stage that receives; which micro-batch a message belongs to follows from its
position in the stream (`ringtmp.comm.point_to_point`).

    activations   rank r     -> r + 1    with several chunks also from the last rank to rank 0
    gradients     rank r     -> r - 1    likewise
    labels        rank 0     -> P - 1    the one hop that closes the ring
    control       rank r     -> r + 1    typed messages; the last rank's go to rank 0
    control back  rank r     -> r - 1    signs of life, and which replicas are complete
    replica       rank r     -> r + 1    copies of stages
    layers        to either neighbour    layers that move when the ring is rebalanced
"""

from typing import NamedTuple

from ringtmp.comm.messages import MessageKinds
from ringtmp.comm.point_to_point import FIRST_TAG

TAG_LABELS, TAG_CONTROL_BACK, TAG_SPLIT, _TAG_STAGES = range(FIRST_TAG, FIRST_TAG + 4)
_DATA = ("activations", "gradients", "replica")


def tag_of(what: str, number: int) -> int:
    """The tag of `activations` or `gradients` that cross the boundary before stage `number`, or of a `replica`."""
    return _TAG_STAGES + len(_DATA) * number + _DATA.index(what)


class Token(NamedTuple):
    """Rank 0 -> each rank in turn -> rank 0, once a step: what rank 0 reports of it. Each rank adds its own numbers.

    A rank passes it on after its own update of the step, so where it comes home the step is done everywhere.
    """

    step: int
    loss: float  # sum over the samples; from the last rank
    correct: float  # likewise
    waited: float  # nanoseconds since the token before, summed over the ranks
    elapsed: float  # likewise
    written: int  # step of the newest checkpoint of which every rank has finished its part; -1: none
    signal: int  # number of a signal that asks for a stop, or 0
    write_cost: float  # seconds for which a checkpoint has held up a rank: the maximum
    busy: float  # nanoseconds that a rank computes in a step: the sum over the ranks
    busiest: float  # likewise: the maximum


class TestResult(NamedTuple):
    """Last rank -> rank 0: an evaluation is complete. Sums over its samples."""

    step: int
    loss: float
    correct: float


class Stop(NamedTuple):
    """Rank 0 -> each rank in turn, rank 0 of a ring -> rank 0 of the next: leave out the phases from `phase` on.

    `signal` is the number of the signal that asked for the stop.
    """

    phase: int
    signal: int


class WriteCheckpoint(NamedTuple):
    """Rank 0 -> each rank in turn: write a checkpoint after `step` updates."""

    step: int


class Rebalance(NamedTuple):
    """Rank 0 -> each rank in turn: end before `phase`, rebalance, and go on (`RebalanceOrder`)."""

    phase: int
    busiest: float
    mean: float
    seconds: float
    undo: bool


class SquaredNorm(NamedTuple):
    """Owner of stage - 1 -> owner of `stage`: sum of the squares of all gradients of the stages before `stage`."""

    step: int
    total: float
    stage: int


class Norm(NamedTuple):
    """Owner of the last stage -> each rank in turn: the norm of all gradients of a step."""

    step: int
    norm: float


class SignOfLife(NamedTuple):
    """Each rank -> both neighbours, also while it waits. The one that is `leaving` is the rank's last message."""

    leaving: bool


class ReplicaComplete(NamedTuple):
    """Last holder of a replica -> each rank in turn to the left, up to the owner: it holds `version` completely.

    `hops` is the number of hops that are left, the present one included.
    """

    chunk: int
    version: int
    hops: int


class RingStep(NamedTuple):
    """Rank 0 of a ring -> rank 0 of the ring before: a step of this ring and of all behind it; sums over samples.

    `waited` and `elapsed` are nanoseconds of this step, summed over the ranks.
    """

    step: int
    loss: float
    correct: float
    signal: int
    waited: float
    elapsed: float


class RingTest(NamedTuple):
    """Rank 0 of a ring -> rank 0 of the ring before: the same of an evaluation."""

    step: int
    loss: float
    correct: float
    signal: int


KINDS = MessageKinds(
    Token,
    TestResult,
    Stop,
    WriteCheckpoint,
    Rebalance,
    SquaredNorm,
    Norm,
    SignOfLife,
    ReplicaComplete,
    RingStep,
    RingTest,
)

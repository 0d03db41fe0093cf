"""The engine: one loop per rank that runs what a policy chooses among what can run.

    read the whole inbox -> choose -> run one action -> send what it made -> again

Steps chain: a stage begins step k + 1 as soon as its own update of step k is done, without a barrier. W is run layer
by layer, and what is more urgent goes in between.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringtmp.action_kinds import KINDS, F
from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.comm.waiting import Backoff, WaitLoop
from ringtmp.emulate.nodes import Pace
from ringtmp.nn.stage import Stage
from ringtmp.ring.actions import Actions, ActionSettings, Hooks
from ringtmp.ring.chunk import Chunk
from ringtmp.ring.data_parallel import CrossRingSums
from ringtmp.ring.gates import CopyDurable, Gates, NormKnown
from ringtmp.ring.inbox import Inbox
from ringtmp.ring.links import RingLinks
from ringtmp.ring.liveness import Liveness
from ringtmp.ring.load_balance import LoadBalance, RebalanceOrder
from ringtmp.ring.replicas import CopySettings, Replicas
from ringtmp.ring.tokens import Tokens
from ringtmp.ring.weight_versions import WeightVersions
from ringtmp.run.listener import RunListener
from ringtmp.run.timetable import Timetable
from ringtmp.schedule.local_rule import NONE
from ringtmp.schedule.policies import Policy
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest


@dataclass(frozen=True)
class EngineSettings:
    """How the engine of a rank works.

    Attributes
    ----------
    start : int
        Updates made before (0 for a new run).
    lag : int or None
        Updates by which the weights of a forward are late (`ringtmp.ring.weight_versions.WeightVersions`).
    stashed : bool
        Whether the stages' first stash holds the weights before those of `start`.
    label_slots : int
        On the last stage: micro-batches for which stage 0 has slots.
    w_group : int
        Most micro-batches that one W takes together.
    seed : int
        Of dropout.
    crowded : bool
        Whether ranks outnumber the cores of this host.
    synchronous_sends : bool
        Whether activations, gradients and labels travel by synchronous sends (MPI_Ssend), which complete only once
        their receive is posted.
    delay : float
        Longest random delay before each action, in seconds.
    stall_timeout : float
        Seconds for which no action can run and no order or token comes, or for which a synchronous send is not
        received, after which this rank ends the job.
    heartbeat_timeout : float
        Seconds without a sign of life after which a neighbour is taken for hung.
    """

    start: int = 0
    lag: int | None = 0
    stashed: bool = False
    label_slots: int = 1
    w_group: int = 1
    seed: int = 0
    crowded: bool = False
    synchronous_sends: bool = False
    delay: float = 0.0
    stall_timeout: float = 600.0
    heartbeat_timeout: float = 60.0


class Engine:
    """Runs a timetable on this rank's stages. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring: neighbours are rank - 1 and rank + 1, modulo its size.
    stages : sequence of Stage
        One for each chunk; chunk c of rank r is stage c x ranks + r of the chain.
    table : Timetable
    policy : Policy
    hooks : Hooks
    recorder : Recorder
    checkpoints : CheckpointManager
    settings : EngineSettings
    listener : RunListener or None
        On rank 0: told what all ranks have done together.
    stop_request : callable
        Gives the number of the signal that asks for a stop, or 0.
    paces : sequence of Pace
        One for each stage on an emulated node, else empty.
    balance : LoadBalance or None
        With `balance` auto.
    across : Intracomm or None
        The ranks of the same number in all rings, where there are several.
    copies : CopySettings or None
        Where stages are copied to other nodes.
    probe : FaultProbe or None
        Is told what this rank is about to do.
    """

    def __init__(
        self,
        comm: "Intracomm",
        stages: Sequence[Stage],
        table: Timetable,
        policy: Policy,
        hooks: Hooks,
        recorder: Recorder,
        checkpoints: CheckpointManager,
        settings: EngineSettings,
        *,
        listener: RunListener | None = None,
        stop_request: Callable[[], int] = lambda: 0,
        paces: Sequence[Pace] = (),
        balance: LoadBalance | None = None,
        across: "Intracomm | None" = None,
        copies: CopySettings | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self.policy, self.recorder, self.settings, self.probe = policy, recorder, settings, probe
        self.random = random.Random(comm.rank)

        # Gates, with what opens them.
        numbers = [c * comm.size + comm.rank for c in range(len(stages))]
        norm = NormKnown() if stages[0].optimizer.clip_norm is not None else None
        sums = CrossRingSums(across, stages, numbers, recorder) if across else None
        durable = [CopyDurable() for _ in stages]

        # Links and chunks.
        self.links = links = RingLinks(comm, recorder, settings.synchronous_sends)
        self.chunks = [
            Chunk(
                stage,
                c,
                numbers[c],
                table,
                WeightVersions(stage, settings.lag, settings.start, settings.stashed),
                policy.window,
                links.connect(stage, numbers[c], settings.label_slots),
                Gates(
                    (durable[c],) if copies else (),
                    (sums.gates[c],) if sums else (),
                    (norm,) if norm else (),
                ),
                sums.starter(c) if sums else None,
            )
            for c, stage in enumerate(stages)
        ]

        # All that reads messages, and the actions.
        self.tokens = Tokens(
            links, self.chunks, table, recorder, listener, checkpoints, stop_request, norm, balance, across
        )
        self.liveness = Liveness(links, settings.heartbeat_timeout, hooks.hung) if links.size > 1 else None
        replicas = Replicas(links, durable, copies, settings.start, recorder, probe) if copies else None
        self.inbox = Inbox(links, self.chunks, self.tokens, self.liveness, replicas, sums, norm)
        self.backoff = Backoff(settings.crowded)
        self.wait_loop = WaitLoop(
            self.backoff,
            self._turn,
            self._book_wait,
            self._stalled,
            settings.stall_timeout,
            self.inbox.check_neighbours,
        )
        scale = 1.0 / (table.batch_size * stages[0].model.scored)
        self.actions = Actions(
            self.inbox,
            policy,
            hooks,
            recorder,
            ActionSettings(scale, settings.w_group, settings.seed),
            dict(enumerate(paces)),
            balance,
            self.wait_loop.blocked,
        )
        for pace in paces:
            pace.stepped(settings.start)
        self._peer = -1  # from which something came in this wait
        self._next = NONE  # what can run after it

    @property
    def updates(self) -> int:
        """Updates that every stage of this rank has made."""
        return self.tokens.updates

    @property
    def stop_signal(self) -> int:
        """Number of the signal that stops the run, or 0."""
        return self.tokens.stop_signal

    @property
    def rebalance(self) -> RebalanceOrder | None:
        """The order for which `run` has returned before the end, if it has."""
        return self.tokens.rebalance

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the timetable ends, a stop is ordered, or the ring is to be rebalanced."""
        choose, poll, chunks, tokens = self.policy.choose, self.inbox.poll, self.chunks, self.tokens
        perform, probe, delay = self.actions.by_kind, self.probe, self.settings.delay
        free = self.actions.step_began = clock()  # since when this rank has had nothing to run
        while True:
            peer = poll()
            what = choose(chunks)
            if what == NONE:
                if self.inbox.finished():
                    break
                what = self._wait(clock() if tokens.interrupted else free)
                if what == NONE:
                    break
            elif peer >= 0 and not tokens.interrupted:
                self.actions.record("receive", free, clock(), chunks[0], step=self.updates, peer=peer)
            tokens.interrupted = False
            if probe:
                self._tell(probe, what)
            if delay:
                time.sleep(self.random.random() * delay)
            perform[what % 8](chunks[what // 8])
            free = clock()
        self._leave_ring()

    def _tell(self, probe: FaultProbe, what: int) -> None:
        """Tell the probe what comes next."""
        evaluates = what % 8 == F and self.chunks[what // 8].evaluating()
        probe.at("E" if evaluates else KINDS[what % 8], self.updates)

    def poll_once(self) -> None:
        """Read what has arrived, and send a sign of life if one is due, while training is held up."""
        self.inbox.poll()

    # ---- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, since: int) -> int:
        """Poll until something can run or all is done (`NONE`). Books the wait, and the poll that ended it."""
        self.tokens.interrupted, self._peer = False, -1
        begin = self.wait_loop.until(self._ready, since)
        self.actions.record("receive", begin, clock(), self.chunks[0], step=self.updates, peer=self._peer)
        return self._next

    def _turn(self) -> bool:
        """Read what has arrived; whether a control message was handled, which was no wait."""
        self._peer = max(self.inbox.poll(), self._peer)
        interrupted, self.tokens.interrupted = self.tokens.interrupted, False
        return interrupted

    def _ready(self) -> bool:
        self._next = self.policy.choose(self.chunks)
        return self._next != NONE or self.inbox.finished()

    def _book_wait(self, begin: int, end: int) -> None:
        self.actions.record("wait", begin, end, self.chunks[0], step=self.updates, peer=self._peer)
        self.policy.waited(end - begin)

    def _stalled(self, nanoseconds: int) -> str:
        return (
            f"no action could go on for {nanoseconds / 1e9:.0f} s in step {self.updates} (--stall-timeout): "
            f"this rank waits for its neighbours, ranks {self.links.left} and {self.links.right}"
        )

    # ---- the end ------------------------------------------------------------------------------------------------

    def _leave_ring(self) -> None:
        """Exchange last messages with the neighbours; afterwards no message can arrive."""
        if self.liveness is None:
            return
        self.liveness.leave()
        self.backoff.reset()
        with self.recorder.timed("wait", self.updates):
            while not self.liveness.all_left or not self.links.idle():
                self.inbox.poll()
                self.inbox.check_neighbours(clock())
                self.backoff.pause()

    def requests(self) -> "list[Prequest]":
        """All persistent requests, started or not: those that `close` frees."""
        return self.inbox.requests()

    def close(self) -> None:
        """Free all requests. Collective."""
        self.inbox.close()

"""Rank 0's work besides serving or working: collects reports of steps, decides on membership, orders stops."""

import math
from collections.abc import Sequence

from ringtmp.comm.messages import Mailbox
from ringtmp.comm.peers import Peers
from ringtmp.errors import RunFailure
from ringtmp.ps.membership import MembershipLeader
from ringtmp.ps.messages import (
    Begin,
    CheckpointOrder,
    Done,
    Leave,
    Loss,
    Over,
    PartWritten,
    RejoinRequest,
    StepDone,
    Stop,
    StopRequest,
    TestDone,
)
from ringtmp.run.listener import RunListener


class Coordinator:
    """Rank 0's part.

    Parameters
    ----------
    mailbox : Mailbox
        Delivers control messages.
    workers : sequence of int
        Ranks that work.
    ranks : sequence of int
        All ranks, those that only serve included.
    writers : sequence of int
        Ranks that write a part of each checkpoint.
    listener : RunListener
        Receives the reports of steps, tests and checkpoints.
    peers : Peers
        Names and processes of the other ranks.
    batch_size, test_samples : int
        Samples of a step, and of an evaluation.
    start : int
        Steps made before this launch.
    period : int
        Steps between two exchanges, at least 1.
    total : int
        Steps of the run.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        workers: Sequence[int],
        ranks: Sequence[int],
        writers: Sequence[int],
        listener: RunListener,
        peers: Peers,
        *,
        batch_size: int,
        test_samples: int,
        start: int,
        period: int,
        total: int,
    ) -> None:
        self.mailbox, self.ranks, self.writers, self.listener, self.peers = mailbox, ranks, writers, listener, peers
        self.batch_size, self.test_samples, self.period = batch_size, test_samples, period
        self.members = MembershipLeader(workers, mailbox, ranks)
        self.stop_signal = 0
        self._end = total  # steps that are made
        self._begun = start  # newest step that a worker has begun
        self._next = start  # first step that is not reported
        # The newest step that each worker has reported; infinity once it has its last weights.
        self._newest: dict[int, float] = dict.fromkeys(workers, start - 1)
        self._steps: dict[int, dict[int, StepDone]] = {}  # reports by step and worker
        self._tests: dict[int, dict[int, TestDone]] = {}
        self._parts: dict[int, dict[int, PartWritten]] = {}
        mailbox.on(Begin, self._on_begin)
        mailbox.on(StepDone, self._on_step)
        mailbox.on(TestDone, self._on_test)
        mailbox.on(PartWritten, self._on_part)
        mailbox.on(Done, self._on_done)
        mailbox.on(StopRequest, self._on_stop_request)
        mailbox.on(RejoinRequest, self._on_rejoin_request)
        mailbox.on(Leave, lambda worker, message: self.drop(worker, "has failed", Loss.FAILED))

    # ---- reports ------------------------------------------------------------------------------------------------

    def _on_begin(self, worker: int, message: Begin) -> None:
        if worker in self.members.active:
            self._begun = max(self._begun, message.step)

    def _on_step(self, worker: int, message: StepDone) -> None:
        step = message.step
        if worker not in self.members.active:
            return  # sent before the worker was dropped; the others train on its samples
        self._begun, self._newest[worker] = max(self._begun, step), step
        self._steps.setdefault(step, {})[worker] = message
        if not math.isfinite(message.loss):
            raise RunFailure(f"the loss became {message.loss} in step {step} on rank {worker}; try a smaller --lr")
        self._report()

    def _on_done(self, worker: int, message: Done) -> None:
        """Note that a worker trains no further step; with backup workers it may have skipped the last ones."""
        self._newest[worker] = math.inf
        self._report()

    def _on_test(self, worker: int, message: TestDone) -> None:
        if worker in self.members.active:
            self._tests.setdefault(message.step, {})[worker] = message
            self._report_tests()

    def _on_part(self, rank: int, message: PartWritten) -> None:
        parts = self._parts.setdefault(message.step, {})
        parts[rank] = message
        if len(parts) == len(self.writers):
            del self._parts[message.step]
            whole, cost = all(part.written for part in parts.values()), max(part.seconds for part in parts.values())
            self.listener.parts_done(message.step, whole, cost)

    def _report(self) -> None:
        """Report the steps and tests that every active worker has made or skipped."""
        active = self.members.active
        while self._steps and active and min(self._newest[worker] for worker in active) >= self._next:
            parts = self._steps.pop(self._next, {}).values()
            step, self._next = self._next, self._next + 1
            if not parts:
                continue
            loss, correct = sum(part.loss for part in parts), sum(part.correct for part in parts)
            waited, elapsed = sum(part.waited for part in parts), sum(part.elapsed for part in parts)
            # With backup workers some samples are missing.
            whole = self.batch_size / sum(part.samples for part in parts)
            self.listener.step_done(step, loss * whole, correct * whole, waited, elapsed)
            self._order_checkpoint()
        self._report_tests()

    def _report_tests(self) -> None:
        for step in sorted(self._tests):
            parts = self._tests[step]
            if any(worker not in parts and self._newest[worker] < step for worker in self.members.active):
                return  # a worker that has reported a later step has skipped this test
            del self._tests[step]
            loss, correct = sum(part.loss for part in parts.values()), sum(part.correct for part in parts.values())
            whole = self.test_samples / max(sum(part.samples for part in parts.values()), 1)
            self.listener.test_done(step, loss * whole, correct * whole)

    # ---- orders -------------------------------------------------------------------------------------------------

    def _safe_step(self) -> int:
        """First step that no worker can start before a message sent now arrives.

        To start the step after the next one a worker needs rank 0's answer to the next one, which it must have begun.
        """
        return self._begun + 1 + self.period

    def _order_checkpoint(self) -> None:
        """Order a checkpoint, if one is due, after the first step with an exchange that no worker can have made."""
        step = -(-(self._safe_step() + 1) // self.period) * self.period
        if not self.stop_signal and self.listener.wants_checkpoint(step):
            self.mailbox.send_all(self.ranks, CheckpointOrder(step), step)

    def _on_stop_request(self, rank: int, message: StopRequest) -> None:
        if not self.stop_signal:
            self.stop_signal, step = message.signal, self._safe_step()
            self._end = min(self._end, step)
            self.mailbox.send_all(self.ranks, Stop(step), step)

    def drop(self, worker: int, why: str, loss: Loss) -> None:
        """Continue without a worker.

        Parameters
        ----------
        worker : int
            Rank of the worker.
        why : str
            Reason for the user, after "rank N on HOST (process PID)".
        loss : Loss
            How it was lost.

        Raises
        ------
        RunFailure
            It was the last worker.
        """
        step = self._safe_step()
        if not self.members.drop(worker, step, loss):
            return
        left = len(self.members.active)
        self.listener.say(
            f"warning: {self.peers.name(worker)} {why} and is dropped; "
            f"{left} worker{'s' * (left != 1)} continue and divide its samples from step {step} on"
        )
        if not left:
            raise RunFailure("no worker is left; the last checkpoint is kept")
        self._report()

    def _on_rejoin_request(self, worker: int, message: RejoinRequest) -> None:
        """Take back a worker that was silent, from a step with an exchange that no worker can have begun."""
        step = -(-self._safe_step() // self.period) * self.period
        # At the end of the run it is too late.
        if step >= self._end or not self.members.rejoin(worker, step, message.pushes):
            return
        self._newest[worker] = step - 1
        active = len(self.members.active)
        self.listener.say(
            f"{self.peers.name(worker)} is back and takes part again; "
            f"{active} worker{'s' * (active != 1)} divide the batches from step {step} on"
        )

    def check_workers(self, silent: Sequence[int], limit: float) -> None:
        """Drop workers whose process on this host has ended, and those that are silent.

        Parameters
        ----------
        silent : sequence of int
            Workers that have sent nothing for `limit` seconds.
        limit : float
            The limit, in seconds, for the message.
        """
        for worker in self.members.active:
            if self.peers.has_ended(worker):
                self.drop(worker, "was killed", Loss.KILLED)
        for worker in silent:
            self.drop(worker, f"was silent for {limit:g} s (--worker-timeout)", Loss.SILENT)

    # ---- the end ------------------------------------------------------------------------------------------------

    def finished(self) -> bool:
        """Whether every worker has its last weights, and all reports have arrived."""
        ended = all(self._newest[worker] == math.inf for worker in self.members.active)
        return ended and not self._steps and not self._tests and not self._parts

    def announce_end(self) -> None:
        """Tell all ranks that every worker has ended."""
        self.mailbox.send_all(self.ranks, Over())

    def kill_lost(self) -> None:
        """Kill the processes of unresponsive workers on this host: a stopped one would keep the launcher waiting."""
        for worker in self.members.decided.unresponsive:
            self.peers.kill(worker)

"""What rank 0 does beside serving or working: it hears how steps went, drops who fails, orders stops, ends the run."""

import math
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from ps import messages as post
from ps.batch_split import Shares
from ps.messages import Message, Post
from ringtmp.comm.mpi import runs
from ringtmp.errors import RunFailure
from ringtmp.run.listener import RunListener


class Coordinator:
    """Rank 0's part.

    Parameters
    ----------
    letters : Post
    shares : Shares
    ranks : sequence of int
        All, with those that only serve.
    writers : sequence of int
        Ranks that write a part of each set.
    home : RunListener
    places : sequence of tuple
        Host and process number of each rank.
    batch_size, test_samples : int
    start, period, total : int
        Steps made before; steps between two exchanges; steps of the run.
    """

    def __init__(
        self,
        letters: Post,
        shares: Shares,
        ranks: Sequence[int],
        writers: Sequence[int],
        home: RunListener,
        places: Sequence[tuple[str, int]],
        *,
        batch_size: int,
        test_samples: int,
        start: int,
        period: int,
        total: int,
    ) -> None:
        self.post, self.shares, self.ranks, self.home, self.places = letters, shares, ranks, home, places
        self.batch_size, self.test_samples, self.period = batch_size, test_samples, period
        self.writers = writers
        self.alive = set(shares.workers)
        self.lost: set[int] = set()  # their processes take no part in the end
        self.generation = 0  # workers that have come back
        self.end = total  # steps that are made
        self.stop_signal = 0
        self.begun = start  # newest step that anybody has begun
        self.next = start  # first step that is not reported
        self.done: dict[int, dict[int, tuple[float, ...]]] = {}
        # The newest step that each worker has reported; infinity once it has its last weights.
        self.newest: dict[int, float] = dict.fromkeys(shares.workers, start - 1)
        self.tests: dict[int, dict[int, tuple[float, ...]]] = {}
        self.parts: dict[int, dict[int, tuple[bool, float]]] = {}
        self.shares_of_time: dict[int, tuple[float, float]] = {}
        letters.on(post.BEGIN, self._begun)
        letters.on(post.DONE, self._done)
        letters.on(post.TEST, self._tested)
        letters.on(post.SAVED, self._saved)
        letters.on(post.END, self._ended)
        letters.on(post.ASK, self._asked)
        letters.on(post.BACK, self._back)
        letters.on(post.LEAVE, lambda worker, message: self.drop(worker, "has failed", post.FAILED))

    # ---- reports ------------------------------------------------------------------------------------------------

    def _begun(self, worker: int, message: Message) -> None:
        if worker in self.alive:
            self.begun = max(self.begun, int(message[1]))

    def _done(self, worker: int, message: Message) -> None:
        _, number, loss, correct, samples, waited, gone, *_ = message
        step = int(number)
        if worker not in self.alive:
            return  # it was sent before the worker was dropped, and is made by others
        self.begun, self.newest[worker] = max(self.begun, step), step
        self.done.setdefault(step, {})[worker] = loss, correct, samples
        self.shares_of_time[worker] = waited, gone
        if not math.isfinite(loss):
            raise RunFailure(f"the loss became {loss} in step {step} on rank {worker}; try a smaller --lr")
        self._report()
        self._report_tests()

    def _ended(self, worker: int, message: Message) -> None:
        """A worker makes no further step; with backup workers it may have passed over the last ones."""
        self.newest[worker] = math.inf
        self._report()
        self._report_tests()

    def _report(self) -> None:
        """Report the steps that everybody has made or passed over."""
        while self.done and self.alive and min(self.newest[worker] for worker in self.alive) >= self.next:
            parts = self.done.pop(self.next, {})
            step, self.next = self.next, self.next + 1
            if not parts:
                continue
            loss, correct, samples = (sum(part[n] for part in parts.values()) for n in range(3))
            waited, gone = (sum(each[n] for each in self.shares_of_time.values()) for n in (0, 1))
            whole = self.batch_size / samples
            self.home.step_done(step, loss * whole, correct * whole, waited / max(gone, 1.0))
            self._order_set()

    def _tested(self, worker: int, message: Message) -> None:
        step = int(message[1])
        if worker not in self.alive:
            return
        self.tests.setdefault(step, {})[worker] = message[2:5]
        self._report_tests()

    def _report_tests(self) -> None:
        for step in sorted(self.tests):
            parts = self.tests[step]
            if any(worker not in parts and self.newest[worker] < step for worker in self.alive):
                return  # those who have made a later step have passed this test over
            del self.tests[step]
            loss, correct, samples = (sum(part[n] for part in parts.values()) for n in range(3))
            whole = self.test_samples / max(samples, 1)
            self.home.test_done(step, loss * whole, correct * whole)

    def _saved(self, rank: int, message: Message) -> None:
        step, whole, cost = int(message[1]), bool(message[2]), message[3]
        parts = self.parts.setdefault(step, {})
        parts[rank] = whole, cost
        if len(parts) == len(self.writers):
            del self.parts[step]
            self.home.parts_done(
                step, all(whole for whole, _ in parts.values()), max(cost for _, cost in parts.values())
            )

    # ---- orders -------------------------------------------------------------------------------------------------

    def _safe(self) -> int:
        """A step that nobody has begun or can begin before an order that leaves now is there.

        To begin the next step but one a worker needs this rank's answer to the next, and it had to be begun for that.
        """
        return self.begun + 1 + self.period

    def _order_set(self) -> None:
        """Have a set written, if one is wanted, after the first step with an exchange that nobody can have made."""
        step = -(-(self._safe() + 1) // self.period) * self.period
        if not self.stop_signal and self.home.wants_checkpoint(step):
            self.post.tell(self.ranks, post.SET, step)

    def _asked(self, rank: int, message: Message) -> None:
        if not self.stop_signal:
            self.stop_signal, step = int(message[1]), self._safe()
            self.end = min(self.end, step)
            self.post.tell(self.ranks, post.STOP, step, self.stop_signal)

    def drop(self, worker: int, why: str, how: int) -> None:
        """Go on without a worker; `how` it was lost, as in `DROP`."""
        if worker not in self.alive:
            return
        self.alive.discard(worker)
        if how != post.FAILED:
            self.lost.add(worker)
        host, pid = self.places[worker]
        step = self._safe()
        self.home.say(
            f"warning: rank {worker} on {host} (process {pid}) {why} and is dropped; "
            f"{len(self.alive)} worker{'s' * (len(self.alive) != 1)} go on with its share from step {step} on"
        )
        if not self.alive:
            raise RunFailure("no worker is left; the last checkpoint is kept")
        self.post.tell(self.ranks, post.DROP, worker, step, how)  # those who are silent too: they may yet come back
        self._report()
        self._report_tests()

    def _back(self, worker: int, message: Message) -> None:
        """A worker that was silent is there again: give it a share from a step on that nobody can have begun."""
        step = -(-self._safe() // self.period) * self.period
        if worker not in self.lost or step >= self.end:
            return  # at the end it is too late
        self.lost.discard(worker)
        self.alive.add(worker)
        self.newest[worker] = step - 1
        self.generation += 1
        host, pid = self.places[worker]
        self.home.say(
            f"rank {worker} on {host} (process {pid}) is back and is taken in again; {len(self.alive)} "
            f"worker{'s' * (len(self.alive) != 1)} share the batches from step {step} on"
        )
        self.post.tell(self.ranks, post.JOIN, worker, step, message[1], self.generation)

    def look(self, silent: Sequence[int], limit: float) -> None:
        """Drop workers whose process is gone, and those that have been silent for too long (`limit` seconds)."""
        here = self.places[0][0]
        for worker in tuple(self.alive):
            host, pid = self.places[worker]
            if worker and host == here and not runs(pid):
                self.drop(worker, "was killed", post.KILLED)
        for worker in silent:
            self.drop(worker, f"was silent for {limit:g} s (--worker-timeout)", post.SILENT)

    def finished(self) -> bool:
        """Every worker has its last weights, and all reports are in."""
        ended = all(self.newest[worker] == math.inf for worker in self.alive)
        return ended and not self.done and not self.tests and not self.parts

    def over(self) -> None:
        """Every worker has ended: tell all."""
        self.post.tell(self.ranks, post.OVER)

    def fence(self) -> None:
        """Kill what is left of lost workers on this host: they may only sleep, and the launcher waits for them."""
        for worker in self.lost:
            host, pid = self.places[worker]
            if host == self.places[0][0]:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

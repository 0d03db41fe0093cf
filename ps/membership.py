"""Which workers take part in which steps: rank 0 drops a worker that is lost, and takes it back when it answers again.

    worker w                       rank 0                            servers, and all other workers
       |                             |<-- Leave, or no sign of w ----------|
       |<--- Drop(w, s, loss) -------|---- Drop(w, s, loss) -------------->|  from step s on the others divide w's
       |                             |                                     |  samples; servers wait for w no more
       |---- RejoinRequest(p) ------>|   w was only silent: p pushes made  |
       |<--- Rejoin(w, t, p, g) -----|---- Rejoin(w, t, p, g) ------------>|  from step t on w has samples again; its
       |<------------------- answer to push p, if that is missing ---------|  first p pushes are void
       |-------------------- Begin(t - 1, 0 samples, g), push p + 1 ------>|
       |<------------------- all weights as they are before step t --------|
       |-------------------- Begin(t, samples, g), push p + 2 ------------>|  and so on, as before

Rank 0 chooses s and t such that no worker can have begun these steps when the message arrives. The generation g counts
rejoins: a server holds back a Begin of a generation that it has not heard of, and ignores one of before w's rejoin.

Every rank applies the same sequence of Drop and Rejoin to a `Membership`; `MembershipLeader` makes the decisions (rank
0), `PushLedger` tells void pushes from valid ones (servers), `Standing` tells a worker whether it is among them.
"""

from collections.abc import Iterable, Sequence

from ringtmp.comm.messages import Mailbox
from ringtmp.ps.messages import Begin, Drop, Loss, Over, Rejoin, RejoinRequest


class MembershipError(RuntimeError):
    """A transition that the protocol does not have."""


class WorkerDroppedError(Exception):
    """The other ranks have dropped this worker: it must stop training."""


class Membership:
    """The workers that take part in each step, as far as this rank knows.

    A worker is active at first; `drop` makes it lost (`Loss`), and `rejoin` makes a silent one active again.

    Parameters
    ----------
    workers : iterable of int
        Ranks of all workers, in the order in which samples are divided among them.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self.workers = tuple(workers)
        self._losses: dict[int, Loss] = {}  # of the workers that are not active
        self._turns: dict[int, list[int]] = {worker: [] for worker in self.workers}  # steps: away, active, away, ...
        self._rejoins: list[int] = []  # steps of all rejoins, in order

    @property
    def active(self) -> list[int]:
        """Workers that take part in the steps to come."""
        return [worker for worker in self.workers if worker not in self._losses]

    @property
    def unresponsive(self) -> set[int]:
        """Workers whose processes do not answer."""
        return {worker for worker, loss in self._losses.items() if loss != Loss.FAILED}

    @property
    def generation(self) -> int:
        """Number of rejoins so far."""
        return len(self._rejoins)

    def loss(self, worker: int) -> Loss | None:
        """How worker `worker` was lost; None: it is active."""
        return self._losses.get(worker)

    def drop(self, worker: int, step: int, loss: Loss) -> bool:
        """Exclude a worker from a step on.

        Parameters
        ----------
        worker : int
            Rank of the worker.
        step : int
            First step in which it takes no part.
        loss : Loss
            How it was lost.

        Returns
        -------
        bool
            False if it is excluded already.

        Raises
        ------
        MembershipError
            The rank is no worker.
        """
        turns = self._turns_of(worker)
        if worker in self._losses:
            return False
        turns.append(max(step, turns[-1]) if turns else step)
        self._losses[worker] = loss
        return True

    def rejoin(self, worker: int, step: int, generation: int) -> None:
        """Include a worker again from a step on.

        Parameters
        ----------
        worker : int
            Rank of the worker.
        step : int
            First step in which it takes part again.
        generation : int
            Number of this rejoin, from 1.

        Raises
        ------
        MembershipError
            The worker is not silent, would come back before it left, or a rejoin is missing.
        """
        turns, loss = self._turns_of(worker), self._losses.get(worker)
        if loss != Loss.SILENT:
            state = "active" if loss is None else loss.name.lower()
            raise MembershipError(f"worker {worker} cannot rejoin: it is {state}")
        if step < turns[-1]:
            raise MembershipError(f"worker {worker} cannot rejoin in step {step}: it left in step {turns[-1]}")
        if generation != self.generation + 1:
            raise MembershipError(f"rejoin {generation} follows rejoin {self.generation}")
        turns.append(step)
        self._rejoins.append(step)
        del self._losses[worker]

    def _turns_of(self, worker: int) -> list[int]:
        if worker not in self._turns:
            raise MembershipError(f"rank {worker} is no worker")
        return self._turns[worker]

    def workers_in(self, step: int) -> list[int]:
        """Workers that have samples of `step`."""
        return [w for w in self.workers if sum(turn <= step for turn in self._turns[w]) % 2 == 0]

    def generation_in(self, step: int) -> int:
        """Number of rejoins up to `step`, `step` included."""
        return sum(rejoin <= step for rejoin in self._rejoins)

    def follow(self, mailbox: Mailbox) -> None:
        """Apply the decisions that arrive in `mailbox`."""
        mailbox.on(Drop, self._on_drop)
        mailbox.on(Rejoin, self._on_rejoin)

    def _on_drop(self, sender: int, message: Drop) -> None:
        self.drop(message.worker, message.step, Loss(message.loss))

    def _on_rejoin(self, sender: int, message: Rejoin) -> None:
        self.rejoin(message.worker, message.step, message.generation)


class MembershipLeader:
    """Rank 0's decisions, which it knows before they reach the `Membership` of each rank, its own included.

    Parameters
    ----------
    workers : sequence of int
        Ranks of all workers.
    mailbox : Mailbox
        Sends the decisions.
    ranks : sequence of int
        Ranks that receive them: all, also silent ones, since they may come back.
    """

    def __init__(self, workers: Sequence[int], mailbox: Mailbox, ranks: Sequence[int]) -> None:
        self.decided = Membership(workers)
        self._mailbox, self._ranks = mailbox, ranks

    @property
    def active(self) -> list[int]:
        """Workers that take part in the steps to come."""
        return self.decided.active

    def drop(self, worker: int, step: int, loss: Loss) -> bool:
        """Decide that `worker` takes no part from `step` on, lost as `loss` says, and send that to all ranks.

        False if it takes none already.
        """
        if not self.decided.drop(worker, step, loss):
            return False
        self._mailbox.send_all(self._ranks, Drop(worker, step, loss), step)
        return True

    def rejoin(self, worker: int, step: int, pushes: int) -> bool:
        """Decide that `worker`, which has made `pushes` pushes, takes part from `step` on, and send that to all ranks.

        False if it is not silent.
        """
        if self.decided.loss(worker) != Loss.SILENT:
            return False
        generation = self.decided.generation + 1
        self.decided.rejoin(worker, step, generation)
        self._mailbox.send_all(self._ranks, Rejoin(worker, step, pushes, generation), step)
        return True


class PushLedger:
    """On a server: the step and the number of samples of each push, and which pushes are void.

    The n-th push that a worker makes of each key range belongs to its n-th Begin message. The two travel apart, and
    either may arrive first. A rejoin voids all pushes before it.

    Parameters
    ----------
    workers : iterable of int
        Ranks of all workers.
    ranges : int
        Key ranges of this server, each of which receives every push; 0 or more.
    """

    def __init__(self, workers: Iterable[int], ranges: int) -> None:
        self._ranges = ranges
        self._open: dict[int, dict[int, list[int]]] = {w: {} for w in workers}  # by push: step, samples, ranges missing
        self._announced = dict.fromkeys(self._open, 0)  # Begin messages of each worker
        self._generation = 0
        self._since = dict.fromkeys(self._open, 0)  # the generation in which each worker came (back)
        self._void = dict.fromkeys(self._open, 0)  # pushes of each worker before that
        self._early: list[tuple[int, Begin]] = []  # of a generation whose Rejoin has not arrived here

    def announce(self, worker: int, message: Begin) -> None:
        """Note the Begin message `message` of worker `worker`."""
        if message.generation > self._generation:
            self._early.append((worker, message))
        elif message.generation >= self._since[worker]:
            self._open[worker][self._announced[worker]] = [message.step, message.samples, self._ranges]
            self._announced[worker] += 1

    def match(self, worker: int, push: int) -> tuple[int, int] | None:
        """Step and samples of a push that has arrived for one range; each range must be matched once.

        `push` is its number among the pushes of `worker`, from 0. None: its Begin message has not arrived.
        """
        known = self._open[worker].get(push)
        if known is None:
            return None
        step, samples, missing = known
        known[2] = missing - 1
        if not known[2]:
            del self._open[worker][push]
        return step, samples

    def void(self, worker: int) -> int:
        """Number of void pushes of worker `worker`: its first ones."""
        return self._void[worker]

    def rejoin(self, worker: int, pushes: int, generation: int) -> None:
        """Void the first `pushes` pushes of `worker`, which has rejoined as number `generation`.

        Raises `MembershipError` if a rejoin is missing.
        """
        if generation != self._generation + 1:
            raise MembershipError(f"rejoin {generation} follows rejoin {self._generation}")
        self._generation = self._since[worker] = generation
        self._open[worker], self._announced[worker], self._void[worker] = {}, pushes, pushes
        early, self._early = self._early, []
        for each in early:
            self.announce(*each)


class Standing:
    """On a worker: whether the other ranks have dropped it, and the step from which it takes part again.

    Parameters
    ----------
    rank : int
        Rank of this worker.
    mailbox : Mailbox
        Delivers control messages.
    """

    def __init__(self, rank: int, mailbox: Mailbox) -> None:
        self.rank, self._mailbox = rank, mailbox
        self.dropped = False
        self.rejoined = -1  # step from which the worker takes part again; -1: not known
        self._over = False
        mailbox.on(Drop, self._on_drop)
        mailbox.on(Rejoin, self._on_rejoin)
        mailbox.on(Over, self._on_over)

    def _on_drop(self, sender: int, message: Drop) -> None:
        self.dropped |= message.worker == self.rank

    def _on_rejoin(self, sender: int, message: Rejoin) -> None:
        if message.worker == self.rank:
            self.dropped, self.rejoined = False, message.step

    def _on_over(self, sender: int, message: Over) -> None:
        self._over = True

    def check(self) -> None:
        """Raise `WorkerDroppedError` if the other ranks have dropped this worker."""
        if self.dropped:
            raise WorkerDroppedError

    def request(self, pushes: int) -> None:
        """Ask rank 0 for a rejoin; this worker has pushed every range `pushes` times."""
        self.rejoined = -1
        self._mailbox.send(0, RejoinRequest(pushes))

    def accepted(self) -> bool:
        """Whether the request has been granted. Raises `WorkerDroppedError` if the run ended without this worker."""
        if self._over:
            raise WorkerDroppedError
        return self.rejoined >= 0

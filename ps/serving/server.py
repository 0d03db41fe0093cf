"""A server: it receives the gradients of its key ranges, updates, and answers with new weights.

    receive -> may a worker read? -> update with all gradients that have arrived -> answer, first layers first

Messages travel over persistent requests on buffers that are made once. The state of a range is in
`ringtmp.ps.serving.served_range`, the update in `ringtmp.ps.serving.updates`, the answers in
`ringtmp.ps.serving.answers`, and which pushes count in `ringtmp.ps.membership.PushLedger`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ringtmp.comm.messages import Mailbox
from ringtmp.nn.layer import Array
from ringtmp.ps.compression import Compressor
from ringtmp.ps.consistency import Consistency
from ringtmp.ps.membership import PushLedger
from ringtmp.ps.messages import Alive, Begin, Done, Drop, Loss, Rejoin, Skip, StepDone, TestDone
from ringtmp.ps.serving.answers import AnswerSender
from ringtmp.ps.serving.served_range import AnswerGate, RangeListener, ServedRange
from ringtmp.ps.serving.updates import Updater
from ringtmp.ps.tags import push_tag
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Server:
    """The server of this rank. Collective: every worker must have its end of each key range.

    Parameters
    ----------
    comm : Intracomm
        Carries gradients and weights.
    ranges : sequence of ServedRange
        Those of this server, with their weights.
    workers : sequence of int
        Ranks that work, in the order of the rows of `ServedRange.gradients`; this rank may be among them.
    rule : Consistency
        Decides when a worker may read.
    updater : Updater
        Applies the gradients.
    compressor : Compressor
        Decompresses gradients, and compresses weights.
    mailbox : Mailbox
        Delivers control messages.
    recorder : Recorder
        Records sends and receives.
    listeners : sequence of RangeListener
        Called when a range has passed a step.
    gate : AnswerGate or None
        May hold answers back.
    """

    def __init__(
        self,
        comm: "Intracomm",
        ranges: Sequence[ServedRange],
        workers: Sequence[int],
        rule: Consistency,
        updater: Updater,
        compressor: Compressor,
        mailbox: Mailbox,
        recorder: Recorder,
        listeners: Sequence[RangeListener] = (),
        gate: AnswerGate | None = None,
    ) -> None:
        from mpi4py import MPI

        self.comm, self.rank, self.ranges, self.rule, self.compressor = comm, comm.rank, ranges, rule, compressor
        self.updater, self.mailbox, self.recorder = updater, mailbox, recorder
        self.listeners, self.gate = listeners, gate
        self.answers = AnswerSender(comm, ranges, workers, rule, compressor, recorder)
        self.active = list(workers)
        self._testsome = MPI.Prequest.Testsome
        self._row = {worker: row for row, worker in enumerate(workers)}
        self._numbered = {served.keys.number: served for served in ranges}
        self._ledger = PushLedger(workers, len(ranges))
        self._early: list[tuple[ServedRange, int]] = []  # gradients, by worker, that came before their Begin message
        self._withheld: list[tuple[ServedRange, int, int]] = []  # answers that the gate holds back: worker and step
        self._answer_own_worker: Callable[[int, Array], None] | None = None
        self._heard = dict.fromkeys(workers, clock())  # when something came from each worker
        self._done: set[int] = set()  # workers that have their last weights
        self._post_receives()
        for kind in (Begin, StepDone, TestDone, Alive, Done):
            mailbox.on(kind, self._on_sign_of_life)
        mailbox.on(Begin, self._ledger.announce)
        mailbox.on(Done, lambda worker, message: self._done.add(worker))
        mailbox.on(Drop, self._on_drop)
        mailbox.on(Rejoin, self._on_rejoin)

    def _post_receives(self) -> None:
        """Post a receive for the gradient of every worker and range."""
        self._receives: list[Any] = []
        self._posted: list[bool] = []  # whether each is under way
        self._sources: list[tuple[ServedRange, int]] = []  # range and worker of each
        self._index: dict[tuple[int, int], int] = {}  # by key range and worker
        self._messages: list[Array] = []  # what each receives
        for served in self.ranges:
            number, size = served.keys.number, served.keys.size
            for worker, row in self._row.items():
                if worker == self.rank:
                    continue
                compressed = self.compressor.compresses_gradients
                message = self.compressor.gradient_buffer(size) if compressed else served.gradients[row]
                request = self.comm.Recv_init(message, worker, push_tag(number))
                request.Start()
                self._index[number, worker] = len(self._receives)
                self._receives.append(request)
                self._posted.append(True)
                self._sources.append((served, worker))
                self._messages.append(message)

    # ---- pushes -------------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take gradients that have arrived, update, answer; True if anything has happened. Poll the mailbox before."""
        begin = clock()
        moved = False
        done = self._testsome(self._receives) if self._receives else None
        if done:
            moved = True
            for index in done:
                self._receive(index, begin)
                begin = clock()
        if self._withheld:
            moved |= self._retry_withheld()
        if self._early:
            early, self._early = self._early, []
            for served, worker in early:
                moved |= self._take(served, worker, begin)
        return self.answers.poll() or moved

    def connect_own_worker(self, answer: Callable[[int, Array], None]) -> None:
        """Answer the worker of this rank by calling `answer` with the number of a key range and its weights.

        The weights must be copied: the next update overwrites them.
        """
        self._answer_own_worker = answer

    def push(self, number: int, gradient: Array) -> None:
        """Take `gradient`, array [size], of key range `number` from this rank's own worker, after its Begin message."""
        served = self._numbered[number]
        served.gradients[self._row[self.rank]][...] = gradient
        served.received[self.rank] += 1
        self._take(served, self.rank, clock())

    def _receive(self, index: int, begin: int) -> None:
        served, worker = self._sources[index]
        served.received[worker] += 1
        self._posted[index] = False
        if served.received[worker] <= self._ledger.void(worker):
            self._answer_void(served, worker)
            return
        if self.compressor.compresses_gradients:
            self.compressor.decompress_gradient(self._messages[index], served.gradients[self._row[worker]])
        self._take(served, worker, begin)

    def _take(self, served: ServedRange, worker: int, begin: int) -> bool:
        """Count a gradient that has arrived, and answer the workers that may read; False if its Begin is missing.

        A gradient that arrives after its step was made without it (backup workers) is ignored, and so is one of no
        samples: a worker that has rejoined requests weights.
        """
        # Find its step.
        if worker not in served.clock.ticks:
            return False
        known = self._ledger.match(worker, served.received[worker] - 1)
        if known is None:
            self._early.append((served, worker))
            return False
        step, samples = known
        now = self._heard[worker] = clock()
        late = bool(self.rule.backup) and step < served.version
        counts = samples > 0 and not late

        # Note it in the trace.
        number = served.keys.number
        size = 0 if worker == self.rank else self._messages[self._index[number, worker]].nbytes
        read = served.read_version[worker] if counts else -1
        self.recorder.record("receive", begin, now, step, -1, worker, size, number, read)

        # Count it.
        if samples:
            served.clock.tick(worker, step + 1)
        if late:
            self.mailbox.send(worker, Skip(served.version), served.version)
            self._answer(served, worker, step)
        else:
            if counts:
                served.pending[worker] = step, samples
            served.owed[worker] = step
        self._settle(served)
        return True

    def _settle(self, served: ServedRange) -> None:
        """Update a range if a worker may read the result, and answer those workers."""
        due = [worker for worker, step in served.owed.items() if self.rule.may_read(served.clock, step)]
        if not due:
            return
        if served.pending:
            if self.gate:
                self.gate.before_update(served)
            self.updater.update(served)
        self._tell_passed(served)
        for worker in due:
            step = served.owed.pop(worker)
            if self.gate and self.gate.withholds(served, step):
                self._withheld.append((served, worker, step))
            else:
                self._answer(served, worker, step)

    def _tell_passed(self, served: ServedRange) -> None:
        steps = served.version if self.rule.backup else served.clock.least()
        for listener in self.listeners:
            listener.passed(served, steps)

    def _answer(self, served: ServedRange, worker: int, step: int) -> None:
        number = served.keys.number
        if worker == self.rank:
            assert self._answer_own_worker
            self.rule.check(served.clock, worker, step)
            served.read_version[worker] = served.version
            self._answer_own_worker(number, served.weights)
            return
        # The receive must be posted before the worker can push again.
        index = self._index[number, worker]
        if not self._posted[index]:
            self._posted[index] = True
            self._receives[index].Start()
        self.answers.add(served, worker, step)

    def _retry_withheld(self) -> bool:
        """Answer what the gate no longer holds back; True if anything was answered."""
        assert self.gate
        waiting, self._withheld = self._withheld, []
        for served, worker, step in waiting:
            if self.gate.withholds(served, step):
                self._withheld.append((served, worker, step))
            else:
                self._answer(served, worker, step)
        return len(self._withheld) < len(waiting)

    # ---- membership ---------------------------------------------------------------------------------------------

    def _on_drop(self, sender: int, message: Drop) -> None:
        """Continue without a worker: gradients that have arrived count, others are not waited for."""
        worker = message.worker
        if worker not in self.active:
            return
        self.active.remove(worker)
        self.answers.drop(worker, message.loss == Loss.KILLED)
        self._withheld = [each for each in self._withheld if each[1] != worker]
        for served in self.ranges:
            served.clock.drop(worker)
            served.owed.pop(worker, None)
        if not self.active:
            return
        for served in self.ranges:
            if served.pending or served.owed:
                self._settle(served)
            self._tell_passed(served)

    def _on_rejoin(self, sender: int, message: Rejoin) -> None:
        """Take a worker back; if it waits for the answer to its last void push it gets one, to be able to push."""
        worker = message.worker
        self._heard[worker] = clock()
        self.active.append(worker)
        self.answers.rejoin(worker)
        self._early = [each for each in self._early if each[1] != worker]
        self._ledger.rejoin(worker, message.pushes, message.generation)
        for served in self.ranges:
            served.clock.join(worker, message.step)
            self._answer_void(served, worker)

    def _answer_void(self, served: ServedRange, worker: int) -> None:
        """Answer the last void push of a worker that is back, once it has arrived and if it has no answer yet."""
        pushes = self._ledger.void(worker)
        arrived = worker in served.clock.ticks and served.received[worker] == pushes
        if arrived and served.answered[worker] < pushes:
            self._answer(served, worker, -1)

    # ---- signs of life ------------------------------------------------------------------------------------------

    def _on_sign_of_life(self, worker: int, message: object) -> None:
        self._heard[worker] = clock()

    def excuse_silence(self, now: int) -> None:
        """Treat all workers as heard at time `now` (ns), after this rank itself stood still and could not receive."""
        self._heard = dict.fromkeys(self._heard, now)

    def silent(self, now: int, limit: float) -> list[int]:
        """Active workers of other ranks that have not ended and, at time `now`, have sent nothing for `limit` (ns)."""
        waited = (w for w in self.active if w not in self._done and w != self.rank)
        return [worker for worker in waited if now - self._heard[worker] > limit]

    # ---- the end ------------------------------------------------------------------------------------------------

    def finished(self) -> bool:
        """Whether every active worker has its last weights."""
        return self._done.issuperset(self.active) and self.answers.idle()

    def close(self) -> None:
        """Free all requests of active workers."""
        for index, (_, worker) in enumerate(self._sources):
            if worker in self.active:
                request = self._receives[index]
                if self._posted[index]:
                    request.Cancel()
                request.Wait()
                request.Free()
        self.answers.close(self.active)

"""How a server sends new weights to the workers of other ranks, first layers first."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ringtmp.ps.compression import Compressor
from ringtmp.ps.consistency import Consistency
from ringtmp.ps.send_queue import SendQueue
from ringtmp.ps.serving.served_range import ServedRange
from ringtmp.ps.tags import pull_tag
from ringtmp.trace.recorder import Recorder, clock

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class AnswerSender:
    """Sends weights, over persistent requests that are made when a buffer is first sent to a worker.

    Parameters
    ----------
    comm : Intracomm
        Carries gradients and weights.
    ranges : sequence of ServedRange
        The ranges of this server.
    workers : sequence of int
        Ranks that work.
    rule : Consistency
        Checked for every answer that leaves.
    compressor : Compressor
        Compresses the weights.
    recorder : Recorder
        Records the sends.
    """

    def __init__(
        self,
        comm: "Intracomm",
        ranges: Sequence[ServedRange],
        workers: Sequence[int],
        rule: Consistency,
        compressor: Compressor,
        recorder: Recorder,
    ) -> None:
        self.comm, self.rule, self.compressor, self.recorder = comm, rule, compressor, recorder
        self._ranges = {served.keys.number: served for served in ranges}
        self._requests: dict[tuple[int, int, int], Any] = {}  # by key range, buffer and worker
        self._queue = SendQueue(workers, self._start, self._left)

    def add(self, served: ServedRange, worker: int, step: int) -> None:
        """Queue the answer to a push.

        Parameters
        ----------
        served : ServedRange
            The range; the answer carries its newest weights at the moment when it leaves.
        worker : int
            Rank that receives the answer.
        step : int
            Step of the push.
        """
        self._queue.add(worker, served.keys.number, step)

    def poll(self) -> bool:
        """Start answers that may leave; True if anything has happened."""
        return self._queue.poll()

    def _start(self, worker: int, number: int, step: int) -> tuple[Any, int]:
        served = self._ranges[number]
        self.rule.check(served.clock, worker, step)
        begin = clock()
        buffer, message = served.message(self.compressor)
        key = (number, buffer, worker)
        if key not in self._requests:
            self._requests[key] = self.comm.Send_init(message, worker, pull_tag(number))
        request = self._requests[key]
        request.Start()
        served.sends[buffer] += 1
        served.read_version[worker] = served.version
        served.answered[worker] += 1
        self.recorder.record("send", begin, clock(), step, -1, worker, message.nbytes, number, served.version)
        return request, buffer

    def _left(self, number: int, buffer: int) -> None:
        self._ranges[number].sends[buffer] -= 1

    def drop(self, worker: int, killed: bool) -> None:
        """Send nothing more to `worker`; it may come back unless it was `killed`."""
        self._queue.drop(worker, killed)

    def rejoin(self, worker: int) -> None:
        """Send to `worker` again."""
        self._queue.rejoin(worker)

    def idle(self) -> bool:
        """Whether all answers have left, except those to dropped workers."""
        return self._queue.idle()

    def close(self, workers: Collection[int]) -> None:
        """Free the requests to `workers`; others may never complete."""
        for (_, _, worker), request in self._requests.items():
            if worker in workers:
                request.Wait()
                request.Free()

"""How a server sums gradients and updates a key range."""

from collections.abc import Callable, Sequence

import numpy as np

from ringtmp.action_kinds import U
from ringtmp.emulate.nodes import Paced
from ringtmp.kernels.update import BLOCK as SERVE_BLOCK
from ringtmp.nn.layer import Array, aligned
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.threads import Pool
from ringtmp.ps.compression import Compressor
from ringtmp.ps.consistency import Consistency
from ringtmp.ps.serving.served_range import ServedRange
from ringtmp.trace.fault_probe import FaultProbe
from ringtmp.trace.recorder import Recorder, clock


class Updater:
    """Applies the gradients that have arrived for a range.

    Parameters
    ----------
    workers : sequence of int
        Ranks that work, in the order of the rows of `ServedRange.gradients`.
    rule : Consistency
        Decides how gradients are weighted: BSP takes a mean over the samples that arrived.
    optimizer : Optimizer
        Updates weights and slots.
    compressor : Compressor
        Tells whether answers are sent from the weights themselves.
    recorder : Recorder
        Records the updates.
    rate : callable
        Learning rate of a step.
    batch_size : int
        Samples of a step.
    threads : int
        Threads that share an update, at least 1.
    paced : Paced or None
        The emulated node, if any.
    nanoseconds : float
        Duration of an update of one parameter on the emulated node at its first speed.
    probe : FaultProbe or None
        Called at every update.
    """

    def __init__(
        self,
        workers: Sequence[int],
        rule: Consistency,
        optimizer: Optimizer,
        compressor: Compressor,
        recorder: Recorder,
        *,
        rate: Callable[[int], float],
        batch_size: int,
        threads: int = 1,
        paced: Paced | None = None,
        nanoseconds: float = 0.0,
        probe: FaultProbe | None = None,
    ) -> None:
        self.rule, self.optimizer, self.compressor, self.recorder = rule, optimizer, compressor, recorder
        self.rate, self.batch_size, self.probe = rate, batch_size, probe
        self.paced, self.nanoseconds = paced, nanoseconds
        self._row = {worker: row for row, worker in enumerate(workers)}
        self._rows: dict[tuple[int, ...], Array] = {}  # rows of some workers, as the kernels take them
        self._pool = Pool(threads)
        self._scratch = [aligned(SERVE_BLOCK, compressor.dtype) for _ in range(threads)]

    def update(self, served: ServedRange) -> None:
        """Update the range `served` by the sum of its pending gradients, of which at least one must exist."""
        begin = clock()
        order = tuple(sorted(served.pending))
        counted = sum(samples for _, samples in served.pending.values())
        step = max(step for step, _ in served.pending.values())
        served.pending.clear()
        # A step of BSP is a mean over its samples; otherwise every sample counts the same, whenever it was seen.
        scale = self.batch_size / counted if self.rule.bound == 0 and counted != self.batch_size else 1.0

        # Compressed answers are sent from buffers of their own.
        if not self.compressor.compresses_weights:
            served.leave_busy_buffer()

        # Each thread updates a part of the range.
        rows = self._rows.get(order)
        if rows is None:
            rows = self._rows[order] = np.array([self._row[worker] for worker in order], np.int64)
        rate, number, size, threads = self.rate(step), served.version + 1, served.keys.size, len(self._scratch)

        def run(thread: int) -> None:
            self.optimizer.serve(
                served.weights,
                served.gradients,
                rows,
                scale,
                self._scratch[thread],
                served.slots,
                rate,
                number,
                size * thread // threads,
                size * (thread + 1) // threads,
            )

        self._pool.each(run, range(threads))
        if self.probe:
            self.probe.at("U", step)  # some other ranges of the step may be updated, and some not
        served.version = number

        # An emulated node makes the update last its time.
        if self.paced:
            self.paced.stepped(step)
            self.paced.until(begin, size * self.nanoseconds * self.paced.factor(U, number))
        self.recorder.record("U", begin, clock(), step, -1, -1, 0, served.keys.number, number)

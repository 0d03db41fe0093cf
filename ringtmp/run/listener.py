"""Reports on the run as a whole, which rank 0 passes on to progress report, history and checkpoints."""

from collections.abc import Callable

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.run.output.reporter import Reporter


class RunListener:
    """Called on rank 0 when all ranks have finished a step, an evaluation, or the parts of a checkpoint.

    Parameters
    ----------
    reporter : Reporter
        Prints the progress and writes the history.
    checkpoints : CheckpointManager
        Commits checkpoints, and knows when one is due.
    rate : callable
        Learning rate of a step.
    spread : callable or None
        Squared error of guessing the mean of the test targets, summed over the test samples; 0 for classes. None: R2
        does not follow from the loss.
    """

    def __init__(
        self,
        reporter: Reporter,
        checkpoints: CheckpointManager,
        rate: Callable[[int], float],
        spread: Callable[[], float] | None,
    ) -> None:
        self.reporter, self.checkpoints, self.rate, self.spread = reporter, checkpoints, rate, spread

    def step_done(self, step: int, loss: float, correct: float, waited: float, elapsed: float) -> None:
        """Report a step that every rank has made.

        Parameters
        ----------
        step : int
            Number of the step, from 0.
        loss, correct : float
            Sums over the samples of the batch: loss, and correct predictions (NaN for values).
        waited, elapsed : float
            Nanoseconds that the ranks which train waited in this step, and that passed on them.
        """
        self.reporter.trained(step, loss, correct, waited, elapsed, self.rate(step))

    def test_done(self, step: int, loss: float, correct: float) -> None:
        """Report the evaluation after `step` updates; `loss` and `correct` as in `step_done`."""
        self.reporter.tested(step, loss, correct, self.spread() if self.spread else 0.0)

    def parts_done(self, step: int, whole: bool, cost: float) -> None:
        """Report that every rank has finished its part of a checkpoint.

        Parameters
        ----------
        step : int
            Step of the checkpoint.
        whole : bool
            Whether all parts were written.
        cost : float
            Seconds by which it held up the rank that it held up longest.
        """
        self.checkpoints.settle(step, whole, cost)

    def wants_checkpoint(self, step: int) -> bool:
        """Whether to order a checkpoint after `step` updates from all ranks; asked once after each step."""
        return self.checkpoints.wanted(step)

    def say(self, text: str) -> None:
        """Print the line `text`."""
        self.reporter.say(text)

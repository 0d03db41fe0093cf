"""What rank 0 learns about the run as a whole, and passes on to progress report, history and checkpoints."""

from collections.abc import Callable

from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.run.progress import Reporter


class RunListener:
    """Told on rank 0 what all ranks have done together: a step, an evaluation, the parts of a checkpoint.

    Parameters
    ----------
    reporter : Reporter
    checkpoints : CheckpointManager
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

    def step_done(self, step: int, loss: float, correct: float, idle: float) -> None:
        """Every rank has made step `step`.

        Parameters
        ----------
        step : int
            From 0.
        loss, correct : float
            Sums over the samples of the batch: loss, and correct predictions (0 for values).
        idle : float
            Share of all ranks' time that was waited so far, in 0..1.
        """
        self.reporter.trained(step, loss, correct, idle, self.rate(step))

    def test_done(self, step: int, loss: float, correct: float) -> None:
        """The evaluation after `step` updates is complete; `loss` and `correct` are sums over the test samples."""
        self.reporter.tested(step, loss, correct, self.spread() if self.spread else 0.0)

    def parts_done(self, step: int, whole: bool, cost: float) -> None:
        """Every rank has finished its part of the checkpoint of `step`.

        `whole`: whether all parts were written; `cost`: seconds by which it held up the rank that it held up longest.
        """
        self.checkpoints.settle(step, whole, cost)

    def wants_checkpoint(self, step: int) -> bool:
        """Whether to order a checkpoint after `step` updates from all ranks; asked once after each step."""
        return self.checkpoints.wanted(step)

    def say(self, text: str) -> None:
        """Print a line."""
        self.reporter.say(text)

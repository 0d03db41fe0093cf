"""Rank 0's reporter: takes the results of steps and evaluations, prints the progress, and writes the history."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringtmp.run.history import History
from ringtmp.run.job import Job
from ringtmp.run.output.lines import Line, Span
from ringtmp.run.output.terminal import Terminal

_NAN = float("nan")


class Reporter:
    """Prints the progress of a run on rank 0, and writes its history.

    A line is printed for each epoch and each evaluation, and in a log at least every `EVERY` seconds. Where there are
    more than `MANY` of them, lines follow each other after `SPACING` seconds at the earliest. The last one is always
    printed.

    Parameters
    ----------
    total, start : int
        Steps of the run, and steps made before this launch.
    per_epoch : int
        Steps of an epoch.
    batch_size, test_samples : int
        Samples of a step, and of an evaluation.
    test_every : int
        Steps between two evaluations, at least 1; there is one after the last step, too.
    scored : int
        Predictions per sample: reported sums are over all of them.
    classes : bool
        Whether `score` is an accuracy; otherwise it is R2, known for evaluations only.
    show : bool
        Whether to print.
    history : Path or None
        CSV file to append to.
    on_first_step : callable
        Called once, when every rank has made the first step.
    """

    EVERY = 10.0  # most seconds between two lines in a log
    MANY = 60  # lines of a launch that are printed without a limit
    SPACING = 1.0  # least seconds between two lines of a launch that has more
    _REDRAW = 0.1  # least seconds between two states of the bar
    _RECENT = 2.0  # seconds over which the bar's rate is measured

    def __init__(
        self,
        *,
        total: int,
        start: int,
        per_epoch: int,
        batch_size: int,
        test_samples: int,
        test_every: int,
        classes: bool,
        show: bool,
        scored: int = 1,
        history: Path | None,
        on_first_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.total, self.start, self.per_epoch, self.batch_size = total, start, per_epoch, batch_size
        self.test_samples, self.test_every, self.classes, self.scored = test_samples, test_every, classes, scored
        self.rows: list[dict[str, Any]] = []
        self.test_score = _NAN
        self.began = time.perf_counter()
        self._on_first_step = on_first_step
        self.terminal = Terminal(show)
        self.say = self.terminal.say
        self._history = History(history, start, self.say) if history else None

        # Sums since: the last step, test, epoch and line, and since some seconds ago.
        self._step, self._test, self._epoch, self._line, self._recent = (Span() for _ in range(5))
        self._rate = _NAN  # samples per second that the bar shows
        self._awaiting: dict[int, Line] = {}  # lines that wait for the evaluation after that step
        self._newest: Line | None = None  # newest line, printed or not
        self._withheld: Line | None = None  # newest line that came too early after another
        self._printed = self._drawn = 0.0  # seconds of the launch
        self._said = start  # newest step of which a line tells
        lines = (total - start) * (1 / per_epoch + (test_every % per_epoch > 0) / test_every)
        self._spacing = self.SPACING if lines > self.MANY else 0.0
        self.terminal.start(start, total)

    @classmethod
    def of(cls, job: Job, show: bool, on_first_step: Callable[[], None]) -> "Reporter":
        """Make the reporter of `job`; see the class for `show` and `on_first_step`."""
        return cls(
            total=job.total,
            start=job.start,
            per_epoch=job.steps_per_epoch,
            batch_size=job.config.batch_size,
            test_samples=job.info.n_test,
            test_every=job.timetable().every,
            scored=job.model.scored,
            classes=job.info.target == "classes",
            show=show,
            history=job.folder.history if job.folder else None,
            on_first_step=on_first_step,
        )

    def begin(self) -> None:
        """Begin to measure the time: the first step begins now."""
        self.began = time.perf_counter()

    def trained(self, step: int, loss: float, correct: float, waited: float, elapsed: float, lr: float) -> None:
        """Report a step that every rank has made.

        Parameters
        ----------
        step : int
            Number of the step, from 0.
        loss, correct : float
            Sums over the samples of the batch.
        waited, elapsed : float
            Nanoseconds that all ranks waited in this step, and that passed on them.
        lr : float
            Learning rate.
        """
        on_first_step, self._on_first_step = self._on_first_step, lambda: None
        on_first_step()
        now, done = time.perf_counter() - self.began, step + 1
        for span in (self._step, self._test, self._epoch, self._line, self._recent):
            span.add(loss, correct, waited, elapsed)

        # Write the row.
        predictions = self.batch_size * self.scored
        self._add("train", done, loss / predictions, correct / predictions, lr, self._step, now)
        self._step = Span(now)

        # Make a line of an epoch that is complete, or to which an evaluation belongs, which it waits for.
        tests = self.test_samples > 0 and (done % self.test_every == 0 or done == self.total)
        late = not self.terminal.live and now - self._printed > self.EVERY and not self._awaiting
        if done % self.per_epoch == 0 or tests or late:
            whole = done % self.per_epoch == 0
            line = self._newest = self._of(self._epoch if whole else self._line, done, now)
            self._line = Span(now)
            if whole:
                self._epoch = Span(now)
            if tests:
                self._awaiting[done] = line
            else:
                self._offer(line, now)
        self._draw(done, now)

    def tested(self, step: int, loss: float, correct: float, spread: float) -> None:
        """Report an evaluation that is complete.

        Parameters
        ----------
        step : int
            Updates made before it.
        loss, correct : float
            Sums over the test samples.
        spread : float
            For values: squared error of guessing the mean of the targets, summed over the test samples.
        """
        now, predictions = time.perf_counter() - self.began, self.test_samples * self.scored
        self.test_score = correct / predictions if self.classes else 1 - loss / spread if spread else _NAN
        self._add("test", step, loss / predictions, self.test_score, _NAN, self._test, now)
        self._test = Span(now)
        line = self._awaiting.pop(step, None)
        if line is None:  # an evaluation that was lost, and is made again first
            line = Line(step, self.total, self.per_epoch, _NAN, _NAN, _NAN, self.classes, _NAN, _NAN)
        self._offer(replace(line, test=self.test_score), now)

    def _add(self, kind: str, step: int, loss: float, score: float, lr: float, span: Span, now: float) -> None:
        """Append a row to the history; `span` covers the steps that its rate and its idle share belong to."""
        row: dict[str, Any] = {
            "kind": kind,
            "step": step,
            "epoch": step / self.per_epoch,
            "loss": loss,
            "score": score,
            "lr": lr,
            "idle": span.idle,
            "samples_per_s": span.rate(now) * self.batch_size,
            "seconds": now,
        }
        self.rows.append(row)
        if self._history:
            self._history.add(row)

    # ---- lines and the bar --------------------------------------------------------------------------------------

    def _of(self, span: Span, step: int, now: float) -> Line:
        """The line of the steps of `span`, up to `step`."""
        predictions = max(span.steps, 1) * self.batch_size * self.scored
        rate = span.rate(now)
        return Line(
            step,
            self.total,
            self.per_epoch,
            span.loss / predictions if span.steps else _NAN,
            span.correct / predictions if span.steps else _NAN,
            _NAN,
            self.classes,
            rate * self.batch_size,
            (self.total - step) / rate if rate > 0 else _NAN,
        )

    def _offer(self, line: Line, now: float) -> None:
        """Print a line unless it comes too early."""
        if now - self._printed >= self._spacing or line.step == self.total:
            self._print(line, now)
        else:
            self._withheld = line

    def _print(self, line: Line, now: float) -> None:
        self._printed, self._said, self._withheld = now, line.step, None
        self.say(line.text(self.terminal.columns))

    def _draw(self, step: int, now: float) -> None:
        """Show the present state on the bar, now and then."""
        if not self.terminal.live or now - self._drawn < self._REDRAW:
            return
        self._drawn = now
        if self._rate != self._rate or now - self._recent.began > self._RECENT:
            self._rate, self._recent = self._recent.rate(now) * self.batch_size, Span(now)
        self.terminal.update(step, self._state(step, now))

    def _state(self, step: int, now: float) -> str:
        """The bar's text: means of the present epoch, or the last one, and test score and rate of the last seconds."""
        line = self._of(self._epoch, step, now) if self._epoch.steps or not self._newest else self._newest
        left = (self.total - step) * self.batch_size / self._rate if self._rate > 0 else _NAN
        line = replace(line, step=step, test=self.test_score, rate=self._rate, left=left)
        return line.text(self.terminal.room, head=False)

    def close(self) -> None:
        """Print what has not been said yet, end the bar, and close the history file."""
        step, now = max((row["step"] for row in self.rows), default=self.start), time.perf_counter() - self.began
        for line in self._awaiting.values():  # an evaluation that was not made any more
            self._print(line, now)
        self._awaiting.clear()
        if self._withheld:
            self._print(self._withheld, now)
        if step > self._said and self._line.steps:
            self._print(self._of(self._line, step, now), now)
        if self.terminal.live:
            self.terminal.update(step, self._state(step, now))
        self.terminal.stop()
        if self._history:
            self._history.close()
            self._history = None

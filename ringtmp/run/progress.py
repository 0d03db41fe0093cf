"""Rank 0's output: first lines, progress (a live bar on a terminal, plain lines in a log), the end of the run."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from ringtmp.run.history import History
from ringtmp.run.job import Job
from ringtmp.run.result import Result

_LAUNCHERS = ("hydra_pmi_proxy", "mpiexec", "mpirun", "mpiexec.hydra", "prterun", "prted", "orterun", "orted")
_LATE = 0.02  # share by which emulated actions may take too long before a warning says so


def launcher_terminal() -> int | None:
    """Find the width of the terminal to which mpirun forwards this process's output; None: it goes elsewhere.

    Under mpirun a rank's own output is a pipe (MPICH) or always a terminal (Open MPI). The launcher is an ancestor on
    the same host: if *its* output is a terminal, what a rank writes appears there, carriage returns and all.
    """
    pid, launched = os.getppid(), False
    try:
        while Path(f"/proc/{pid}/comm").read_text().strip() in _LAUNCHERS:
            launched = True
            target = os.readlink(f"/proc/{pid}/fd/1")
            if target.startswith(("/dev/pts/", "/dev/tty")):
                with open(target) as terminal:
                    return os.get_terminal_size(terminal.fileno()).columns
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        pass
    own = not launched and sys.stdout.isatty()
    return os.get_terminal_size(sys.stdout.fileno()).columns if own else None


class _Facts(ProgressColumn):
    """Column of the bar with loss, accuracy, rate and idle share, as far as they are known."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("facts", ""), style="cyan", no_wrap=True, overflow="ellipsis")


class Reporter:
    """Prints the progress of a run on rank 0, and writes its history.

    Parameters
    ----------
    total, start : int
        Steps of the run, and steps made before this launch.
    per_epoch : int
        Steps of an epoch.
    batch_size, test_samples : int
        Samples of a step, and of an evaluation.
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

    EVERY = 10.0  # seconds between plain lines where evaluations are further apart

    def __init__(
        self,
        *,
        total: int,
        start: int,
        per_epoch: int,
        batch_size: int,
        test_samples: int,
        classes: bool,
        show: bool,
        scored: int = 1,
        history: Path | None,
        on_first_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.total, self.start, self.per_epoch, self.batch_size = total, start, per_epoch, batch_size
        self.test_samples, self.classes, self.scored = test_samples, classes, scored
        self.rows: list[dict[str, Any]] = []
        self.test_score = self.train_score = self.loss = float("nan")
        self.idle = 0.0
        self.began = self._printed = time.perf_counter()
        self._show, self._on_first_step = show, on_first_step
        self._bar: Progress | None = None
        self._history = History(history, start, self.say) if history else None
        columns = launcher_terminal() if show else None
        if columns:
            console = Console(force_terminal=True, width=columns)
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(min(40, max(5, columns - 90))),
                _Facts(Column(no_wrap=True)),
                TimeRemainingColumn(),
                console=console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task("training", total=total, completed=start)
            self._bar.start()

    @classmethod
    def of(cls, job: Job, show: bool, on_first_step: Callable[[], None]) -> "Reporter":
        """Make the reporter of `job`; see the class for `show` and `on_first_step`."""
        return cls(
            total=job.total,
            start=job.start,
            per_epoch=job.steps_per_epoch,
            batch_size=job.config.batch_size,
            test_samples=job.info.n_test,
            scored=job.model.scored,
            classes=job.info.target == "classes",
            show=show,
            history=job.folder.history if job.folder else None,
            on_first_step=on_first_step,
        )

    def announce(self, job: Job, ranks: int, division: str, notes: Sequence[str]) -> None:
        """Print the first lines: data, model and division of the work.

        Parameters
        ----------
        job : Job
            The job.
        ranks : int
            Ranks of this launch.
        division : str
            How the trainer divides the work.
        notes : sequence of str
            Further lines.
        """
        for warning in job.notes:
            self.say(f"warning: {warning}")
        rings = f" in each of {job.config.rings} rings" if job.across else ""
        self.say(
            f"{job.info.name}: {job.info.n_train:,} training and {job.info.n_test:,} test samples; "
            f"{len(job.model.layers)} layers, {job.model.parameters:,} parameters over {ranks} "
            f"rank{'s' * (ranks > 1)}{rings}; {division}"
        )
        for note in notes:
            self.say(note)
        if job.folder:
            source = " from the memory of the nodes" if job.recalled else ""
            resumed = f", resumed at step {job.start}{source}" if job.marker else ""
            self.say(f"run folder: {job.folder.path}{resumed}")

    def begin(self) -> None:
        """Begin to measure the time: the first step begins now."""
        self.began = self._printed = time.perf_counter()

    def trained(self, step: int, loss: float, correct: float, idle: float, lr: float) -> None:
        """Report a step that every rank has made.

        Parameters
        ----------
        step : int
            Number of the step, from 0.
        loss, correct : float
            Sums over the samples of the batch.
        idle : float
            Share of all ranks' time that was waited, in 0..1.
        lr : float
            Learning rate.
        """
        on_first_step, self._on_first_step = self._on_first_step, lambda: None
        on_first_step()
        predictions = self.batch_size * self.scored
        self.loss, self.idle = loss / predictions, idle
        self.train_score = correct / predictions
        self._add("train", step + 1, self.loss, self.train_score, lr)
        now = time.perf_counter()
        if self._bar and now - self._printed > 0.1:
            self._bar.update(self._task, completed=step + 1, facts=self._facts(), refresh=True)
            self._printed = now
        elif not self._bar and now - self._printed > self.EVERY:
            self._line(step + 1)

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
        predictions = self.test_samples * self.scored
        self.test_score = correct / predictions if self.classes else 1 - loss / spread if spread else float("nan")
        self._add("test", step, loss / predictions, self.test_score, float("nan"))
        if not self._bar:
            self._line(step)

    def _rate(self) -> float:
        steps = self.rows[-1]["step"] - self.start if self.rows else 0
        return steps * self.batch_size / max(time.perf_counter() - self.began, 1e-9)

    def _add(self, kind: str, step: int, loss: float, score: float, lr: float) -> None:
        row: dict[str, Any] = {
            "kind": kind,
            "step": step,
            "epoch": step / self.per_epoch,
            "loss": loss,
            "score": score,
            "lr": lr,
            "idle": self.idle,
            "samples_per_s": 0.0,
            "seconds": time.perf_counter() - self.began,
        }
        self.rows.append(row)
        row["samples_per_s"] = self._rate()
        if self._history:
            self._history.add(row)

    def _facts(self) -> str:
        facts = [f"loss {self.loss:.4f}"]
        if self.classes:
            facts.append(f"train {self.train_score:.1%}")
        if self.test_score == self.test_score:
            facts.append(f"test {self.test_score:.1%}" if self.classes else f"test R2 {self.test_score:.3f}")
        return "  ".join([*facts, f"{self._rate():,.0f} samples/s", f"idle {self.idle:.0%}"])

    def _line(self, step: int) -> None:
        self._printed = time.perf_counter()
        if self._show:
            left = (self.total - step) * (self._printed - self.began) / max(step - self.start, 1)
            minutes, seconds = divmod(round(left), 60)
            self.say(
                f"epoch {step / self.per_epoch:6.1f}  step {step:>{len(str(self.total))}}/{self.total}  "
                f"{self._facts()}  left {minutes}:{seconds:02d}"
            )

    def say(self, text: str) -> None:
        """Print the line `text`, above the bar if it is shown."""
        if self._bar:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        elif self._show:
            with suppress(OSError):  # standard output may go to a disk that is full
                print(text, flush=True)

    def close(self) -> None:
        """End the bar and close the history file."""
        if self._bar:
            done = self.rows[-1]["step"] if self.rows else self.start
            self._bar.update(self._task, completed=done, facts=self._facts(), refresh=True)
            self._bar.stop()
        if self._history:
            self._history.close()

    def conclude(self, result: Result, heading: str) -> None:
        """Print the end of the run: the table of ranks, the digest of the weights, and how to continue.

        Parameters
        ----------
        result : Result
            With the rows of all ranks.
        heading : str
            Heading of the table's second column.
        """
        if not self._show:
            return

        # Sum up in the table's title: servers count as neither idle nor working.
        ranks = result.ranks
        working = [row["parts"] for row in ranks if row.get("role") != "server"]
        idle = sum(parts["wait"] for parts in working) / max(1, sum(sum(parts.values()) for parts in working))
        seconds = sum(sum(row["parts"].values()) for row in ranks) / len(ranks) / 1e9
        score = f"accuracy {self.test_score:.2%}" if self.classes else f"R2 {self.test_score:.4f}"
        title = f"{result.state} at step {result.step} after {seconds:.1f} s: test {score}, idle {idle:.1%}"
        summary(ranks, heading, title)

        # Say what to know about the result.
        late = max(row["late"] for row in ranks)
        if late > _LATE:
            self.say(
                f"warning: actions took up to {late:.0%} longer than --node-speed says: this machine is too slow for it"
            )
        self.say(f"weights sha256 {result.sha256}")
        if result.state == "stopped" and result.saved and result.folder:
            self.say(f"continue with: --resume {result.folder}")


def summary(rows: list[dict[str, Any]], heading: str, title: str) -> None:
    """Print the table of ranks.

    Parameters
    ----------
    rows : list of dict
        One for each rank: `rank`, `shown` (its part of the work), `parameters`, `parts` (nanoseconds by part of the
        wall time) and `memory` (bytes).
    heading : str
        Heading of the column that shows `shown`.
    title : str
        Text above the table.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("rank", heading, "parameters", "compute", "transfer", "wait", "checkpoint", "other", "peak memory"):
        table.add_column(name, justify="right")
    for row in rows:
        wall = max(sum(row["parts"].values()), 1)
        shares = [f"{part / wall:.1%}" for part in row["parts"].values()]
        table.add_row(
            str(row["rank"]), row["shown"], f"{row['parameters']:,}", *shares, f"{row['memory'] / 2**20:,.0f} MiB"
        )
    columns = launcher_terminal()
    with suppress(OSError):  # standard output may go to a disk that is full
        Console(width=columns or 100, force_terminal=columns is not None).print(table)

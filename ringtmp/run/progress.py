"""What rank 0 shows while training: a live bar on a terminal, plain lines in a batch log; and the table at the end."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from ringtmp.run.history import History

_LAUNCHERS = ("hydra_pmi_proxy", "mpiexec", "mpirun", "mpiexec.hydra", "prterun", "prted", "orterun", "orted")


def launcher_terminal() -> int | None:
    """Columns of the terminal to which mpirun forwards this process's output; None if there is none.

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
    """Loss, accuracy, rate and idle share, as far as they are known."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("facts", ""), style="cyan", no_wrap=True, overflow="ellipsis")


class Reporter:
    """Progress of a run on rank 0, and its history.

    Parameters
    ----------
    total, start : int
        Steps of the run, and steps made before this launch.
    per_epoch : int
        Steps of an epoch.
    batch_size, test_samples : int
        Samples of a step, and of a test.
    scored : int
        Predictions per sample: the sums that the engine reports are over all of them.
    classes : bool
        Whether `score` is an accuracy; otherwise it is R2, known for tests only.
    show : bool
        Whether to print.
    history : Path or None
        CSV file to append to.
    """

    first: Callable[[], None] = staticmethod(lambda: None)  # called once, when the first step is done everywhere
    EVERY = 10.0  # seconds between plain lines where tests are further apart

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
    ) -> None:
        self.total, self.start, self.per_epoch, self.batch_size = total, start, per_epoch, batch_size
        self.test_samples, self.classes, self.scored = test_samples, classes, scored
        self.rows: list[dict[str, Any]] = []
        self.test_score = self.train_score = self.loss = float("nan")
        self.idle = 0.0
        self.began = self._printed = time.perf_counter()
        self._show = show
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

    def begin(self) -> None:
        """The first step begins now."""
        self.began = self._printed = time.perf_counter()

    def trained(self, step: int, loss: float, correct: float, idle: float, lr: float) -> None:
        """A step is done everywhere; `loss` and `correct` are sums over its samples, `idle` a share of 1."""
        first, self.first = self.first, lambda: None
        first()
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
        """An evaluation is complete; `spread`: for values, what a constant guess of the mean would have lost."""
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
        """Print a line above the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        elif self._show:
            with suppress(OSError):  # standard output may go to a disk that is full
                print(text, flush=True)

    def close(self) -> None:
        """End the bar and the history file."""
        if self._bar:
            done = self.rows[-1]["step"] if self.rows else self.start
            self._bar.update(self._task, completed=done, facts=self._facts(), refresh=True)
            self._bar.stop()
        if self._history:
            self._history.close()


def summary(rows: list[dict[str, Any]], heading: str, title: str) -> None:
    """Print the table of ranks: what each holds or does, parameters, shares of the wall time, peak memory."""
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

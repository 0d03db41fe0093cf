"""Where rank 0 prints: above a live bar on a terminal, or line by line into a log. Printing raises no error."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

_LAUNCHERS = ("hydra_pmi_proxy", "mpiexec", "mpirun", "mpiexec.hydra", "prterun", "prted", "orterun", "orted")
_LOG_COLUMNS = 120  # width of tables in a log


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
    """Column of the bar with loss, scores, rate and time left, as far as they are known."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("facts", ""), style="cyan", no_wrap=True, overflow="ellipsis")


class Terminal:
    """Prints lines and tables, and keeps a live bar below them if there is a terminal.

    Parameters
    ----------
    show : bool
        Whether to print anything.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self.columns = launcher_terminal() if show else None  # None: a log
        self._bar: Progress | None = None

    @property
    def width(self) -> int:
        """Characters of a line; in a log those that tables take."""
        return self.columns or _LOG_COLUMNS

    @property
    def room(self) -> int:
        """Characters of the bar's line beside its step and the bar itself."""
        return self.width - self._bar_width - 2 * len(str(self._total)) - len("step /   ")

    def start(self, done: int, total: int) -> None:
        """Show the bar, if there is a terminal, with `done` of `total` steps."""
        self._total = total
        self._bar_width = min(40, max(5, self.width - 90))
        if self.columns:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(self._bar_width),
                _Facts(Column(no_wrap=True)),
                console=Console(force_terminal=True, width=self.columns),
                auto_refresh=False,
            )
            self._task = self._bar.add_task("training", total=total, completed=done)
            with suppress(OSError):
                self._bar.start()

    @property
    def live(self) -> bool:
        """Whether the bar is shown."""
        return self._bar is not None

    def update(self, done: int, facts: str) -> None:
        """Draw the bar again, with `done` steps and the text `facts`."""
        if self._bar:
            with suppress(OSError):  # the terminal may be gone
                self._bar.update(self._task, completed=done, facts=facts, refresh=True)

    def stop(self) -> None:
        """End the bar and leave its last state on the terminal."""
        if self._bar:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Print the line `text`, above the bar if it is shown."""
        with suppress(OSError):  # standard output may go to a disk that is full
            if self._bar:
                self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
            elif self.show:
                print(text, flush=True)

    def draw(self, table: RenderableType) -> None:
        """Print a table, at most as wide as the terminal."""
        if self.show:
            with suppress(OSError):
                Console(width=self.width, force_terminal=self.columns is not None).print(table)

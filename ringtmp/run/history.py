"""history.csv: a row for each step and evaluation, written at once, and shortened to the step of a resume.

    kind           train: a step; test: an evaluation
    step           updates made, this step's own included
    epoch          the same in passes over the training samples
    loss           mean over the samples of the batch, or over the test samples
    score          accuracy; for values R2 of an evaluation, nan of a step
    lr             learning rate of the step; nan of an evaluation
    idle           share of its time, in 0..1, that a rank waited: mean over the ranks that train
    samples_per_s  training samples per second
    seconds        since training began in this launch

`idle` and `samples_per_s` are those of the row's own steps: of a step the time since the row of the step before, of an
evaluation all steps since the evaluation before. Evaluations and checkpoints in between are part of that time. Both
are nan where no time can be measured between two rows. Over several launches `seconds` begins again at 0.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringtmp.storage.files import write_durably

COLUMNS = ("kind", "step", "epoch", "loss", "score", "lr", "idle", "samples_per_s", "seconds")


def _rows(path: Path) -> list[list[str]]:
    """The complete rows of a file; none if it cannot be read."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    except OSError:
        return []
    return [
        row for row in rows if len(row) == len(COLUMNS) and row[1].isdigit()
    ]  # the last row of a killed job may be cut off


def tested(path: Path, step: int) -> bool:
    """Whether the evaluation after `step` updates is in the file `path`."""
    return any(row[0] == "test" and int(row[1]) == step for row in _rows(path))


class History:
    """Writes the rows of one launch. If the file cannot be written, one line says so and the file is left alone.

    Parameters
    ----------
    path : Path
        Path of the file.
    start : int
        Step at which this launch begins: rows beyond it belong to steps that are repeated, and are removed.
    say : callable
        Prints that line.
    """

    def __init__(self, path: Path, start: int, say: Callable[[str], None]) -> None:
        self.path, self.say, self.file = path, say, None
        try:
            kept = [",".join(row) for row in _rows(path) if int(row[1]) <= start]
            write_durably(path, "\n".join([",".join(COLUMNS), *kept]) + "\n")
            # Line by line: the rows of a killed job can be read.
            self.file = path.open("a", buffering=1)
        except OSError as error:
            say(f"warning: could not open {path}: {error}; losses are printed only")

    def add(self, row: dict[str, Any]) -> None:
        """Append the row `row`: values by `COLUMNS`, in their order."""
        self._keep(",".join(value if isinstance(value, str) else f"{value:.9g}" for value in row.values()) + "\n")

    def _keep(self, text: str) -> None:
        try:
            if self.file:
                self.file.write(text)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.say(f"warning: {self.path} is not written any further: {error}")
        self.file = None

    def close(self) -> None:
        """Close the file."""
        try:
            if self.file:
                self.file.close()
        except OSError as error:
            self._give_up(error)

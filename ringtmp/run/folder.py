"""The run folder: made once, never overwritten, and the marker that tells how the run ended.

runs/NAME/
    config.toml     what the run was told, whole; `--config` reads it
    data.json       the data set as it was used: shapes, split, normalisation
    status.json     running, finished, stopped or failed, and at which step
    history.csv     loss and accuracy of each step and test, readable while the run goes on
    checkpoints/    the last two sets
    traces/000/     one HDF5 file per rank; 001 and so on after each resume
    .lock           held by the job that writes here
"""

import fcntl
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tomli_w

from ringtmp.errors import UserError
from ringtmp.run.config import RunConfig, read_toml
from ringtmp.run.files import write_durably


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoint sets."""
        return self.path / "checkpoints"

    @property
    def history(self) -> Path:
        """The CSV file of losses."""
        return self.path / "history.csv"

    def trace(self, launch: int, rank: int) -> Path:
        """Trace file of a rank in the run's n-th launch."""
        return self.path / "traces" / f"{launch:03d}" / f"rank-{rank:04d}.h5"

    def config(self) -> dict[str, Any]:
        """The stored configuration."""
        return read_toml(str(self.path / "config.toml"), "resume")

    def status(self) -> dict[str, Any]:
        """The stored marker; empty if there is none."""
        try:
            return json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def set_status(self, state: str, **facts: Any) -> None:
        """Write the marker: `running`, `finished`, `stopped` or `failed`."""
        facts = {"state": state, **facts, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        write_durably(self.path / "status.json", json.dumps(facts, indent=1))

    def next_launch(self) -> int:
        """Number of the launch that is about to begin; makes its trace folder."""
        traces = self.path / "traces"
        launch = max((int(path.name) + 1 for path in traces.glob("[0-9]*") if path.name.isdigit()), default=0)
        (traces / f"{launch:03d}").mkdir(parents=True)
        return launch


def make_run_folder(config: RunConfig, data: dict[str, Any]) -> RunFolder:
    """Make a new run folder and write `config` and `data` into it.

    Raises
    ------
    UserError
        There is one of that name already, or it cannot be made.
    """
    name = config.name or f"{Path(config.data.split(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(config.out) / name
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if config.name or number > 1000 or not path.is_dir():
                raise UserError(
                    f"name: {path} exists already and is not overwritten; choose another --name, or go on with "
                    f"--resume {path}"
                ) from None
            number += 1
            path = Path(config.out) / f"{name}-{number}"
        except OSError as error:
            raise UserError(f"out: cannot make the run folder {path}: {error.strerror}") from None
    folder = RunFolder(path)
    try:
        store_config(folder, config)
        write_durably(path / "data.json", json.dumps(data, indent=1))
        folder.set_status("running", step=0)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(f"out: cannot write to {path}: {error.strerror}") from None
    return folder


def lock(folder: RunFolder) -> IO[str]:
    """Keep other jobs from writing to a run folder for as long as what is returned stays open.

    Raises
    ------
    UserError
        Another job holds it.
    OSError
        It cannot be written to.
    """
    file = (folder.path / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        holder = folder.status()
        where = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        raise UserError(f"resume: {folder.path} is being written by another job ({where})") from None
    except OSError:
        pass  # a file system without locks
    return file


def store_config(folder: RunFolder, config: RunConfig) -> None:
    """Write config.toml, a file that `--config` takes."""
    values = {key: value for key, value in config.stored().items() if key not in ("name", "resume", "out")}
    write_durably(folder.path / "config.toml", tomli_w.dumps(values))


def open_run_folder(text: str, out: str) -> RunFolder:
    """The run folder that `--resume` names: a path, or a name under `out`. Raises `UserError` if it is none."""
    for path in (Path(text), Path(out) / text):
        if (path / "config.toml").is_file():
            return RunFolder(path)
    raise UserError(f"resume: {text} is not a run folder (no config.toml in it, nor in {Path(out) / text})")

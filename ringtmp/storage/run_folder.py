"""The run folder: created once, never overwritten, with a status that says how the run ended.

runs/NAME/
    format          name and version of this layout
    config.toml     all settings of the run; `--config` reads it
    id              unique identity of the run, also in node memory
    data.json       facts on the data set: shapes, split, normalisation
    status.json     running, finished, stopped or failed, and at which step
    history.csv     loss, score and rate of each step and test (`ringtmp.run.history`), readable during the run
    checkpoints/    the last two checkpoints
    traces/000/     one HDF5 file and one live status per rank, and the host and process of each rank; 001 and so on
                    after each resume
    .lock           held by the job that writes to this folder
"""

import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tomli_w

from ringtmp.config.schema import RunConfig
from ringtmp.config.toml import read_toml
from ringtmp.errors import UserError
from ringtmp.storage.files import write_durably
from ringtmp.storage.versions import check_format

FORMAT = "ringtmp-run-1"  # first line of the file `format`


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def history(self) -> Path:
        """The CSV file of losses."""
        return self.path / "history.csv"

    @property
    def report(self) -> Path:
        """The page of the run, which may not exist."""
        return self.path / "report.html"

    def trace(self, launch: int, rank: int) -> Path:
        """Trace file of `rank` in launch number `launch` of the run."""
        return self.path / "traces" / f"{launch:03d}" / f"rank-{rank:04d}.h5"

    def set_processes(self, launch: int, places: Sequence[tuple[str, int]]) -> None:
        """Write host and process number of each rank, `places`, in launch number `launch`."""
        write_durably(self.path / "traces" / f"{launch:03d}" / "processes.json", json.dumps(places))

    def check_format(self) -> None:
        """Raise `UserError` if the folder has another layout than that of this version of ringtmp."""
        path = self.path / "format"
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        check_format(path, FORMAT, found)

    def config(self) -> dict[str, Any]:
        """The stored configuration."""
        return read_toml(str(self.path / "config.toml"), "resume")

    def identity(self) -> str:
        """The unique identity of the run, created on first use. Raises `OSError`."""
        path = self.path / "id"
        with suppress(FileNotFoundError):
            return path.read_text().strip()
        write_durably(path, uuid.uuid4().hex)
        return path.read_text().strip()

    def data(self) -> dict[str, Any]:
        """Facts on the data set (`DataInfo.to_json`)."""
        return json.loads((self.path / "data.json").read_text())

    def status(self) -> dict[str, Any]:
        """The stored status; empty if there is none."""
        try:
            return json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def set_status(self, state: str, **facts: Any) -> None:
        """Write the status. `state` is running, finished, stopped or failed; `facts` are stored beside it."""
        facts = {"state": state, **facts, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        write_durably(self.path / "status.json", json.dumps(facts, indent=1))

    def next_launch(self) -> int:
        """Number of the launch that is about to begin; creates its trace folder."""
        traces = self.path / "traces"
        launch = max((int(path.name) + 1 for path in traces.glob("[0-9]*") if path.name.isdigit()), default=0)
        (traces / f"{launch:03d}").mkdir(parents=True)
        return launch


def _usual_name(data: str) -> str:
    return f"{Path(data.split(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def new_name(out: str, data: str) -> str:
    """A name for a run on the data `data` that no folder under `out` has yet."""
    name, number = _usual_name(data), 1
    while (Path(out) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"


def make_run_folder(config: RunConfig, data: dict[str, Any]) -> RunFolder:
    """Create a new run folder and write `config` and `data` into it.

    Raises
    ------
    UserError
        A folder of that name exists, or it cannot be created.
    """
    name = config.name or _usual_name(config.data)
    path = Path(config.out) / name
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if config.name or number > 1000 or not path.is_dir():
                raise UserError(
                    f"name: {path} exists already and is not overwritten; choose another --name, or continue it with "
                    f"--resume {path}"
                ) from None
            number += 1
            path = Path(config.out) / f"{name}-{number}"
        except OSError as error:
            raise UserError(f"out: cannot create the run folder {path}: {error.strerror}") from None
    folder = RunFolder(path)
    try:
        write_durably(path / "format", f"{FORMAT}\n")
        store_config(folder, config)
        write_durably(path / "data.json", json.dumps(data, indent=1))
        folder.identity()
        folder.set_status("running", step=0)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(f"out: cannot write to {path}: {error.strerror}") from None
    return folder


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(folder: RunFolder, patience: float = 0.0) -> IO[str]:
    """Lock a run folder against other jobs, for as long as the returned file stays open.

    Parameters
    ----------
    folder : RunFolder
        The folder.
    patience : float
        Seconds to wait for another job to end, for example one whose rank 0 lost its network and has not noticed yet.

    Raises
    ------
    UserError
        Another job holds the lock.
    OSError
        The folder cannot be written to.
    """
    file = (folder.path / ".lock").open("a")
    until = time.monotonic() + patience
    try:
        while not _locked(file):
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            file.close()
            holder = folder.status()
            where = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
            raise UserError(f"resume: {folder.path} is being written by another job ({where})")
    except OSError:
        pass  # a file system without locks
    return file


def store_config(folder: RunFolder, config: RunConfig) -> None:
    """Write the settings `config` to config.toml in `folder`, which `--config` reads."""
    values = {key: value for key, value in config.stored().items() if key not in ("name", "resume", "out")}
    write_durably(folder.path / "config.toml", tomli_w.dumps(values))


def open_run_folder(text: str, out: str) -> RunFolder:
    """The run folder that `--resume` names: `text` is a path, or a name under `out`.

    Raises `UserError` if it is no run folder, or one of another format version.
    """
    for path in (Path(text), Path(out) / text):
        if (path / "config.toml").is_file():
            folder = RunFolder(path)
            folder.check_format()
            return folder
    raise UserError(f"resume: {text} is not a run folder (no config.toml in it, nor in {Path(out) / text})")

"""Opens a run folder and gives data frames. Imports no trainer: it needs the files alone."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ringtmp.errors import UserError

PARTS = ("compute", "transfer", "wait", "checkpoint", "other")
_PART = {
    "F": "compute", "I": "compute", "W": "compute", "U": "compute", "E": "compute", "send": "transfer",
    "receive": "transfer", "wait": "wait", "checkpoint": "checkpoint",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One launch of a run (the newest, unless asked otherwise)."""

    path: Path
    launch: int

    @property
    def config(self) -> dict[str, Any]:
        """What the run was told."""
        return tomllib.loads((self.path / "config.toml").read_text())

    @property
    def status(self) -> dict[str, Any]:
        """How the run stands: `state` (running, finished, stopped, failed), `step` and more."""
        return json.loads((self.path / "status.json").read_text())

    def _files(self) -> list[Path]:
        files = sorted((self.path / "traces" / f"{self.launch:03d}").glob("rank-*.h5"))
        if not files:
            raise UserError(f"{self.path}: launch {self.launch} left no trace (was it run with --trace off?)")
        return files

    def ranks(self) -> pd.DataFrame:
        """One row a rank: the attributes of its trace (host, layers, begin and end in nanoseconds, clock offsets)."""
        rows = []
        for path in self._files():
            with h5py.File(path, "r", locking=False) as file:
                rows.append({key: _plain(value) for key, value in file.attrs.items()})
        return pd.DataFrame(rows).sort_values("rank", ignore_index=True)

    def events(self) -> pd.DataFrame:
        """Every event of every rank, on rank 0's clock.

        Returns
        -------
        DataFrame
            rank, kind (F, I, W, U, E, send, receive, wait, data, checkpoint, trace), start and end (int64 nanoseconds
            since the first rank began), step, micro_batch, stage, peer (-1: none), bytes.
        """
        frames = []
        for path in self._files():
            with h5py.File(path, "r", locking=False) as file:
                attributes = {key: _plain(value) for key, value in file.attrs.items()}
                columns = {name: np.asarray(column) for name, column in file["events"].items()}
            frame = pd.DataFrame(columns)
            for column in ("start", "end"):
                frame[column] = _align(frame[column].to_numpy(), attributes)
            frame["kind"] = np.asarray(attributes["kinds"], dtype=object)[frame["kind"]]
            frame.insert(0, "rank", attributes["rank"])
            frame.attrs["began"] = int(_align(np.array([attributes["began"]]), attributes)[0])
            frames.append(frame)
        zero = min(frame.attrs["began"] for frame in frames)
        for frame in frames:
            frame["start"] -= zero
            frame["end"] -= zero
        order = ["rank", "kind", "start", "end", "step", "micro_batch", "stage", "peer", "bytes"]
        events = pd.concat(frames, ignore_index=True)[order].sort_values(["rank", "start"], ignore_index=True)
        events.attrs = {}
        return events

    def breakdown(self) -> pd.DataFrame:
        """Seconds of each rank's wall time by part (compute, transfer, wait, checkpoint, other) and their sum `wall`.

        Idle is time blocked in a wait, as recorded; `other` is what no event covers: choosing, polling, reading data.
        """
        events, ranks = self.events(), self.ranks().set_index("rank")
        span = events["end"] - events["start"]
        parts = span.groupby([events["rank"], events["kind"].map(_PART).fillna("other")]).sum().unstack(fill_value=0)
        parts = parts.reindex(columns=list(PARTS), fill_value=0) / 1e9
        wall = (ranks["ended"] - ranks["began"]) / 1e9
        parts["other"] = wall - parts[[part for part in PARTS if part != "other"]].sum(axis=1)
        parts["wall"] = wall
        parts.columns.name = None
        return parts

    def communication(self) -> pd.DataFrame:
        """Bytes sent from each rank (row) to each other (column) while training."""
        events = self.events()
        sends = events[events["kind"] == "send"]
        matrix = sends.pivot_table(index="rank", columns="peer", values="bytes", aggfunc="sum", fill_value=0)
        every = range(len(self._files()))
        return matrix.reindex(index=every, columns=every, fill_value=0).astype("int64")

    def history(self) -> pd.DataFrame:
        """Loss and score (accuracy, or R2 of tests) of each step and test; what a resume repeated counts once."""
        frame = pd.read_csv(self.path / "history.csv")
        return frame.drop_duplicates(["kind", "step"], keep="last", ignore_index=True)


def open_run(path: str | Path, launch: int | None = None) -> Run:
    """Open a run folder.

    Parameters
    ----------
    path : str or Path
        A folder such as `runs/first`.
    launch : int, optional
        Which launch's traces to read (0 is the first; each resume in place is another); default: the newest.

    Raises
    ------
    UserError
        It is not a run folder.
    """
    path = Path(path)
    if not (path / "config.toml").is_file():
        raise UserError(f"{path} is not a run folder: it has no config.toml")
    launches = sorted(int(folder.name) for folder in (path / "traces").glob("[0-9]*"))
    return Run(path, launch if launch is not None else (launches[-1] if launches else 0))


def _plain(value: Any) -> Any:
    """An HDF5 attribute as Python has it: JSON text parsed, NumPy scalars and arrays unwrapped."""
    if isinstance(value, str) and value[:1] in "{[":
        return json.loads(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _align(times: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Times on rank 0's clock: the offset between the two comparisons is interpolated."""
    first = attributes.get("clock_first")
    if not first:
        return times
    last = attributes.get("clock_last", first)
    offset = np.interp(times.astype(float), [first["at"], last["at"]], [first["offset"], last["offset"]])
    return times - np.rint(offset).astype(np.int64)

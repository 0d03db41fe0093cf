"""Opens a run folder and returns data frames. Imports no trainer: it reads files only."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ringtmp.errors import UserError
from ringtmp.resilience.incident import PHASES
from ringtmp.storage.run_folder import RunFolder
from ringtmp.storage.versions import check_format
from ringtmp.trace.events import FORMAT, PARTS, part_of
from ringtmp.trace.live_status import read_status, status_path


@dataclass(frozen=True)
class Run:
    """One launch of a run.

    Attributes
    ----------
    path : Path
        The run folder.
    launch : int
        Number of the launch, from 0.
    """

    path: Path
    launch: int

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        return tomllib.loads((self.path / "config.toml").read_text())

    @property
    def status(self) -> dict[str, Any]:
        """The state of the run: `state` (running, finished, stopped, failed), `step` and more."""
        return json.loads((self.path / "status.json").read_text())

    def _files(self) -> list[Path]:
        files = sorted((self.path / "traces" / f"{self.launch:03d}").glob("rank-*.h5"))
        if not files:
            raise UserError(f"{self.path}: launch {self.launch} has no trace (was it run with --trace off?)")
        return files

    def ranks(self) -> pd.DataFrame:
        """One row per rank: the attributes of its trace (host, layers, begin and end in nanoseconds, clock offsets)."""
        rows = []
        for path in self._files():
            with _opened(path) as file:
                rows.append({key: _plain(value) for key, value in file.attrs.items()})
        return pd.DataFrame(rows).sort_values("rank", ignore_index=True)

    def events(self) -> pd.DataFrame:
        """Every event of every rank, on rank 0's clock.

        Returns
        -------
        DataFrame
            rank, kind (F, I, W, U, E, send, replicate, receive, wait, data, checkpoint, trace), start and end (int64
            nanoseconds since the first rank began), step, micro_batch, stage, peer (-1: none), bytes, version (updates
            in the weights that F, I and E used or that U made; -1: none).

        Raises
        ------
        UserError
            There is no trace, or one of its files is damaged or has another format version.
        """
        frames = []
        for path in self._files():
            with _opened(path) as file:
                attributes = {key: _plain(value) for key, value in file.attrs.items()}
                columns = {name: np.asarray(column) for name, column in file["events"].items()}
            if "began" not in attributes:
                raise UserError(f"{path}: no event has been written to it yet")
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
        order = ["rank", "kind", "start", "end", "step", "micro_batch", "stage", "peer", "bytes", "version"]
        events = pd.concat(frames, ignore_index=True)[order].sort_values(["rank", "start", "end"], ignore_index=True)
        events.attrs = {}
        return events

    def breakdown(self) -> pd.DataFrame:
        """Seconds of each rank's wall time by part (compute, transfer, wait, checkpoint, other), and their sum `wall`.

        Idle time is time blocked in a wait, as recorded; `other` is what no event covers: choosing, polling, data.
        """
        events, ranks = self.events(), self.ranks().set_index("rank")
        span = events["end"] - events["start"]
        parts = span.groupby([events["rank"], events["kind"].map(part_of)]).sum().unstack(fill_value=0)
        parts = parts.reindex(columns=list(PARTS), fill_value=0) / 1e9
        wall = (ranks["ended"] - ranks["began"]) / 1e9
        parts["other"] = wall - parts[[part for part in PARTS if part != "other"]].sum(axis=1)
        parts["wall"] = wall
        parts.columns.name = None
        return parts

    def live_status(self) -> pd.DataFrame:
        """The last status of each rank: at most a second old during the run, and cheap to read.

        Returns
        -------
        DataFrame
            By rank: step (steps done; 0: it only serves), seconds of its wall time by part (compute, transfer, wait,
            checkpoint, other), their sum `wall`, and `time` (seconds since the epoch). Ranks that have not written a
            status yet are missing.
        """
        found = {int(path.stem[5:]): read_status(status_path(path)) for path in self._files()}
        rows = {rank: [last.step, *last.parts, last.wall, last.time] for rank, last in found.items() if last}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["step", *PARTS, "wall", "time"])
        return frame.rename_axis("rank").sort_index()

    def recoveries(self) -> pd.DataFrame:
        """Failures that the run recovered from: launch, what was lost, step, steps repeated, seconds by phase."""
        rows = []
        for folder in sorted((self.path / "traces").glob("[0-9]*")):
            for path in sorted(folder.glob("rank-*.h5"))[:1]:
                with suppress(UserError), _opened(path) as file:
                    if "recovery" in file.attrs:
                        report = _plain(file.attrs["recovery"])
                        rows.append(
                            {
                                "launch": int(folder.name),
                                "what": report.get("what", ""),
                                "step": report["step"],
                                "again": report["again"],
                                **report["seconds"],
                            }
                        )
        return pd.DataFrame(rows, columns=["launch", "what", "step", "again", *PHASES])

    def communication(self) -> pd.DataFrame:
        """Bytes sent from each rank (row) to each other rank (column) during training."""
        events = self.events()
        sends = events[events["kind"].isin(["send", "replicate"])]
        matrix = sends.pivot_table(index="rank", columns="peer", values="bytes", aggfunc="sum", fill_value=0)
        every = range(len(self._files()))
        return matrix.reindex(index=every, columns=every, fill_value=0).astype("int64")

    def staleness(self) -> pd.DataFrame:
        """The staleness of each update's gradients: `staleness` of this launch's events."""
        return staleness(self.events())

    def peak_in_flight(self) -> pd.Series:
        """Most micro-batches that each rank held at once: `peak_in_flight` of this launch's events."""
        return peak_in_flight(self.events())

    def history(self) -> pd.DataFrame:
        """Loss and score (accuracy, or R2 of tests) of each step and test; repeated steps appear once."""
        frame = pd.read_csv(self.path / "history.csv")
        return frame.drop_duplicates(["kind", "step"], keep="last", ignore_index=True)


def staleness(events: pd.DataFrame) -> pd.DataFrame:
    """The number of updates by which the weights of each gradient were behind: 0 in synchronous training.

    Parameters
    ----------
    events : DataFrame
        From `Run.events`.

    Returns
    -------
    DataFrame
        rank, stage, step, staleness (all int64): a row per update, ordered by rank, stage and step. Staleness is the
        number of updates made before this one minus the smallest `version` that an F of its stage and step used.
        For a trace of `ps`, a row per gradient that an update used: rank (of the server), stage (the key range), step,
        worker, staleness; ordered by these.

    Raises
    ------
    UserError
        The events hold no weight versions.
    """
    if "version" not in events or (len(events) and (events["version"] < 0).all()):
        raise UserError("staleness: the events hold no weight versions (they come from a simulation)")
    known = events[events["version"] >= 0]
    came = known[(known["kind"] == "receive") & (known["stage"] >= 0)]
    if len(came):
        return _staleness_of_gradients(came, known[known["kind"] == "U"])
    forwards = known[known["kind"] == "F"].groupby(["stage", "step"], as_index=False)
    updates = known[known["kind"] == "U"].merge(forwards.agg(used=("version", "min")), on=["stage", "step"])
    updates["staleness"] = updates["version"] - 1 - updates["used"]
    columns = ["rank", "stage", "step", "staleness"]
    return updates[columns].astype("int64").sort_values(columns[:3], ignore_index=True)


def _staleness_of_gradients(came: pd.DataFrame, updates: pd.DataFrame) -> pd.DataFrame:
    """Staleness of each gradient that a server received: the next update of its key range used it."""
    key = ["rank", "stage"]
    updates = updates[[*key, "start", "version"]].rename(columns={"version": "made"}).sort_values("start")
    came = came.rename(columns={"peer": "worker", "start": "began"}).sort_values("end")
    taken = pd.merge_asof(came, updates, left_on="end", right_on="start", by=key, direction="forward")
    taken = taken[taken["made"].notna()]
    taken["staleness"] = taken["made"] - 1 - taken["version"]
    columns = [*key, "step", "worker", "staleness"]
    return taken[columns].astype("int64").sort_values(columns[:4], ignore_index=True)


def peak_in_flight(events: pd.DataFrame) -> pd.Series:
    """The largest number of micro-batches that each rank held at once: F begun, last part of W not done.

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.

    Returns
    -------
    Series of int64, by rank
        A micro-batch counts once per stage that holds it. 0: the rank ran no F.
    """
    key = ["rank", "stage", "step", "micro_batch"]
    begun = events[events["kind"] == "F"].groupby(key)["start"].min()
    done = events[events["kind"].isin(["W", "B"])].groupby(key)["end"].max()
    done = done[done.index.isin(begun.index)]  # a selection of steps may lack the F
    changes = pd.concat(
        [begun.rename("time").reset_index().assign(change=1), done.rename("time").reset_index().assign(change=-1)]
    )
    changes = changes.sort_values(["rank", "time", "change"])  # at equal times an end comes before a begin
    held = changes.groupby("rank")["change"].cumsum()
    ranks = np.sort(events["rank"].unique())
    peaks = held.groupby(changes["rank"]).max().reindex(ranks, fill_value=0)
    return peaks.astype("int64").rename("peak_in_flight")


def open_run(path: str | Path, launch: int | None = None) -> Run:
    """Open a run folder.

    Parameters
    ----------
    path : str or Path
        A folder such as `runs/first`.
    launch : int, optional
        Number of the launch to read (0 is the first; each resume in place adds one); default: the newest.

    Raises
    ------
    UserError
        `path` is not a run folder, or one of another format version.
    """
    path = Path(path)
    if not (path / "config.toml").is_file():
        raise UserError(f"{path} is not a run folder: it has no config.toml")
    RunFolder(path).check_format()
    launches = sorted(int(folder.name) for folder in (path / "traces").glob("[0-9]*"))
    return Run(path, launch if launch is not None else (launches[-1] if launches else 0))


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a trace file. Raises `UserError` if it is damaged or has another format version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_format(path, FORMAT, file.attrs.get("format"))
            yield file
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    """An HDF5 attribute as a Python value: JSON text parsed, NumPy scalars and arrays converted."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _align(times: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Convert times to rank 0's clock; the offset is interpolated between the two measurements."""
    first = attributes.get("clock_first")
    if not first:
        return times
    last = attributes.get("clock_last", first)
    offset = np.interp(times.astype(float), [first["at"], last["at"]], [first["offset"], last["offset"]])
    return times - np.rint(offset).astype(np.int64)

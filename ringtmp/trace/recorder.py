"""Per-rank timing traces: the actions of a rank, in nanoseconds, in one HDF5 file per rank.

Recording an event packs 44 bytes into preallocated memory (0.25 microseconds, no allocation). Blocks are written to the
file between steps, and the file is closed after each block, so a killed job leaves a readable trace.
"""

import json
import os
import platform
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import ringtmp
from ringtmp.errors import warn
from ringtmp.storage.files import hdf5
from ringtmp.trace.core_time import Intervals
from ringtmp.trace.events import CODES, EVENT, FORMAT, KINDS, PARTS
from ringtmp.trace.live_status import status_path, write_status
from ringtmp.trace.machine import usable_cpus

_PACK = struct.Struct("<qqqiiiihh")
_BLOCK = 1 << 17  # events in memory
_PART_OF_CODE = np.array([PARTS.index(part) for part in KINDS.values()], dtype=np.int8)
_CHUNK = 1 << 13  # events of an HDF5 chunk
_FLUSH_PERIOD = 30_000_000_000  # nanoseconds after which a block that is not full is written
_STATUS_PERIOD = 500_000_000  # nanoseconds between two writes of the live status

clock = time.perf_counter_ns


class Recorder:
    """Sums this rank's time by event kind and, with a file, records every event.

    Parameters
    ----------
    path : Path or None
        HDF5 file to write; None: none.
    attributes : dict
        Attributes of the file: `rank` and further facts on this rank. Values without an HDF5 type are stored as JSON.
    keep : bool
        Whether to keep the newest events in memory also without a file, for `newest`.
    """

    def __init__(self, path: Path | None, attributes: dict[str, Any], *, keep: bool = False) -> None:
        self.path, self.rank = path, int(attributes.get("rank", 0))
        self.totals = dict.fromkeys(KINDS, 0)  # nanoseconds by event kind
        self.began = self.ended = self._until = clock()  # `_until`: end of the newest event
        self._lapped = 0, self.began  # nanoseconds waited, and the end of the newest event, at the last `lap`
        # Ones, not zeros: pages of zeros would be allocated one by one during training.
        self._memory = bytearray(b"\1") * (_BLOCK * EVENT.itemsize if path or keep else 0)
        self._flushed = self.began
        self._count = self._before = self._older = 0  # events of the block in memory, and of the two before it
        self._outer: list[tuple[str, int, int]] = []  # kind, start and step of each open `timed` block
        self.recorded = 0  # number of events so far
        self._status_written = self._steps_done = 0
        self.beside = False  # record with zero duration: messages that pass while an emulated node computes
        if path:
            try:
                self._create(attributes)
            except OSError as error:
                self._give_up(error)

    def record(
        self,
        kind: str,
        start: int,
        end: int,
        step: int,
        micro_batch: int = -1,
        peer: int = -1,
        size: int = 0,
        stage: int = -1,
        version: int = -1,
    ) -> None:
        """Record one event.

        Parameters
        ----------
        kind : str
            A key of `KINDS`.
        start, end : int
            Nanoseconds, from `clock`.
        step, micro_batch, stage : int
            Step, micro-batch and stage of the event; -1: none.
        peer : int
            The other rank of a message; -1: none.
        size : int
            Bytes of the message.
        version : int
            Updates contained in the weights that were used (U: in those that it made); -1: not applicable.
        """
        if self.beside:
            start, end = (start, start) if kind == "send" else (end, end)
        if self._outer:  # the event divides an open `timed` block in two
            self._cut(start, end)
        self._keep(kind, start, end, step, micro_batch, peer, size, stage, version)

    def _cut(self, start: int, end: int) -> None:
        kind, since, step = self._outer.pop()
        if start > since:
            self._keep(kind, since, start, step)
        self._outer.append((kind, end, step))

    def _keep(
        self,
        kind: str,
        start: int,
        end: int,
        step: int,
        micro_batch: int = -1,
        peer: int = -1,
        size: int = 0,
        stage: int = -1,
        version: int = -1,
    ) -> None:
        self.totals[kind] += end - start
        self.recorded += 1
        self._until = end
        if self._memory:
            if self._count == _BLOCK:
                self.flush()
            _PACK.pack_into(
                self._memory,
                self._count * _PACK.size,
                start,
                end,
                size,
                step,
                micro_batch,
                peer,
                version,
                stage,
                CODES[kind],
            )
            self._count += 1

    def begin(self) -> None:
        """Start the wall time now."""
        self.began = self.ended = self._until = clock()
        self._lapped = self.totals["wait"], self.began

    @contextmanager
    def timed(self, kind: str, step: int) -> Iterator[None]:
        """Record the block as an event of `kind` in step `step`, divided by the events that are recorded inside it."""
        begin = clock()
        if self._outer:
            self._cut(begin, begin)
        self._outer.append((kind, begin, step))
        try:
            yield
        finally:
            end = clock()
            _, since, _ = self._outer.pop()
            self._keep(kind, since, end, step)
            if self._outer:
                outer, _, of = self._outer.pop()
                self._outer.append((outer, end, of))

    def between_steps(self, step: int) -> None:
        """Write the block if it is nearly full or old, and the live status; called while no neighbour waits.

        Parameters
        ----------
        step : int
            The step just done; -1 on a rank that only serves.
        """
        if not self.path:
            return
        now, self._steps_done = clock(), step + 1
        if self._count > 0.75 * _BLOCK or now - self._flushed > _FLUSH_PERIOD:
            with self.timed("trace", step):
                self.flush()
        if self.path and now - self._status_written > _STATUS_PERIOD:
            self._status_written = now
            self._write_status(self.path, now)

    def _write_status(self, path: Path, now: int) -> None:
        with suppress(OSError):  # on a full disk the status goes stale, which an observer sees
            write_status(status_path(path), self._steps_done, now - self.began, self._parts(now).values())

    def lap(self) -> tuple[int, int]:
        """Nanoseconds waited, and nanoseconds elapsed, since the last call or `begin`.

        Both count up to the end of the newest event: what a wait that is under way has taken so far belongs to the
        next lap.
        """
        waited, until = self.totals["wait"] - self._lapped[0], self._until - self._lapped[1]
        self._lapped = self.totals["wait"], self._until
        return waited, until

    def parts(self) -> dict[str, int]:
        """Nanoseconds by part (compute, transfer, wait, checkpoint, other), summing to the wall time."""
        return self._parts(self.ended)

    def _parts(self, until: int) -> dict[str, int]:
        parts = dict.fromkeys(PARTS, 0)
        for kind, total in self.totals.items():
            parts[KINDS[kind]] += total
        parts["other"] += (until - self.began) - sum(parts.values())
        return parts

    def newest(self, limit: int) -> Intervals | None:
        """What this rank did last, as far as it is in memory; None if nothing is kept there.

        Parameters
        ----------
        limit : int
            Most events to take.
        """
        if not self._memory:
            return None
        # The block before the newest one lies behind it, as far as it has not been written over.
        count, before = (self._count, self._before) if self._count else (self._before, self._older)
        events = np.frombuffer(self._memory, EVENT, max(count, before))
        order = np.r_[count : len(events), :count][-limit:]
        events = events[order]
        return Intervals(events["start"], events["end"], _PART_OF_CODE[events["kind"]])

    def _create(self, attributes: dict[str, Any]) -> None:
        assert self.path
        with hdf5(self.path, "x") as file:
            file.attrs["format"] = FORMAT
            file.attrs["kinds"] = list(KINDS)
            self._set(file, attributes)
            for name in EVENT.names or ():
                file.create_dataset(f"events/{name}", (0,), EVENT[name], maxshape=(None,), chunks=(_CHUNK,))

    @staticmethod
    def _set(file: Any, attributes: dict[str, Any]) -> None:
        for key, value in attributes.items():
            file.attrs[key] = value if isinstance(value, int | float | str) else json.dumps(value)

    def flush(self, attributes: dict[str, Any] | None = None) -> None:
        """Append the events in memory to the file and set `attributes`.

        If the write fails (a full disk), print one warning and continue training without a trace.
        """
        try:
            if self.path:
                self._append(attributes or {})
        except OSError as error:
            self._give_up(error)
        if self.path and attributes and "ended" in attributes:
            self._write_status(self.path, self.ended)
        if self._count:
            self._count, self._before, self._older = 0, self._count, self._before
        self._flushed = clock()

    def _give_up(self, error: OSError) -> None:
        warn(f"could not write its trace {self.path}: {error}; training continues without it", self.rank)
        self.path = None

    def _append(self, attributes: dict[str, Any]) -> None:
        assert self.path
        events = np.frombuffer(self._memory, EVENT, self._count)
        self.ended = max(self.ended, int(events["end"].max(initial=0)))
        with hdf5(self.path, "r+") as file:
            for name in EVENT.names or ():
                column = file[f"events/{name}"]
                old = len(column)
                column.resize((old + len(events),))
                column[old:] = events[name]
            self._set(file, attributes)
            file.attrs["began"], file.attrs["ended"] = self.began, self.ended


def environment() -> dict[str, Any]:
    """Host, process, processor and versions; stored in traces and checkpoints."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu": _processor(),
        "cores": len(usable_cpus()),
        "command": " ".join(sys.argv),
        "versions": {"ringtmp": ringtmp.__version__, "python": platform.python_version()} | _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("numpy", "numba", "h5py", "mpi4py")}


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Per-rank timing traces: what a rank did, in nanoseconds, in one HDF5 file per rank.

Recording an event packs 44 bytes into memory made beforehand (0.25 microseconds, nothing allocated). Blocks go to the
file between steps, and the file is closed after each block: a killed job leaves a readable trace.
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
from ringtmp.comm.mpi import warn
from ringtmp.storage.files import hdf5
from ringtmp.trace.live_status import PARTS, live_status, write_status

# What an event is, and which part of the wall time it counts to.
KINDS = {
    "F": "compute",
    "I": "compute",
    "W": "compute",
    "U": "compute",
    "E": "compute",  # forward of an evaluation
    "data": "other",  # reading a micro-batch from the data set
    "send": "transfer",
    "replicate": "transfer",  # a piece of a stage's copy leaves
    "receive": "transfer",  # the poll in which a message came in
    "wait": "wait",  # nothing can run: blocked on a neighbour
    "checkpoint": "checkpoint",
    "trace": "other",  # writing this file
    "balance": "other",  # dealing the layers anew
    "across": "transfer",  # a part of a gradient leaves for another ring
}
CODE = {kind: code for code, kind in enumerate(KINDS)}

EVENT = np.dtype(
    [
        ("start", "<i8"),
        ("end", "<i8"),
        ("bytes", "<i8"),
        ("step", "<i4"),
        ("micro_batch", "<i4"),
        ("peer", "<i4"),
        ("version", "<i4"),
        ("stage", "<i2"),
        ("kind", "<i2"),
    ]
)
_PACK = struct.Struct("<qqqiiiihh")
_BLOCK = 1 << 17  # events in memory
_CHUNK = 1 << 13  # events of an HDF5 chunk
_PERIOD = 30_000_000_000  # nanoseconds after which events go to the file although the block is not full
_BEAT = 500_000_000  # nanoseconds between two signs of life

clock = time.perf_counter_ns


class Recorder:
    """Adds up where the time of this rank goes and, if there is a file, records every event.

    Parameters
    ----------
    path : Path or None
        HDF5 file to write; None: only the sums are kept.
    attributes : dict
        What the file's attributes say; values are stored as JSON where HDF5 has no type for them.
    """

    def __init__(self, path: Path | None, attributes: dict[str, Any]) -> None:
        self.path = path
        self.totals = dict.fromkeys(KINDS, 0)  # nanoseconds
        self.began = self.ended = clock()
        # Not zeros: those would be pages that come into being one by one while training.
        self._memory = bytearray(b"\1") * (_BLOCK * EVENT.itemsize if path else 0)
        self._flushed = self.began
        self._count = 0
        self._outer: list[tuple[str, int, int]] = []  # kind, start and step of what is being timed
        self.recorded = 0  # events in all
        self._beaten = self._done = 0
        self.beside = False  # what is recorded takes none of this rank's own time: messages while a node computes
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
        """Note one event.

        `start` and `end` from `clock`, `size` in bytes; `version`: updates in the weights that were used, of an update
        those in the weights that it made.
        """
        if self.beside:
            start, end = (start, start) if kind == "send" else (end, end)
        if self._outer:  # what it interrupts is cut in two
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
        if self.path:
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
                CODE[kind],
            )
            self._count += 1

    def begin(self) -> None:
        """The wall time begins now."""
        self.began = self.ended = clock()

    @contextmanager
    def timed(self, kind: str, step: int) -> Iterator[None]:
        """Record what happens inside as one event, cut up by the events that are recorded meanwhile."""
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
        """`step` is done: write the block out if it is nearly full or old, where no neighbour waits for a micro-batch.

        Of a rank that only serves: -1.
        """
        if not self.path:
            return
        now, self._done = clock(), step + 1
        if self._count > 0.75 * _BLOCK or now - self._flushed > _PERIOD:
            with self.timed("trace", step):
                self.flush()
        if self.path and now - self._beaten > _BEAT:
            self._beaten = now
            self._beat(self.path, now)

    def _beat(self, path: Path, now: int) -> None:
        with suppress(OSError):  # a full disk: whoever watches sees that nothing comes any more
            write_status(live_status(path), self._done, now - self.began, self._parts(now).values())

    def wait_share(self) -> tuple[int, int]:
        """Nanoseconds waited and nanoseconds gone since `began`."""
        return self.totals["wait"], clock() - self.began

    def parts(self) -> dict[str, int]:
        """Nanoseconds by part (compute, transfer, wait, checkpoint, other), summing to the wall time."""
        return self._parts(self.ended)

    def _parts(self, until: int) -> dict[str, int]:
        parts = dict.fromkeys(PARTS, 0)
        for kind, total in self.totals.items():
            parts[KINDS[kind]] += total
        parts["other"] += (until - self.began) - sum(parts.values())
        return parts

    def _create(self, attributes: dict[str, Any]) -> None:
        assert self.path
        with hdf5(self.path, "x") as file:
            file.attrs["format"] = "ringtmp-trace-2"
            file.attrs["kinds"] = list(KINDS)
            self._set(file, attributes)
            for name in EVENT.names or ():
                file.create_dataset(f"events/{name}", (0,), EVENT[name], maxshape=(None,), chunks=(_CHUNK,))

    @staticmethod
    def _set(file: Any, attributes: dict[str, Any]) -> None:
        for key, value in attributes.items():
            file.attrs[key] = value if isinstance(value, int | float | str) else json.dumps(value)

    def flush(self, attributes: dict[str, Any] | None = None) -> None:
        """Append what is in memory to the file, and set further attributes.

        If that fails, as on a full disk, one line says so and training goes on without a trace.
        """
        if not self.path:
            return
        try:
            self._append(attributes or {})
        except OSError as error:
            self._give_up(error)
        if self.path and attributes and "ended" in attributes:
            self._beat(self.path, self.ended)
        self._count, self._flushed = 0, clock()

    def _give_up(self, error: OSError) -> None:
        warn(f"could not write its trace {self.path}: {error}; training goes on without it")
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
    """Host, process, processor and versions, as stored in traces and checkpoints."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
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

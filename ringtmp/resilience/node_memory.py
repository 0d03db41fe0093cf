"""Memory of a node that outlives processes: replicas of stages of a run.

    /dev/shm/ringtmp-UID/RUN/NODE/
        0000003000.0002.0002.a  ...b    generation 3000, stage 2, held by rank 2: two versions
        0000003000.0001.0002.a  ...b    stage 1, held by rank 2 for its left neighbour

A replica is written in two phases: its step is -1 before the first byte changes, and becomes the new step after the
last one, when the checksums are in place. A process that is killed in between leaves the other version intact.
Replicas of an older generation (launch, or membership within one) stay until the newer one can do without them.

    bytes    0   magic
             8   length of the description
            16   step: updates in the state that it holds, or -1
            64   description: JSON
             .   checksums [layers], then for each layer its parameters and slots, each on a cache line
"""

import json
import mmap
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ringtmp.nn.layer import Array
from ringtmp.storage.checksum import checksum

_MAGIC = b"RINGTMP1"  # ends with the version of the format
_FIXED = struct.Struct("<8sqq")
_TEXT = 64  # where the description begins
_LINE = 64
_FLAT = "flat"  # name of the parameters among a layer's arrays
GENERATION = 1000  # the first generation of launch n is n x GENERATION; each rebalancing begins the next one


class ParameterRange(NamedTuple):
    """Parameters `start` to `stop` - 1 of layer `layer`, which has `whole` parameters."""

    layer: int
    start: int
    stop: int
    whole: int


@dataclass(frozen=True)
class ReplicaLayout:
    """Contents of a replica: a stage's layers, or a server's ranges of layers, and the arrays of each.

    Attributes
    ----------
    generation : int
        Generation of the membership that wrote it.
    stage, owner : int
        Number of the stage along the chain, and the rank that trains it.
    layers, counts : tuple of int
        Index and number of parameters of each layer, or range of one.
    tables : tuple of dict
        Each layer as a table (`Layer.to_table`).
    total : int
        Layers of the whole model.
    slots : tuple of str
        Names of the optimizer's slots.
    dtype : str
        Dtype of parameters and slots, in NumPy's notation ("<f4").
    starts, wholes : tuple of int
        For ranges: the first parameter of each, and the number of parameters of its layer; empty for whole layers.
    """

    generation: int
    stage: int
    owner: int
    layers: tuple[int, ...]
    counts: tuple[int, ...]
    tables: tuple[dict[str, Any], ...]
    total: int
    slots: tuple[str, ...]
    dtype: str
    starts: tuple[int, ...] = ()
    wholes: tuple[int, ...] = ()

    def text(self) -> bytes:
        """The description as it is stored."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def read(cls, text: bytes) -> "ReplicaLayout":
        """The layout that `text` describes."""
        values: dict[str, Any] = json.loads(text)
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
        return cls(**values)

    @property
    def parts(self) -> tuple[ParameterRange, ...]:
        """The parameters that it holds, in the order of their places."""
        starts, wholes = self.starts or (0,) * len(self.layers), self.wholes or self.counts
        each = zip(self.layers, starts, self.counts, wholes, strict=True)
        return tuple(ParameterRange(layer, start, start + count, whole) for layer, start, count, whole in each)

    def places(self) -> list[dict[str, tuple[int, int]]]:
        """For each layer, start (bytes after the checksums' start) and size (bytes) of each array."""
        item, at, places = np.dtype(self.dtype).itemsize, _up(8 * len(self.layers)), []
        for count in self.counts:
            mine = {}
            for name in (_FLAT, *self.slots):
                mine[name] = at, count * item
                at += _up(count * item)
            places.append(mine)
        return places

    @property
    def size(self) -> int:
        """Bytes of checksums and arrays."""
        last = self.places()[-1] if self.layers else {}
        start, size = list(last.values())[-1] if last else (0, _up(8 * len(self.layers)))
        return start + _up(size)


def _up(size: int) -> int:
    return -(-size // _LINE) * _LINE


class StageReplica:
    """One version of a stage in node memory.

    Parameters
    ----------
    path : Path
        File of the replica.
    layout : ReplicaLayout or None
        Contents of a new replica; None: open an existing one.

    Raises
    ------
    OSError
        It cannot be made (memory full), or does not exist.
    ValueError
        The file is no replica, or too short.
    """

    def __init__(self, path: Path, layout: ReplicaLayout | None = None) -> None:
        self.path = path
        if layout:
            text = layout.text()
            body = _up(_TEXT + len(text))
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, body + layout.size)  # or a full memory would be a bus error later
                self.memory = mmap.mmap(handle, body + layout.size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
            self.memory[_TEXT : _TEXT + len(text)] = text
            _FIXED.pack_into(self.memory, 0, _MAGIC, len(text), -1)
        else:
            with path.open("r+b") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
            if len(self.memory) < _TEXT:
                raise ValueError("cut short")
            magic, length, _ = _FIXED.unpack_from(self.memory, 0)
            if magic[:-1] == _MAGIC[:-1] and magic != _MAGIC:
                raise ValueError(f"expected format {_MAGIC.decode()}, got {magic.decode(errors='replace')}")
            if magic != _MAGIC:
                raise ValueError("not a replica of a stage")
            layout = ReplicaLayout.read(self.memory[_TEXT : _TEXT + length])
            body = _up(_TEXT + length)
            if len(self.memory) != body + layout.size:
                raise ValueError("cut short")
        self.layout = layout
        whole = np.frombuffer(self.memory, np.uint8)
        self.payload = whole[body:]  # what is sent to other nodes
        self._step = whole[16:24].view(np.int64)
        self.sums = self.payload[: 8 * len(layout.layers)].view(np.uint64)
        self._places = layout.places()

    @property
    def step(self) -> int:
        """Updates in the state that it holds, or -1 while it is being written."""
        return int(self._step[0])

    def begin(self) -> None:
        """Mark the replica incomplete: it is about to be overwritten."""
        self._step[0] = -1

    def commit(self, step: int) -> None:
        """Mark the replica complete; it holds the state after `step` updates, and its checksums."""
        self._step[0] = step

    def array(self, place: int, name: str = _FLAT) -> Array:
        """Parameters or the slot `name` of the layer at place `place` in the stage; a view."""
        start, size = self._places[place][name]
        return self.payload[start : start + size].view(self.layout.dtype)

    def arrays(self, place: int) -> tuple[Array, dict[str, Array]]:
        """Parameters and slots of the layer at place `place`; views."""
        return self.array(place), {name: self.array(place, name) for name in self.layout.slots}

    def sum(self, place: int) -> int:
        """Checksum of the present arrays of the layer at place `place`."""
        total = 0
        for name in (_FLAT, *self.layout.slots):
            total = checksum(self.array(place, name).view(np.uint32), total)
        return int(total)

    def seal(self, place: int) -> None:
        """Store the checksum of the layer at place `place`, whose arrays are complete."""
        self.sums[place] = self.sum(place)

    def sound(self) -> bool:
        """Whether every layer matches its checksum."""
        return all(int(self.sums[place]) == self.sum(place) for place in range(len(self.layout.layers)))


@dataclass(frozen=True)
class FoundReplica:
    """A sound replica that a node has, as reported to rank 0.

    Attributes
    ----------
    path : str
        File of the replica.
    generation, step : int
        Generation that wrote it, and updates in its state.
    layers : tuple of int
        Index of each layer, or range of one.
    tables : tuple of dict
        Each layer as a table.
    total : int
        Layers of the whole model.
    parts : tuple of ParameterRange
        The parameters that it holds; empty: all of each layer.
    slots : tuple of str
        Names of the optimizer's slots.
    """

    path: str
    generation: int
    step: int
    layers: tuple[int, ...]
    tables: tuple[dict[str, Any], ...]
    total: int
    parts: tuple[ParameterRange, ...] = ()
    slots: tuple[str, ...] = ()

    def pieces(self) -> tuple[ParameterRange, ...]:
        """The parameters that it holds; with 0, 0, 0 for a whole layer."""
        return self.parts or tuple(ParameterRange(layer, 0, 0, 0) for layer in self.layers)


class NodeMemory:
    """The replicas that a node holds of one run.

    Parameters
    ----------
    run : str
        Identity of the run.
    node : str
        Name of the node.
    """

    def __init__(self, run: str, node: str) -> None:
        self.folder = _root() / run / node

    def make(self) -> None:
        """Make the folder, for this user alone. Raises `OSError`, `PermissionError` if it belongs to another user."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = _root().stat()
        if mine.st_uid != os.getuid():
            raise PermissionError(f"{_root()} belongs to another user; set RINGTMP_NODE_MEMORY")
        _root().chmod(0o700)

    def create(self, layout: ReplicaLayout, holder: int) -> tuple[StageReplica, StageReplica]:
        """Allocate two versions of a stage with layout `layout` on the rank `holder`. Raises `OSError`."""
        name = f"{layout.generation:010d}.{layout.stage:04d}.{holder:04d}"
        return StageReplica(self.folder / f"{name}.a", layout), StageReplica(self.folder / f"{name}.b", layout)

    def inventory(self) -> tuple[list[FoundReplica], list[str]]:
        """The complete replicas, and a line for each that is damaged."""
        found: list[FoundReplica] = []
        faults: list[str] = []
        for path in sorted(self.folder.glob("*.[ab]")):
            try:
                copy = StageReplica(path)
                if copy.step < 0:
                    continue
                if copy.sound():
                    layout = copy.layout
                    what = (layout.layers, layout.tables, layout.total, layout.parts, layout.slots)
                    found.append(FoundReplica(str(path), layout.generation, copy.step, *what))
                else:
                    faults.append(f"{path}: contents do not match their checksum")
            except (OSError, ValueError, KeyError, TypeError) as error:
                faults.append(f"{path}: {error}")
        return found, faults

    def forget(self, generation: int) -> None:
        """Remove the replicas of generations before `generation`."""
        for path in self.folder.glob("*.[ab]"):
            if path.name[:10].isdigit() and int(path.name[:10]) < generation:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all replicas: the run has ended, and its results are on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.folder.parent, self.folder.parent.parent):
            with suppress(OSError):  # other nodes of this host, other runs
                folder.rmdir()


def _root() -> Path:
    given = os.environ.get("RINGTMP_NODE_MEMORY")
    shared = Path("/dev/shm")
    usual = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return Path(given) if given else usual / f"ringtmp-{os.getuid()}"


def node_name(rank: int | None = None) -> str:
    """The node of this process: its host, unless RINGTMP_NODES names one for each rank (emulation).

    `rank` is a rank of the world; None: this one.
    """
    names = os.environ.get("RINGTMP_NODES", "").split(",")
    if rank is None:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.rank  # its rank in a communicator changes when others are lost
    return names[rank] if rank < len(names) and names[rank] else socket.gethostname()


def covered(parts: Iterable[ParameterRange]) -> set[int]:
    """Layers of which every parameter is in one of `parts`, which do not overlap."""
    found: dict[int, int] = {}
    wholes: dict[int, int] = {}
    for part in set(parts):
        found[part.layer] = found.get(part.layer, 0) + part.stop - part.start
        wholes[part.layer] = part.whole
    return {layer for layer, count in found.items() if count == wholes[layer]}


def newest(
    held: Iterable[tuple[int, FoundReplica]], layers: int
) -> tuple[int, int, dict[ParameterRange, tuple[int, str]]] | None:
    """The newest step of which all layers are held.

    A later generation has precedence, even with an earlier step: the steps of an earlier one were given up. Replicas of
    different generations are never combined.

    Parameters
    ----------
    held : iterable of (int, FoundReplica)
        Rank that can read a replica, and the replica.
    layers : int
        Layers of the model.

    Returns
    -------
    tuple or None
        Generation, step, and for each range of parameters the rank that can read it and the path there; None if no
        step is complete.
    """
    sets: dict[tuple[int, int], dict[ParameterRange, tuple[int, str]]] = {}
    for rank, copy in held:
        where = sets.setdefault((copy.generation, copy.step), {})
        for part in copy.pieces():
            where.setdefault(part, (rank, copy.path))
    whole = [key for key, where in sets.items() if len(covered(where)) == layers]
    if not whole:
        return None
    return *max(whole), sets[max(whole)]


def arrays_of(path: str, part: ParameterRange) -> tuple[Array, dict[str, Array]]:
    """Parameters and slots (views) of `part` in the replica at `path`."""
    copy = StageReplica(Path(path))
    return copy.arrays(copy.layout.parts.index(part))

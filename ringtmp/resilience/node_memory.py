"""What a node keeps of a run while its processes come and go: copies of stages, in memory that outlives them.

    /dev/shm/ringtmp-UID/RUN/NODE/
        0000003000.0002.0002.a  ...b    generation 3000, stage 2, held by rank 2: two versions of it
        0000003000.0001.0002.a  ...b    stage 1, held by rank 2 for its left neighbour

A copy is written in two phases: its step is -1 before the first byte changes, and becomes the new step after the last
one, when the checksums are in place. A process that is killed in between leaves the other version as it was. Copies of
an older generation (launch, or membership within one) stay until the newer one can do without them.

    bytes    0   magic
             8   length of the description
            16   step of what it holds, or -1
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
GENERATION = 1000  # of copies, for each launch: within one there is room for changes of membership


class Part(NamedTuple):
    """The numbers `start`...`stop` - 1 of a layer that has `whole` of them."""

    layer: int
    start: int
    stop: int
    whole: int


@dataclass(frozen=True)
class Shape:
    """What a copy holds: a stage's layers, or parts of layers as servers have them, and the arrays of each.

    Attributes
    ----------
    generation : int
        Of the membership that wrote it.
    stage, owner : int
        Number of the stage along the chain, and the rank that trains it.
    layers, counts : tuple of int
        Index and number of parameters of each layer, or part of one.
    tables : tuple of dict
        What each layer is.
    total : int
        Layers of the whole model.
    slots : tuple of str
        Of the optimizer.
    dtype : str
    starts, wholes : tuple of int
        Where there are parts: the first number of each, and how many its layer has.
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
        """As stored."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def read(cls, text: bytes) -> "Shape":
        """The reverse of `text`."""
        values: dict[str, Any] = json.loads(text)
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
        return cls(**values)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it holds, in the order of its places."""
        starts, wholes = self.starts or (0,) * len(self.layers), self.wholes or self.counts
        each = zip(self.layers, starts, self.counts, wholes, strict=True)
        return tuple(Part(layer, start, start + count, whole) for layer, start, count, whole in each)

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


class Copy:
    """One version of a stage in node memory.

    Parameters
    ----------
    path : Path
    shape : Shape or None
        Of a new copy; None: open the one that is there.

    Raises
    ------
    OSError
        It cannot be made (memory full), or is not there.
    ValueError
        It is no copy, or cut short.
    """

    def __init__(self, path: Path, shape: Shape | None = None) -> None:
        self.path = path
        if shape:
            text = shape.text()
            body = _up(_TEXT + len(text))
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, body + shape.size)  # or a full memory would be a bus error later
                self.memory = mmap.mmap(handle, body + shape.size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
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
                raise ValueError("not a copy of a stage")
            shape = Shape.read(self.memory[_TEXT : _TEXT + length])
            body = _up(_TEXT + length)
            if len(self.memory) != body + shape.size:
                raise ValueError("cut short")
        self.shape = shape
        whole = np.frombuffer(self.memory, np.uint8)
        self.payload = whole[body:]  # what is sent to mirror it
        self._step = whole[16:24].view(np.int64)
        self.sums = self.payload[: 8 * len(shape.layers)].view(np.uint64)
        self._places = shape.places()

    @property
    def step(self) -> int:
        """Updates in what it holds, or -1 while it is being written."""
        return int(self._step[0])

    def begin(self) -> None:
        """What it holds counts no more."""
        self._step[0] = -1

    def commit(self, step: int) -> None:
        """All of it is there, checksums included."""
        self._step[0] = step

    def array(self, place: int, name: str = _FLAT) -> Array:
        """Parameters or a slot of the layer at `place` among the stage's."""
        start, size = self._places[place][name]
        return self.payload[start : start + size].view(self.shape.dtype)

    def arrays(self, place: int) -> tuple[Array, dict[str, Array]]:
        """Parameters and slots of a layer."""
        return self.array(place), {name: self.array(place, name) for name in self.shape.slots}

    def sum(self, place: int) -> int:
        """Checksum of a layer's arrays as they are now."""
        total = 0
        for name in (_FLAT, *self.shape.slots):
            total = checksum(self.array(place, name).view(np.uint32), total)
        return int(total)

    def seal(self, place: int) -> None:
        """A layer is complete: note its checksum."""
        self.sums[place] = self.sum(place)

    def sound(self) -> bool:
        """Whether every layer is as its checksum says."""
        return all(int(self.sums[place]) == self.sum(place) for place in range(len(self.shape.layers)))


@dataclass(frozen=True)
class Held:
    """A sound copy, as told to others."""

    path: str
    generation: int
    step: int
    layers: tuple[int, ...]
    tables: tuple[dict[str, Any], ...]
    total: int
    parts: tuple[Part, ...] = ()  # of which layers; none: all of each
    slots: tuple[str, ...] = ()

    def pieces(self) -> tuple[Part, ...]:
        """What it holds of which layers."""
        return self.parts or tuple(Part(layer, 0, 0, 0) for layer in self.layers)


class NodeMemory:
    """Copies that a node holds of one run.

    Parameters
    ----------
    run : str
        What tells this run from all others.
    node : str
        Name of the node.
    """

    def __init__(self, run: str, node: str) -> None:
        self.folder = _root() / run / node

    def make(self) -> None:
        """Make the folder, for this user alone. Raises `OSError`, or `PermissionError` if it is somebody else's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = _root().stat()
        if mine.st_uid != os.getuid():
            raise PermissionError(f"{_root()} belongs to somebody else; set RINGTMP_NODE_MEMORY")
        _root().chmod(0o700)

    def create(self, shape: Shape, holder: int) -> tuple[Copy, Copy]:
        """Room for two versions of a stage on the rank `holder`. Raises `OSError`."""
        name = f"{shape.generation:010d}.{shape.stage:04d}.{holder:04d}"
        return Copy(self.folder / f"{name}.a", shape), Copy(self.folder / f"{name}.b", shape)

    def inventory(self) -> tuple[list[Held], list[str]]:
        """What is whole, and a line for each copy that should be and is not."""
        found: list[Held] = []
        faults: list[str] = []
        for path in sorted(self.folder.glob("*.[ab]")):
            try:
                copy = Copy(path)
                if copy.step < 0:
                    continue
                if copy.sound():
                    shape = copy.shape
                    what = (shape.layers, shape.tables, shape.total, shape.parts, shape.slots)
                    found.append(Held(str(path), shape.generation, copy.step, *what))
                else:
                    faults.append(f"{path}: contents do not match their checksum")
            except (OSError, ValueError, KeyError, TypeError) as error:
                faults.append(f"{path}: {error}")
        return found, faults

    def forget(self, generation: int) -> None:
        """Remove the copies of generations before this one."""
        for path in self.folder.glob("*.[ab]"):
            if path.name[:10].isdigit() and int(path.name[:10]) < generation:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it: the run has ended, and its results are on disk."""
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
    """The node of this process: its host, unless RINGTMP_NODES names one for each rank of the world (emulation)."""
    names = os.environ.get("RINGTMP_NODES", "").split(",")
    if rank is None:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.rank  # whatever becomes of its rank when others are lost
    return names[rank] if rank < len(names) and names[rank] else socket.gethostname()


def covered(parts: Iterable[Part]) -> set[int]:
    """Layers of which every number is in one of these parts, which have no number in common."""
    found: dict[int, int] = {}
    wholes: dict[int, int] = {}
    for part in set(parts):
        found[part.layer] = found.get(part.layer, 0) + part.stop - part.start
        wholes[part.layer] = part.whole
    return {layer for layer, count in found.items() if count == wholes[layer]}


def newest(held: Iterable[tuple[int, Held]], layers: int) -> tuple[int, int, dict[Part, tuple[int, str]]] | None:
    """Generation and step of the newest step of which all layers are held, and for each part by which rank and where.

    None if there is none. A later generation comes first, even with an earlier step: what an earlier one still holds
    was given up. Copies of different generations are never put together.
    """
    sets: dict[tuple[int, int], dict[Part, tuple[int, str]]] = {}
    for rank, copy in held:
        where = sets.setdefault((copy.generation, copy.step), {})
        for part in copy.pieces():
            where.setdefault(part, (rank, copy.path))
    whole = [key for key, where in sets.items() if len(covered(where)) == layers]
    if not whole:
        return None
    return *max(whole), sets[max(whole)]


def arrays_of(path: str, part: Part) -> tuple[Array, dict[str, Array]]:
    """Parameters and slots (views) of a layer of the chain, or a part of one, in a copy."""
    copy = Copy(Path(path))
    return copy.arrays(copy.shape.parts.index(part))

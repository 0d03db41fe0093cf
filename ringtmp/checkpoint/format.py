"""The format of checkpoints: HDF5, a group per layer named by its position, a file per rank, a completion marker.

    checkpoints/step-00000200/
        rank-0000.h5  rank-0001.h5 ...   layers as their ranks held them
        rank-0000.json ...               what each rank wrote: name, bytes, SHA-256, layers
        index.h5                         all layers under /layers, as links into the files beside it
        COMMIT.json                      completes the checkpoint: step, configuration, SHA-256 of every file

HDF5 is not crash-safe. A file is written under a temporary name, closed, flushed to disk and renamed, and its folder is
flushed. No rank waits for another: each copies its layers as it passes the step and writes them during training; rank 0
commits once all ranks have reported. A checkpoint can be loaded on any number of ranks: layers are found by name, and
only the requested ones are read.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.model import Model
from ringtmp.storage.files import digest, hdf5, write_durably
from ringtmp.storage.fletcher import fletcher32
from ringtmp.storage.versions import check_format

FORMAT = "ringtmp-checkpoint-1"  # in the marker, and as attribute `format` of the HDF5 files
KEPT = 2  # checkpoints


class DamagedError(Exception):
    """A checkpoint that must not be loaded; the message names the file."""


@dataclass(frozen=True)
class LayerRecord:
    """A layer as stored.

    Attributes
    ----------
    name : str
        Name of the layer in checkpoints.
    table : dict
        The layer as a table.
    parameters : dict of array
        Its parameters by name, in their own shapes.
    slots : mapping
        By optimizer slot: arrays with the names and shapes of the parameters.
    """

    name: str
    table: dict[str, Any]
    parameters: dict[str, Array]
    slots: Mapping[str, dict[str, Array]]

    @classmethod
    def of(cls, model: Model, index: int, flat: Array, slots: dict[str, Array]) -> "LayerRecord":
        """The record of one layer; one slot at a time is unpacked.

        Parameters
        ----------
        model : Model
            The whole model.
        index : int
            Number of the layer.
        flat : array [count]
            Its parameters.
        slots : dict of array [count]
            Its optimizer slots.
        """
        layer = model.layers[index]
        natural = _Natural({slot: partial(layer.unpack, values) for slot, values in slots.items()})
        return cls(model.layer_name(index), layer.to_table(), layer.unpack(flat), natural)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """All arrays with the names under which they are stored."""
        yield from self.parameters.items()
        for slot in self.slots:
            for name, array in self.slots[slot].items():
                yield f"slots/{slot}/{name}", array


class _Natural(Mapping[str, dict[str, Array]]):
    """Arrays in their own shapes, unpacked on each access and not kept."""

    def __init__(self, made: dict[str, Callable[[], dict[str, Array]]]) -> None:
        self._made = made

    def __getitem__(self, key: str) -> dict[str, Array]:
        return self._made[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def set_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates, under the folder `root` of the run's checkpoints."""
    return root / f"step-{step:08d}"


def write_part(root: Path, step: int, rank: int, layers: Iterable[LayerRecord]) -> None:
    """Write this rank's file of a checkpoint, then the note that lists its contents.

    Without the note the checkpoint cannot be committed; an older note of the same step is removed first.

    Parameters
    ----------
    root : Path
        Folder of the run's checkpoints.
    step : int
        Updates contained in the layers.
    rank : int
        This rank.
    layers : iterable of LayerRecord
        The layers that this rank holds.

    Raises
    ------
    OSError
        A write failed (a full disk).
    """
    folder = set_folder(root, step)
    folder.mkdir(parents=True, exist_ok=True)
    withdraw(root, step, rank)
    path = folder / f"rank-{rank:04d}.h5"
    temporary = folder / f".{path.name}.{os.getpid()}"
    names = []
    try:
        with hdf5(temporary, "w", durable=True) as file:
            file.attrs["format"] = FORMAT
            file.attrs["step"] = step
            for layer in layers:
                names.append(layer.name)
                group = file.create_group(f"layers/{layer.name}")
                group.attrs["table"] = json.dumps(layer.table)
                for key, values in layer.arrays():
                    _store(group, key, values)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    note = {"file": path.name, "bytes": path.stat().st_size, "sha256": digest(path), "layers": names}
    write_durably(_note(root, step, rank), json.dumps(note))


def withdraw(root: Path, step: int, rank: int) -> None:
    """Remove the note of rank `rank` for the checkpoint of `step` under `root`: it cannot be committed without.

    Raises `OSError`.
    """
    _note(root, step, rank).unlink(missing_ok=True)


def whole(root: Path, step: int, ranks: Iterable[int]) -> bool:
    """Whether the notes of all `ranks` exist for the checkpoint of `step` under `root`."""
    return all(_note(root, step, rank).exists() for rank in ranks)


def _note(root: Path, step: int, rank: int) -> Path:
    return set_folder(root, step) / f"rank-{rank:04d}.json"


def commit(root: Path, step: int, ranks: Sequence[int], facts: dict[str, Any]) -> None:
    """Complete the checkpoint of `step`: join the ranks' files in index.h5, write the marker, remove older checkpoints.

    Parameters
    ----------
    root : Path
        Folder of the run's checkpoints; the newest `KEPT` complete ones are kept.
    step : int
        Updates contained in the checkpoint.
    ranks : sequence of int
        Ranks that have written a file.
    facts : dict
        Stored in the marker: configuration, data set, model, versions.

    Raises
    ------
    OSError
        A write failed.
    """
    folder = set_folder(root, step)
    notes = [json.loads(_note(root, step, rank).read_text()) for rank in ranks]
    index, temporary = folder / "index.h5", folder / ".index.h5"
    with hdf5(temporary, "w", durable=True) as file:
        file.attrs["format"] = FORMAT
        file.attrs["step"] = step
        file.attrs["facts"] = json.dumps(facts)
        for note in notes:
            for name in note["layers"]:
                file[f"layers/{name}"] = h5py.ExternalLink(note["file"], f"/layers/{name}")
    temporary.rename(index)
    files = [*notes, {"file": index.name, "bytes": index.stat().st_size, "sha256": digest(index), "layers": []}]
    body = {"format": FORMAT, "step": step, "ranks": len(ranks), "files": files, "facts": facts}
    write_durably(folder / "COMMIT.json", json.dumps({"sha256": _sha(body), "body": body}, indent=1))
    before = [old for old in steps(root) if old <= step]  # a newer one was skipped by a resume; it does not count
    count = [old for old in committed(root) if old <= step]
    for old in set(before) - set(count[-KEPT:]):
        discard(root, old)


def discard(root: Path, step: int) -> None:
    """Remove the checkpoint of `step` under `root`, complete or not."""
    shutil.rmtree(set_folder(root, step), ignore_errors=True)


def clear(root: Path) -> None:
    """Remove incomplete checkpoints under `root` before a launch, so that their files do not count for this launch."""
    for step in set(steps(root)) - set(committed(root)):
        discard(root, step)


def _sha(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def steps(root: Path) -> list[int]:
    """Steps of all checkpoints under `root`, complete or not, ascending."""
    return sorted(int(path.name[5:]) for path in root.glob("step-*") if path.name[5:].isdigit())


def committed(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending."""
    return [step for step in steps(root) if (set_folder(root, step) / "COMMIT.json").exists()]


def read_marker(root: Path, step: int) -> dict[str, Any]:
    """The body of the marker of the checkpoint of step `step` under `root`.

    Its checksum covers the format version too: only an intact marker can be of another version.

    Raises
    ------
    DamagedError
        The marker is missing or differs from what was written.
    UserError
        It has another format version.
    """
    path = set_folder(root, step) / "COMMIT.json"
    try:
        marker = json.loads(path.read_text())
        if marker["sha256"] != _sha(marker["body"]) or marker["body"]["step"] != step:
            raise DamagedError(f"{path}: contents do not match their checksum")
        check_format(path, FORMAT, marker["body"].get("format"))
        return marker["body"]
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; the checkpoint was never completed") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: unreadable ({error})") from None


def verify(root: Path, marker: dict[str, Any]) -> None:
    """Compare size and SHA-256 of each file of a checkpoint under `root` with its `marker`. Raises `DamagedError`."""
    folder = set_folder(root, marker["step"])
    for entry in marker["files"]:
        path = folder / entry["file"]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise DamagedError(f"{path}: has {size} bytes, was written with {entry['bytes']}")
            if digest(path) != entry["sha256"]:
                raise DamagedError(f"{path}: contents do not match their SHA-256")
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}") from None


def read_layers(root: Path, marker: dict[str, Any], wanted: Iterable[str]) -> Iterator[LayerRecord]:
    """Read some layers of a verified checkpoint, one at a time.

    Parameters
    ----------
    root : Path
        Folder of the run's checkpoints.
    marker : dict
        Body of the checkpoint's marker.
    wanted : iterable of str
        Names of the layers.

    Raises
    ------
    UserError
        The checkpoint lacks a layer.
    """
    folder = set_folder(root, marker["step"])
    where = {name: folder / entry["file"] for entry in marker["files"] for name in entry["layers"]}
    for name in wanted:
        if name not in where:
            raise UserError(f"resume: {folder} has no layer {name!r}; it holds {', '.join(sorted(where))}")
        with h5py.File(where[name], "r", locking=False) as file:
            group = file[f"layers/{name}"]
            slots = {slot: _arrays(arrays) for slot, arrays in group.get("slots", {}).items()}
            yield LayerRecord(name, json.loads(group.attrs["table"]), _arrays(group), slots)


def _arrays(group: h5py.Group) -> dict[str, Array]:
    return {name: np.asarray(item) for name, item in group.items() if isinstance(item, h5py.Dataset)}


def _store(group: h5py.Group, name: str, values: Array) -> None:
    """Write an array chunk by chunk, each with the checksum that HDF5 would compute.

    HDF5 computes it slowly and holds Python's lock, so that the training thread would stop meanwhile. Here only the
    bookkeeping of a chunk holds the lock; the copy, the checksum and the write do not.
    """
    shape = _chunks(values)
    data = group.create_dataset(name, values.shape, values.dtype, fletcher32=True, chunks=shape)
    chunk = np.zeros(math.prod(shape) * values.itemsize + 4, np.uint8)
    content = chunk[:-4].view(values.dtype).reshape(shape)
    for first in range(0, len(values), shape[0]):
        rows = values[first : first + shape[0]]
        content[: len(rows)] = rows
        content[len(rows) :] = 0  # HDF5 stores whole chunks
        chunk[-4:] = np.frombuffer(fletcher32(chunk[:-4].view(np.uint16)).to_bytes(4, "little"), np.uint8)
        data.id.write_direct_chunk((first,) + (0,) * (values.ndim - 1), chunk)


def _chunks(values: Array) -> tuple[int, ...]:
    """Shape of chunks of at most 1 MiB along the first axis; each has its own checksum."""
    row = max(1, values[:1].nbytes)
    return (min(len(values), max(1, (1 << 20) // row)), *values.shape[1:])

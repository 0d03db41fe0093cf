"""Files that are complete or absent: durable small files, atomic replacement, and HDF5 that survives a full disk."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py


def digest(path: Path) -> str:
    """SHA-256 of the file `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write `text` to the small file `path`; after a crash either the old or the complete new one exists.

    Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the folder `path` to disk, so that renames in it are durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Disk:
    """A file for h5py's Python driver that hides write failures from HDF5.

    When a write fails, HDF5 keeps the objects that it could not flush, prints a traceback for each, and may end in a
    segmentation fault (seen with h5py 3.16). This class keeps the first failure in `error` and drops later writes.
    """

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view and not self.error:
                view = view[self.file.write(view) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int) -> int:
        try:
            self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, data: Any) -> int:
        return self.file.readinto(data)

    def flush(self) -> None:
        pass


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds, else remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def hdf5(path: Path, mode: str, durable: bool = False) -> Iterator[h5py.File]:
    """Open an HDF5 file for writing.

    Parameters
    ----------
    path : Path
        Path of the file.
    mode : {"w", "x", "r+"}
        A new file, a file that must not exist, a file that must exist.
    durable : bool
        Flush the file to disk at the end.

    Raises
    ------
    OSError
        A write failed (a full disk).
    """
    with FileIO(path, {"w": "wb+", "x": "xb+", "r+": "rb+"}[mode]) as file:
        disk = _Disk(file)
        with h5py.File(disk, "r+" if mode == "r+" else "w") as content:
            yield content
        if disk.error:
            raise disk.error
        if durable:
            os.fsync(file.fileno())

"""Folders of IDX files, the format of LeCun's MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ringtmp.data.registry import Array, Request, Source, data_format
from ringtmp.errors import UserError

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> Array:
    """Read the array of the IDX file `path`, plain or .gz. Raises `UserError` if it is damaged."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES or not content[3]:
        raise UserError(f"{path}: is not an IDX file (it begins with {content[:4].hex() or 'nothing'})")
    dtype, dimensions = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{path}: has {len(content)} bytes; its header of shape {shape} makes it {expected}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _pair(folder: Path, prefix: str) -> tuple[Array, Array] | None:
    """Images and labels of the files that begin with `prefix`; None if there are none."""

    def find(what: str) -> Path | None:
        return next((path for path in sorted(folder.glob(f"{prefix}-{what}*")) if "idx" in path.name), None)

    images, labels = find("images"), find("labels")
    if not images and not labels:
        return None
    if images is None or labels is None:
        present = images or labels or folder
        raise UserError(f"{folder}: has {present.name} but no {prefix}-{'labels' if images else 'images'} beside it")
    return read_idx(images), read_idx(labels)


@data_format("a folder of IDX files", matches=lambda spec: Path(spec).is_dir())
def open_idx_folder(request: Request) -> Source:
    """Open the images and labels of a folder: `train-` files, and `t10k-` files as a test set."""
    folder = request.path
    pairs = [pair for pair in (_pair(folder, "train"), _pair(folder, "t10k")) if pair]
    if not pairs:
        raise UserError(
            f"{folder}: no IDX files such as train-images-idx3-ubyte(.gz) and train-labels-idx1-ubyte(.gz) in it"
        )
    return Source(str(folder), *(part for pair in pairs for part in pair), images=True)

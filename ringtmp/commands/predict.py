"""``python -m ringtmp predict runs/NAME SAMPLES OUT.h5``: predict a network's outputs for samples in a file.

SAMPLES is an NPZ or HDF5 file with an array `x` [n, ...] in the form used for training, before normalisation. OUT.h5
receives `probabilities` [n, classes] and `classes` [n] (for text: per position), or `values` [n, outputs]. Both files
are processed in blocks of rows.
"""

import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ringtmp.comm.mpi import StopRequest, run_main, tell_from_rank_0
from ringtmp.config.command_line import checkpoint_parser, new_file
from ringtmp.errors import UserError
from ringtmp.run.inference import TrainedNetwork
from ringtmp.storage.files import hdf5, whole

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@contextmanager
def open_samples(path: Path) -> Iterator[Any]:
    """Open the array `x` of the NPZ or HDF5 file `path`. Raises a `UserError` that names the file."""
    file: h5py.File | None = None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                keys = list(archive)
                x = archive["x"] if "x" in keys else None
        elif path.suffix in (".h5", ".hdf5", ".hdf"):
            file = h5py.File(path, "r", locking=False)
            x, keys = file.get("x"), [*file]
        else:
            raise UserError(f"{path}: expected a .npz or .h5 file with an array x")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        yield _checked(path, x, keys)
    finally:
        if file:
            file.close()


def _checked(path: Path, x: Any, keys: list[str]) -> Any:
    if x is None:
        raise UserError(f"{path}: has no 'x'; it holds {', '.join(keys) or 'nothing'}")
    if np.dtype(getattr(x, "dtype", object)).kind not in "fiub" or not x.shape or not math.prod(x.shape):
        raise UserError(f"{path}: x is not an array of numbers with at least one sample")
    return x


def predict(net: TrainedNetwork, source: Path, target: Path) -> int:
    """Write the predictions of `net` for the samples in `source` to `target`; return the number of samples.

    Raises `UserError` for a bad source and `OSError` if `target` cannot be written.
    """
    with open_samples(source) as x, whole(target) as temporary, hdf5(temporary, "x") as file:
        file.attrs["run"], file.attrs["step"] = net.path, net.step
        for first in range(0, len(x), net.at_once()):
            made = net.predict(np.asarray(x[first : first + net.at_once()]))
            name = "probabilities" if net.is_classes else "values"
            _put(file, name, first, len(x), made)
            if net.is_classes:
                _put(file, "classes", first, len(x), made.argmax(axis=-1))
        return len(x)


def _put(file: h5py.File, name: str, first: int, total: int, rows: Any) -> None:
    if name not in file:
        file.create_dataset(name, (total, *rows.shape[1:]), rows.dtype)
    file[name][first : first + len(rows)] = rows


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Predict on rank 0 of `comm`; return the exit status. `stop` is not used."""

    def report() -> str:
        parser = checkpoint_parser("ringtmp predict", __doc__.split(": ", 1)[1])
        parser.add_argument("samples", metavar="SAMPLES", help=".npz or .h5 file with x")
        parser.add_argument("out", metavar="OUT.h5", help="file to write; it must not exist")
        options = parser.parse_args(sys.argv[1:])
        out = new_file(options.out)
        try:
            count = predict(TrainedNetwork(options.checkpoint), Path(options.samples), out)
        except OSError as error:
            raise UserError(f"out: cannot write {options.out}: {error.strerror or error}") from None
        return f"{count:,} samples: written to {options.out}"

    return tell_from_rank_0(comm, report)


if __name__ == "__main__":
    run_main(main)

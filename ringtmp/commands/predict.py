"""The command `ringtmp predict`: the outputs of a trained network for samples in a file."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringtmp.commands._checkpoint import checkpoint_argument
from ringtmp.commands._output import new_file, writing
from ringtmp.config.click_command import Command, argument
from ringtmp.errors import UserError

if TYPE_CHECKING:
    import h5py

    from ringtmp.run.inference import TrainedNetwork

HELP = """Predict a network's outputs for samples in a file.

SAMPLES is an NPZ or HDF5 file with an array x [n, ...] in the form used for training, before normalisation. OUT.h5
receives probabilities [n, classes] and classes [n] (for text: per position), or values [n, outputs]. Both files are
processed in blocks of rows."""
EXAMPLES = "ringtmp predict runs/first samples.npz predicted.h5"


@click.command("predict", cls=Command, help=HELP, short_help="Predict outputs for samples in a file", examples=EXAMPLES)
@checkpoint_argument
@argument("samples", metavar="SAMPLES", help=".npz or .h5 file with x")
@argument("out", metavar="OUT.h5", help="file to write; it must not exist")
def command(checkpoint: str, samples: str, out: str) -> None:
    from ringtmp.run.inference import TrainedNetwork

    path = new_file(out)
    with writing(path):
        count = predict(TrainedNetwork(checkpoint), Path(samples), path)
    click.echo(f"{count:,} samples: written to {out}")


@contextmanager
def open_samples(path: Path) -> Iterator[Any]:
    """Open the array `x` of the NPZ or HDF5 file `path`. Raises a `UserError` that names the file."""
    import h5py
    import numpy as np

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
    import numpy as np

    if np.dtype(getattr(x, "dtype", object)).kind not in "fiub" or not x.shape or not math.prod(x.shape):
        raise UserError(f"{path}: x is not an array of numbers with at least one sample")
    return x


def predict(net: "TrainedNetwork", source: Path, target: Path) -> int:
    """Write the predictions of `net` for the samples in `source` to `target`; return the number of samples.

    Raises `UserError` for a bad source and `OSError` if `target` cannot be written.
    """
    import numpy as np

    from ringtmp.storage.files import hdf5, whole

    with open_samples(source) as x, whole(target) as temporary, hdf5(temporary, "x") as file:
        file.attrs["run"], file.attrs["step"] = net.path, net.step
        for first in range(0, len(x), net.at_once()):
            made = net.predict(np.asarray(x[first : first + net.at_once()]))
            name = "probabilities" if net.is_classes else "values"
            _put(file, name, first, len(x), made)
            if net.is_classes:
                _put(file, "classes", first, len(x), made.argmax(axis=-1))
        return len(x)


def _put(file: "h5py.File", name: str, first: int, total: int, rows: Any) -> None:
    if name not in file:
        file.create_dataset(name, (total, *rows.shape[1:]), rows.dtype)
    file[name][first : first + len(rows)] = rows

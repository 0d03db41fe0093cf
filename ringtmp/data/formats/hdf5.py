"""HDF5 files, which may be larger than memory."""

import h5py

from ringtmp.data.registry import Request, Source, data_format, source_by_keys
from ringtmp.errors import UserError


@data_format("an .h5 file", suffixes=(".h5", ".hdf5", ".hdf"))
def open_hdf5(request: Request) -> Source:
    """Open the data sets x, y and perhaps x_test, y_test of an HDF5 file, whose rows are read while training."""
    path = request.path
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r", locking=False)  # stays open
        return source_by_keys(path, [key for key in file if isinstance(file[key], h5py.Dataset)], file.__getitem__)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: is not a whole HDF5 file: {error}") from None

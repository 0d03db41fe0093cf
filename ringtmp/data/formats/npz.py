"""NumPy's .npz files."""

import zipfile
import zlib

import numpy as np

from ringtmp.data.registry import Request, Source, data_format, source_by_keys
from ringtmp.errors import UserError


@data_format("a .npz file", suffixes=(".npz",))
def open_npz(request: Request) -> Source:
    """Open the arrays x, y and perhaps x_test, y_test of an .npz file."""
    path = request.path
    try:
        with np.load(path, allow_pickle=False) as file:
            return source_by_keys(path, list(file), file.__getitem__)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: is not a whole .npz file of numbers: {error}") from None

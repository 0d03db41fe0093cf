"""The one place for compilation: Numba's flags, and where compiled code is kept between runs."""

import os
import socket
import tempfile
from pathlib import Path


def _cache_folder() -> str:
    """A folder on which only this user and this host write: Numba's cache is not safe against several writers."""
    try:
        home = Path.home() / ".cache" / "ringtmp" / "numba" / socket.gethostname()
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return str(home)
    except (OSError, RuntimeError):  # no such folder, or no home at all
        pass
    # The files hold pickles, so a folder in a world-writable place must be ours alone.
    shared = Path(tempfile.gettempdir()) / f"ringtmp-numba-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.getuid() or shared.stat().st_mode & 0o077:
        raise PermissionError(f"{shared} belongs to somebody else; set NUMBA_CACHE_DIR")
    return str(shared)


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = _cache_folder()

import numba  # noqa: E402 - reads the variable once, when imported

CACHE = Path(os.environ["NUMBA_CACHE_DIR"])

# Sums may be reordered into vectors and multiplications fused, the same way every time for the same shapes. Never
# "nnan" or "ninf": a NaN must stay one, or a run that has diverged goes on unseen.
FAST = {"contract", "reassoc", "nsz"}

jit = numba.njit(cache=True, error_model="numpy", fastmath=FAST)

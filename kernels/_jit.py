"""The one place for compilation: Numba's flags, and where compiled code is kept between runs."""

import hashlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any


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


def _version() -> str:
    """Digest of all kernels' sources. Numba looks at a function's own file only, not at those of what it calls."""
    sources = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:12]


CACHE = Path(os.environ.get("NUMBA_CACHE_DIR") or _cache_folder()) / f"ringtmp-{_version()}"
_before = os.environ.get("NUMBA_CACHE_DIR")
os.environ["NUMBA_CACHE_DIR"] = str(CACHE)

import numba  # noqa: E402 - reads the variable once, when imported

config: Any = numba.core.config
config.CACHE_DIR = str(CACHE)  # if it had been imported before
if _before is None:
    del os.environ["NUMBA_CACHE_DIR"]
else:
    os.environ["NUMBA_CACHE_DIR"] = _before  # processes that this one starts find their own way

# Sums may be reordered into vectors and multiplications fused, the same way every time for the same shapes. Never
# "nnan" or "ninf": a NaN must stay one, or a run that has diverged goes on unseen.
FAST = {"contract", "reassoc", "nsz"}

# Without Python's lock, so that threads of a rank work side by side.
jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)

# A kernel that becomes part of those that call it. Called as a plain `jit` it would come as a copy that LLVM has
# optimised twice: half as fast, and with other roundings; which of the two ran depended on which was loaded first.
inlined = numba.njit(inline="always", error_model="numpy", fastmath=FAST)

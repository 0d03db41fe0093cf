"""The one place for compilation: Numba's flags, and where compiled code is kept between runs."""

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
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
        raise PermissionError(f"{shared} belongs to another user; set NUMBA_CACHE_DIR")
    return str(shared)


_FOLDER = Path(__file__).resolve().parent


def _version() -> str:
    """Digest of the sources of this package. Numba looks at a function's own file only, not at those of its callees."""
    sources = sorted(_FOLDER.rglob("*.py"))
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
# "nnan" or "ninf": a NaN must stay NaN, or a run that has diverged continues unnoticed.
FAST = {"contract", "reassoc", "nsz"}

# A kernel that becomes part of its callers. Called as a plain `jit` it would come as a copy that LLVM has
# optimised twice: half as fast, and with other roundings; which of the two ran depended on which was loaded first.
inlined = numba.njit(inline="always", error_model="numpy", fastmath=FAST)


def jit(function: Callable[..., Any], counts_references: bool = True) -> Any:
    """Compile a function when it is called, without Python's lock, so that threads of a rank work side by side.

    The compiled code is kept between runs until its source changes, or that of another function which it calls.

    Parameters
    ----------
    function : callable
    counts_references : bool
        Whether the code counts references to arrays, and so may make new ones. Without that, inlined functions that are
        given tuples of many arrays cost nothing: the simulator's loop runs 8 times as many actions a second.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": FAST}
    options["_nrt"] = counts_references  # an option of Numba that its type stubs do not know
    compiled: Any = numba.njit(**options)(function)
    if not config.DISABLE_JIT and not _is_ours(function.__code__.co_filename):
        # `CACHE` has the sources of this package in its name; of other files Numba would see the function's own alone.
        compiled._cache._cache_file._source_stamp = stamp_of(function)
    return compiled


@cache
def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_FOLDER)


@cache
def _digest(file: str) -> str:
    return "" if _is_ours(file) else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def stamp_of(function: Callable[..., Any]) -> str:
    """Digest of what a function outside this package is compiled from; the same for all functions inside.

    That is its own file, the files of the compiled functions that it calls, and theirs, and the plain constants that
    these functions read, which may come from further modules.

    Parameters
    ----------
    function : callable
        The Python function, before compilation.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    return hashlib.sha256("\n".join(_sources(function, set())).encode()).hexdigest()[:16]


def _sources(function: Callable[..., Any], seen: set[Any]) -> list[str]:
    """Facts of a function and of all that it calls, each function once."""
    if function in seen or _is_ours(function.__code__.co_filename):
        return []
    seen.add(function)
    facts = [_digest(function.__code__.co_filename)]
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        found: list[Any] = [value]
        if isinstance(value, ModuleType):
            found = [vars(value)[each] for each in names if each in vars(value)]
        for each in found:
            if hasattr(each, "py_func"):
                facts += _sources(each.py_func, seen)
            elif isinstance(each, bool | int | float | str | tuple):
                facts.append(f"{name} {each!r}")
    return facts


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that a function and those within it read."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*(_names(each) for each in inner))

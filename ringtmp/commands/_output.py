"""The file that a command writes: it must not exist, and a failure to write it is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringtmp.errors import UserError


def new_file(text: str) -> Path:
    """The path `text` of a file to write. Raises `UserError` if it exists."""
    if Path(text).exists():
        raise UserError(f"out: {text} exists already; give another name")
    return Path(text)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes the file `path`: its `OSError` becomes a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out: cannot write {path}: {error.strerror or error}") from None

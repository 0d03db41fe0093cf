"""Versions of stored formats: a name with a number, such as `ringtmp-trace-2`, stored in each file."""

from pathlib import Path

from ringtmp.errors import UserError


def check_format(path: Path, expected: str, found: object) -> None:
    """Check the version of a stored format.

    Parameters
    ----------
    path : Path
        File or folder, for the message.
    expected : str
        Name and number that this version of ringtmp reads and writes.
    found : object
        Stored name and number; None: nothing is stored.

    Raises
    ------
    UserError
        `found` is another version.
    """
    if found != expected:
        raise UserError(f"{path}: expected format {expected}, got {'none' if found is None else found}")

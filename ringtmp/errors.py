"""The two exceptions that end a run with one line, and that line on standard error."""

import socket
import sys
from contextlib import suppress


class UserError(Exception):
    """Bad input: its message is one clear line that names the key or file and what was expected.

    The command line prints that line once on any number of ranks and exits with status 2; nothing has been written or
    overwritten by then.
    """


class RunFailure(Exception):  # noqa: N818 - the end of a run, not an error in the code
    """A run that cannot continue: its message says what happened and where; the job ends with status 1."""


def print_line(text: object) -> None:
    """Print `text` on standard error, as one line that begins with the program's name."""
    with suppress(OSError):  # standard error may go to a full disk
        print(f"ringtmp: {text}", file=sys.stderr, flush=True)


def warn(text: str, rank: int) -> None:
    """Print the warning `text` of rank `rank`; the run continues."""
    print_line(f"warning: rank {rank} on {socket.gethostname()} {text}")

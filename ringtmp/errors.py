"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input: its message is one clear line that names the key or file and what was expected.

    The command line prints that line once, whatever the rank count, and leaves exit status 2; nothing has been
    written or overwritten by then.
    """


class RunFailure(Exception):  # noqa: N818 - what ended a run, not a fault in the code
    """A run that cannot go on: its message names what happened and where; the job ends with status 1."""

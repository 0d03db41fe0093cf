"""TOML files of settings."""

import tomllib
from pathlib import Path
from typing import Any

from ringtmp.errors import UserError


def read_toml(path: str, key: str = "config") -> dict[str, Any]:
    """The tables of the TOML file `path`.

    Raises a `UserError` that begins with `key` and names the file if it is missing or malformed.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} is not valid TOML: {error}") from None

"""What the commands that use a trained network have in common."""

from pathlib import Path

from ringtmp.config.click_command import argument
from ringtmp.errors import UserError

checkpoint_argument = argument(
    "checkpoint", help="run folder (its newest checkpoint), or runs/NAME/checkpoints/step-..."
)


def new_file(text: str) -> Path:
    """The path `text` of a file to write. Raises `UserError` if it exists."""
    if Path(text).exists():
        raise UserError(f"out: {text} exists already; give another name")
    return Path(text)

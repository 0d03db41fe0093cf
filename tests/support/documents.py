"""The README and the pages of docs/ as what a reader would do with them: commands, scripts and files, in their order.

Before a block a comment may stand that says how it is run here, and why:

    <!-- not run: REASON -->      left out
    <!-- stand-in: REASON -->     run, with a stand-in for a program that is not installed
    <!-- status 2: REASON -->     run, and each command must end with this status
    <!-- file: NAME -->           not run, but saved as this file, as the text says
"""

import re
from pathlib import Path
from typing import NamedTuple

from launching import ROOT

_FENCE = re.compile(
    r"(?:<!-- (?P<note>[^>]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of a page.

    Attributes
    ----------
    language : str
        "sh", "python", "toml", "text".
    text : str
    note : str
        What the comment before it says; empty: none.
    """

    language: str
    text: str
    note: str

    @property
    def left_out(self) -> bool:
        """Whether a comment says that it is not run."""
        return self.note.startswith("not run:")

    @property
    def file(self) -> str:
        """File that the reader is told to save it as; empty: none."""
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else ""

    @property
    def status(self) -> int:
        """Exit status of its commands."""
        found = re.match(r"status (\d+):", self.note)
        return int(found[1]) if found else 0


def pages() -> list[Path]:
    """The README, CONTRIBUTING and every page of docs/ that is written by hand, relative to the repository."""
    found = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))
    return [Path("README.md"), Path("CONTRIBUTING.md"), *(path for path in found if not path.parts[1].startswith("_"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order; directives such as ``toctree`` are none."""
    found = _FENCE.finditer((ROOT / page).read_text())
    return [Block(each["language"], each["text"], each["note"] or "") for each in found]


def commands(page: Path) -> list[str]:
    """All lines of commands of a page that are run."""
    run = (block for block in blocks(page) if block.language == "sh" and not block.left_out)
    return [line for block in run for line in block.text.splitlines() if line]

"""Docstrings as reStructuredText: their drawings, listings and code stay as they are typed.

The docstrings of this project are plain text. What is indented, a paragraph in which some lines are indented deeper
than the first (the listing of a folder), and one with gaps in its lines (a table, a drawing) are shown as they stand;
everything else is text, in which `backquotes` name code and link to it where it has a page.
"""

import re
from typing import Any

from sphinx.application import Sphinx


def as_rest(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText, up to its first section (Parameters, Returns, ...)."""
    underlines = (n for n, line in enumerate(lines) if n and re.fullmatch(r"-{3,}", line.strip()))
    end = next(underlines, len(lines) + 1) - 1
    made: list[str] = []
    for paragraph in _paragraphs(lines[:end]):
        if _is_typed(paragraph):
            made += ["::", "", *(f"    {line}" for line in paragraph), ""]
        else:
            made += [*(line.replace("|", "\\|") for line in paragraph), ""]
    return [*made, *lines[end:]]


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Groups of lines without a blank one; a typed group that follows another is one with it."""
    groups: list[list[str]] = []
    blank = True
    for line in lines:
        if not line.strip():
            blank = True
        elif blank and not (groups and line.startswith("  ") and groups[-1][0].startswith("  ")):
            groups.append([line])
            blank = False
        else:
            groups[-1] += ["", line] if blank else [line]
            blank = False
    return groups


def _is_typed(paragraph: list[str]) -> bool:
    """Whether a paragraph is a drawing, a listing or code, and neither a list nor a doctest."""
    if re.match(r"\s*([-*]|\d+\.|>>>|:\w+|\.\.) ?", paragraph[0]):
        return False
    return any(line.startswith("  ") or re.search(r"\S {3,}\S", line) for line in paragraph)


def process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring, before napoleon reads its sections."""
    lines[:] = as_rest(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Process docstrings first of all."""
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

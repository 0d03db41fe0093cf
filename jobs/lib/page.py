"""Tables: shown on the terminal, and kept for a Markdown file."""

import os
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Page(Console):
    """A terminal that remembers the tables it has shown."""

    def __init__(self, width: int) -> None:
        super().__init__(width=max(width, int(os.environ.get("COLUMNS", 0))))
        self.tables: list[Table] = []

    def print(self, *objects: Any, **more: Any) -> None:
        """Show, and remember tables."""
        self.tables += [each for each in objects if isinstance(each, Table)]
        super().print(*objects, **more)

    def markdown(self) -> str:
        """All tables."""
        return "\n".join(map(markdown, self.tables))


def markdown(table: Table) -> str:
    """A table as Markdown has it."""

    def words(cell: Any) -> str:
        return Text.from_markup(str(cell)).plain.replace("|", "\\|").replace("\n", " ")

    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    lines = [
        [words(column.header) for column in table.columns],
        ["--:" if column.justify == "right" else "---" for column in table.columns],
        *([words(cell) for cell in row] for row in rows),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{words(table.title)}**\n\n{text}\n" if table.title else f"{text}\n"


def make_table(
    title: str, heads: Sequence[str], left: Collection[str] = (), wrap: bool = True, caption: str | None = None
) -> Table:
    """An empty table.

    Parameters
    ----------
    title : str
        Above the table.
    heads : sequence of str
        Of the columns.
    left : collection of str
        Heads of the columns that are aligned left; all others are aligned right.
    wrap : bool
        Whether cells may be broken into lines.
    caption : str, optional
        Below the table.
    """
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right", no_wrap=not wrap)
    return table


def benchmark_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of `jobs.lib.compare.compared` and `measured`, side by side."""
    table = make_table(title, ("case", "ours", "peer", "unit", "ratio", "quartiles", "aim"), ("case", "unit"))
    for column in table.columns[1:]:
        column.no_wrap = True
    for row in rows:
        table.add_row(
            row["case"],
            _number(row["ours"]),
            _number(row["peer"]),
            row["unit"],
            _number(row["ratio"]),
            f"{_number(row['low'])} to {_number(row['high'])}",
            _number(row["aim"]),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

"""Tables: shown on the terminal, and kept for a Markdown file."""

import os
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Page(Console):
    """A terminal of at least `width` columns that remembers the tables it has shown."""

    def __init__(self, width: int) -> None:
        super().__init__(width=max(width, int(os.environ.get("COLUMNS", 0))))
        self.tables: list[Table] = []

    def print(self, *objects: Any, **more: Any) -> None:
        """Print `objects`, and remember the tables among them; `more` goes to Rich's `Console.print`."""
        self.tables += [each for each in objects if isinstance(each, Table)]
        super().print(*objects, **more)

    def markdown(self) -> str:
        """All tables as Markdown."""
        return "\n".join(map(markdown, self.tables))


def markdown(table: Table) -> str:
    """The Rich table `table` as Markdown."""

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
        Text above the table.
    heads : sequence of str
        Heads of the columns.
    left : collection of str
        Heads of the columns that are aligned left; all others are aligned right.
    wrap : bool
        Whether cells may be broken into lines.
    caption : str, optional
        Text below the table.
    """
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right", no_wrap=not wrap)
    return table


def benchmark_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Table with the title `title` of `rows` made by `ringtmp.jobs.lib.compare.compared` and `measured`."""
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

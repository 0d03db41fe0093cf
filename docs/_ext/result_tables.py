"""Tables of results, made from the files that benchmarks and experiments have left; none is typed.

    ```{benchmark} ours
    ```

shows the rows of jobs/bench/results/ours.json, with the machine and the date. A body gives the columns instead of the
usual ones, as ``head = format``, where the format names fields of a row:

    ```{benchmark} idle
    :where: ranks = 8
    ranks = {ranks}
    idle = {idle:.1%} ({low:.1%} to {high:.1%})
    ```

With ``:by: way`` the heads are the values of the field `way`, and the first column of the body names the rows.

    ```{experiment} balance
    ```

shows the question, the figure, the tables and the origin of jobs/experiments/results/balance.h5, and ``claims`` the
table of claims that follow from all experiments. The role ``measured`` puts one number into a sentence, of the first
row whose `case` contains a text, or without one of the file's provenance:

    {measured}`kernels[MLP 6 x 2048]: {ratio:.2f}`   {measured}`kernels: {geometric_mean:.2f}`
"""

import json
import re
import string
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

JOBS = Path(__file__).resolve().parents[2] / "jobs"

log = logging.getLogger(__name__)

Row = dict[str, Any]


class _Blank(string.Formatter):
    """Formats fields that are missing, None or not a number as nothing."""

    def get_value(self, key: Any, args: Any, kwargs: Any) -> Any:
        return kwargs.get(key)

    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None or value != value else super().format_field(value, format_spec)


def number(value: float | None) -> str:
    """`value` with three digits, and thousands with commas; nothing for None."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def usual(rows: list[Row]) -> str:
    """Rows of `jobs.lib.compare`: what was measured, beside what, how many times as good, and the aim."""
    made = []
    for row in rows:
        beside, ratio, aim = row["peer"] is not None, row["ratio"], row["aim"]
        spread = f"{number(row['low'])} to {number(row['high'])}"
        verdict = "" if aim is None or ratio is None else "reached" if ratio >= (aim if beside else 1) else "**short**"
        made.append(
            [
                row["case"],
                f"{number(row['ours'])} {row['unit']}" + ("" if beside else f" ({spread})"),
                f"{number(row['peer'])} {row['unit']}" if beside else "",
                f"{number(ratio)} ({spread})" if beside else "",
                number(aim),
                verdict,
            ]
        )
    return table(["case", "measured", "beside", "ratio", "aim", ""], made)


def with_columns(rows: list[Row], columns: dict[str, str]) -> str:
    """A table with a column for each of `columns`: heads and formats of a row's fields."""
    form = _Blank()
    return table(list(columns), [[form.format(text, **row) for text in columns.values()] for row in rows])


def by_field(rows: list[Row], columns: dict[str, str], field: str) -> str:
    """A table with a row for each value of the first of `columns`, and a column for each value of `field`."""
    (head, name), (_, cell) = columns.items()
    form = _Blank()
    values = list(dict.fromkeys(row[field] for row in rows))
    lines: dict[str, dict[Any, str]] = {}
    for row in rows:
        lines.setdefault(form.format(name, **row), {})[row[field]] = form.format(cell, **row)
    return table(
        [head, *map(str, values)], [[line, *(lines[line].get(value, "") for value in values)] for line in lines]
    )


def origin(found: Row, command: str) -> str:
    """One line: when, where and how again."""
    text = f"Measured on {found.get('date', '?')} on {found.get('cpu', '?')}, {found.get('cores', '?')} cores"
    peer = f", beside {found['peer']}" if "peer" in found else ""
    return f"*{text}{peer}. Again with `{command}`.*"


class Benchmark(SphinxDirective):
    """The directive ``benchmark``."""

    required_arguments = 1
    has_content = True
    option_spec = {"by": directives.unchanged, "where": directives.unchanged, "command": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The table, and where it comes from."""
        path = JOBS / "bench" / "results" / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        found = json.loads(path.read_text())
        rows = found["rows"]
        if "where" in self.options:
            field, value = (part.strip() for part in self.options["where"].split("="))
            rows = [row for row in rows if value in str(row.get(field))]
        columns = {head.strip(): text.strip() for head, _, text in (line.partition("=") for line in self.content)}
        if not rows:
            raise self.error(f"{path.name}: no row fits")
        if not columns:
            text = usual(rows)
        elif "by" in self.options:
            text = by_field(rows, columns, self.options["by"])
        else:
            text = with_columns(rows, columns)
        command = self.options.get("command", f"python -m jobs.bench.{self.arguments[0]}")
        return self.parse_text_to_nodes(f"{text}\n\n{origin(found['provenance'], command)}\n")


class ExperimentPage(SphinxDirective):
    """The directive ``experiment``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Question, figure, tables and origin."""
        from ringtmp.jobs.experiments.report import origin as origin_of
        from ringtmp.jobs.lib.experiment import find_experiments
        from ringtmp.jobs.lib.store import places, read

        name = self.arguments[0]
        result, figure = places(name)
        tables = result.with_suffix(".md")
        paragraphs = find_experiments()[name].question.split("\n\n")
        text = ["\n\n".join(" ".join(part.split()) for part in paragraphs[:1] + paragraphs[2:])]
        if figure.exists():
            text.append(f"![{name}](/../{figure.relative_to(JOBS.parent)})")
        for path in (result, tables, figure):
            self.env.note_dependency(str(path))
        text.append(tables.read_text())
        text.append(f"*{origin_of(read(result))}. Again with `ringtmp experiment {name}`.*")
        return self.parse_text_to_nodes("\n\n".join(text))


class Measured(SphinxRole):
    """The role ``measured``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The number as text."""
        match = re.fullmatch(r"(\w+)(?:\[(.+)\])?: (.+)", self.text)
        path = JOBS / "bench" / "results" / f"{match[1] if match else ''}.json"
        found = json.loads(path.read_text()) if path.exists() else {"provenance": {}, "rows": []}
        rows = [row for row in found["rows"] if match and match[2] and match[2] in row["case"]]
        fields = found["provenance"] if match and not match[2] else rows[0] if rows else {}
        self.env.note_dependency(str(path))
        text = _Blank().format(match[3], **fields) if match else ""
        if not text:
            log.warning("measured: %s names no number", self.text, location=self.get_location())
        return [nodes.Text(text)], []


class Claims(SphinxDirective):
    """The directive ``claims``."""

    def run(self) -> list[nodes.Node]:
        """The table of claims."""
        from ringtmp.jobs.experiments.report import claims, results
        from ringtmp.jobs.lib.store import places

        found = results()
        for name in found:
            self.env.note_dependency(str(places(name)[0]))
        return self.parse_text_to_nodes(claims(found))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("benchmark", Benchmark)
    app.add_directive("experiment", ExperimentPage)
    app.add_directive("claims", Claims)
    app.add_role("measured", Measured())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""All experiments on one page, with the claims that follow from them.

Usage: ringtmp experiment report [--from FOLDER] [--out FILE]

Gathers what the experiments have left (results, tables, pictures) into one HTML file that needs nothing else
(jobs/figures/report.html). It begins with the table of claims, each row with how it was obtained (measured, on emulated
nodes, simulated) and the command that repeats it. With --from the results and pictures of one folder are taken, where
`--out FOLDER` of the experiments has put them.
"""

import base64
import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringtmp.jobs.lib.experiment import Experiment, Table, experiment, find_experiments
from ringtmp.jobs.lib.launch import ROOT
from ringtmp.jobs.lib.store import places, read, sources

PAGE = ROOT / "jobs" / "figures" / "report.html"
Found = dict[str, Table]  # results by the name of their experiment

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #eee; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #bbb; } td.r, th.r { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } code { background: #f4f4f4; padding: 0 .2rem; } .from { color: #777; font-size: 12px; }
nav a { margin-right: 1rem; }
"""


def results(folder: str | None = None) -> Found:
    """Results of all experiments, by name: the project's, or those in `folder`."""
    paths = {name: places(name, folder)[0] for name in find_experiments()}
    return {name: read(path) for name, path in paths.items() if path.exists()}


def claims(found: Found) -> str:
    """The table of claims in Markdown, from the results `found`."""
    lines = [
        "| the ring | the others | how | again with `ringtmp experiment` ... |",
        "|---|---|---|---|",
    ]
    for name, each in find_experiments().items():
        if name in found:
            lines += [
                f"| {ring} | {others} | {how} | `{again}` |" for ring, others, how, again in each.claims(found[name])
            ]
    return "\n".join(lines) + "\n"


# ---- the page --------------------------------------------------------------------------------------------------------


def as_html(markdown: str) -> str:
    """HTML of `markdown`, as this project writes it: tables, bold and code."""
    made: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            if made and made[-1] == "</tbody>":
                made[-1] = "</tbody></table>"
            made.append(f"<p>{_inline(line)}</p>" if line.strip() else "")
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if all(re.fullmatch(r"-+:?", cell) for cell in cells):
            continue
        first = not made or made[-1] != "</tbody>"
        tag = "th" if first else "td"
        row = "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells)
        if first:
            made += [f"<table><thead><tr>{row}</tr></thead><tbody>", "</tbody>"]
        else:
            made.insert(-1, f"<tr>{row}</tr>")
    if made and made[-1] == "</tbody>":
        made[-1] = "</tbody></table>"
    return "\n".join(made)


def _inline(text: str) -> str:
    text = html.escape(text.replace("\\|", "|"))
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def page(found: Found, table: str, folder: str | None) -> str:
    """The whole page.

    Parameters
    ----------
    found : dict
        Results by the name of their experiment.
    table : str
        The table of claims in Markdown.
    folder : str or None
        Folder of results and figures; None: the project's.
    """
    sections, names = [], []
    for name, each in find_experiments().items():
        result, figure = places(name, folder)
        tables = result.with_suffix(".md")
        if name not in found and not figure.exists():
            continue
        names.append(name)
        about = each.question.split("\n\n")
        text = [f'<h2 id="{name}">{name}</h2>']
        text += [f"<p>{_inline(' '.join(part.split()))}</p>" for part in about[:1] + about[2:]]
        if figure.exists():
            data = base64.b64encode(figure.read_bytes()).decode()
            text.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        if tables.exists():
            text.append(as_html(tables.read_text()))
        if name in found:
            text.append(f'<p class="from">{html.escape(origin(found[name]))}</p>')
        text.append(f"<p>Again with <code>ringtmp experiment {name}</code>.</p>")
        sections.append("\n".join(text))
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>RingTMP: the evidence</title>'
        f"<style>{STYLE}</style><body><h1>RingTMP: the evidence</h1><nav>{links}</nav>\n{as_html(table)}\n"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def origin(table: dict[str, Any]) -> str:
    """Date, machine and commit of the results `table`, as text."""
    parts = []
    for each in sources(table):
        if "commit" in each:
            parts.append(
                f"{each['date']}, commit {each['commit']}, {each.get('cpu', '')}, {each.get('cores', '?')} cores"
            )
    return "; ".join(dict.fromkeys(parts)) or json.dumps(table.get("provenance") or {})[:300]


@experiment
class Report(Experiment):
    """One page with the tables, figures and claims of all experiments."""

    name, about, order = "report", "all of them on one page", 130

    def main(self, words: Sequence[str]) -> int:
        """Gather and write; the exit status."""
        parser = self.parser()
        parser.add_argument("--from", dest="folder", help="folder of results and pictures, instead of the project's")
        parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
        parser.add_argument("--out", help="HTML file to write [jobs/figures/report.html]")
        options = parser.parse_args(words)
        found = results(options.folder)
        if not found:
            print(f"ringtmp: report: no results in {options.folder or 'the project'}", file=sys.stderr)
            return 2
        table = claims(found)
        path = Path(options.out or PAGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(found, table, options.folder))
        print(f"{len(found)} experiments: written to {path}")
        return 0

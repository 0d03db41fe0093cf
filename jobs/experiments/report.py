"""All experiments on one page, and the claims they bear out in the README.

Usage: python -m jobs.experiments report [--from FOLDER] [--out FILE]

Gathers what the experiments have left (results, tables, pictures) into one HTML file that needs nothing else
(jobs/figures/report.html), and writes the table of claims between the two `claims` marks of the README, each row with
how it was come by (measured, on emulated nodes, simulated) and the command that measures it again. With --from the
results and pictures of one folder are taken, where `--out FOLDER` of the experiments has put them, and no README
is written.
"""

import argparse
import base64
import html
import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.bench.report import ROOT
from jobs.experiments.__main__ import EXPERIMENTS
from jobs.experiments.scalability import best
from jobs.experiments.store import places, read, sources

PAGE = ROOT / "jobs" / "figures" / "report.html"
MARKS = "<!-- claims -->\n", "<!-- /claims -->"
Found = dict[str, dict[str, Any]]  # results by module
Claim = tuple[str, str, str, str]  # what the ring does, what others do, how it was come by, name of the experiment

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #eee; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #bbb; } td.r, th.r { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } code { background: #f4f4f4; padding: 0 .2rem; } .from { color: #777; font-size: 12px; }
nav a { margin-right: 1rem; }
"""


# ---- the claims -----------------------------------------------------------------------------------------------------


def _rows(found: Found, module: str, key: str = "rows") -> list[dict[str, Any]]:
    return found.get(module, {}).get(key, [])


def _efficiency(found: Found) -> list[Claim]:
    claims = []
    for case in found.get("efficiency", {}).get("cases", []):
        if case["ranks"] != max(each["ranks"] for each in found["efficiency"]["cases"]):
            continue
        rows = {row["way"]: row for row in case["rows"]}
        ring, others = rows.pop("ring"), [f"{way} {row['wait']:.0%}" for way, row in rows.items()]
        claims.append(
            (
                f"{case['ranks']} nodes, {case['name']}: workers of the ring wait {ring['wait']:.0%} of the time",
                ", ".join(others),
                f"emulated nodes, {case['provenance']['cores']} cores",
                "efficiency",
            )
        )
    return claims


def _progress(found: Found) -> list[Claim]:
    rows = {row["way"]: row for row in _rows(found, "progress")}
    keys = [key for key in rows.get("bsp", {}) if re.fullmatch(r"samples to \S+: times bsp", key)]
    if not keys or "ring synchronous" not in rows:
        return []
    key = keys[-1]

    def times(way: str) -> str:
        median = rows[way][key][0]
        return "never" if median is None else f"{median:.2f}"

    others = ", ".join(f"{way} {times(way)}" for way in rows if way not in ("bsp", "ring synchronous"))
    what = key.split(":")[0].removeprefix("samples to ")
    return [
        (
            f"until a loss of {what} the ring needs {times('ring synchronous')} times the samples of bsp",
            others,
            "emulated nodes",
            "progress",
        )
    ]


def _scalability(found: Found) -> list[Claim]:
    claims: list[Claim] = []
    for case in found.get("scalability", {}).get("cases", []):
        nodes = max(row["nodes"] for row in case["rows"])
        scalings = list(dict.fromkeys(row["scaling"] for row in case["rows"]))
        there = {scaling: best(case["rows"], scaling, nodes) for scaling in scalings}
        ways = {
            way: " / ".join(f"{there[scaling][way]['speed_up']:.1f}" for scaling in scalings)
            for way in there[scalings[0]]
        }
        rings = ", ".join(f"{way} {times}" for way, times in ways.items() if "ring" in way)
        others = ", ".join(f"{way} {times}" for way, times in ways.items() if "ring" not in way)
        paced = case["name"].partition(",")[0] != "full speed"
        how = f"{'emulated nodes' if paced else 'measured'}, {case['provenance']['cores']} cores"
        what = f"times one node, {' / '.join(scalings)} scaling, {nodes} nodes, {case['name']}"
        claims.append((f"{what}: {rings}", others, how, "scalability"))
        for row in case.get("far") or []:
            if row["nodes"] == 4096 and row["way"] == "ring" and case["link"] == "100mbit":
                used = ", ".join(
                    f"{each['way']} {each['used']:.1%}"
                    for each in case["far"]
                    if each["nodes"] == 4096 and each is not row
                )
                claims.append(
                    (
                        f"weak scaling on 4096 nodes, {case['name']}: the ring uses {row['used']:.0%} of their speed",
                        used,
                        "simulated",
                        "scalability",
                    )
                )
    far = [row for row in _rows(found, "architectures") if row["scaling"] == "weak" and row["nodes"] == 1024]
    if far:
        step = {row["name"]: row["step_seconds"] for row in far}
        others = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in step.items() if name != "ring")
        claims.append(
            (
                f"1024 nodes, wide layers: a step of the ring takes {step['ring']:.1f} s",
                others,
                "simulated",
                "architectures",
            )
        )
    return claims


def _resilience(found: Found) -> list[Claim]:
    claims = []
    rows = _rows(found, "survive", "efficiency")
    for mean in sorted({row["mean"] for row in rows}, reverse=True):
        share = {row["way"]: row["efficiency"] for row in rows if row["mean"] == mean}
        others = ", ".join(f"{way} {value:.1%}" for way, value in share.items() if way != "ring")
        claims.append(
            (
                f"a rank killed every {mean:g} s: the ring keeps {share['ring']:.1%} of its steps",
                others,
                "emulated nodes, real kills",
                "resilience",
            )
        )
    outcomes = _rows(found, "survive", "outcomes")
    if outcomes:
        alive = sum(bool(row["survived"]) for row in outcomes if row["role"].startswith(("ring", "first")))
        ours = [row for row in outcomes if row["role"].startswith(("ring", "first"))]
        theirs = [row for row in outcomes if row not in ours]
        claims.append(
            (
                f"{alive} of {len(ours)} faults of ring ranks survived, at most {max(row['pause'] for row in ours):.1f} s "
                "without a step",
                f"of server and workers {sum(bool(row['survived']) for row in theirs)} of {len(theirs)}, "
                f"at most {max(row['pause'] for row in theirs):.1f} s",
                "real faults",
                "resilience",
            )
        )
    return claims


def _capacity(found: Found) -> list[Claim]:
    rows = [row for row in _rows(found, "capacity") if row["sweep"] == "depth" and "parameters" in row]
    size = {(row["way"], row["ranks"]): row["parameters"] / 1e6 for row in rows}
    ours = [f"{ranks} ranks {value:.0f} M" for (way, ranks), value in size.items() if way == "ring"]
    theirs = [f"{way} {value:.0f} M" for (way, ranks), value in size.items() if "ring" not in way]
    claims = []
    if ours and theirs:
        claims.append(
            (
                f"largest network where a rank may take 640 MiB: ring on {', '.join(ours)}",
                f"on 4 ranks: {', '.join(theirs)}",
                "measured",
                "capacity",
            )
        )
    billion = found.get("capacity", {}).get("billion")
    if billion and "ranks_took" in billion:
        most = max(rank["memory"] for rank in billion["ranks_took"]) / 2**30
        claims.append(
            (
                f"{billion['parameters'] / 1e9:.1f} billion parameters train on 8 ranks of {most:.2f} GiB",
                "",
                "measured",
                "capacity --billion",
            )
        )
    return claims


def _balance(found: Found) -> list[Claim]:
    claims = []
    for case in found.get("balance", {}).get("cases", []):
        rows = {row["way"]: row for row in case["rows"]}
        if case["case"]["name"] not in ("one 4 times slower", "one 4 times slower in mid-run"):
            continue
        ring = rows["ring auto"]
        others = ", ".join(f"{way} {rows[way]['gain'][0]:.2f}" for way in ("bsp measured", "ssp 3 measured"))
        claims.append(
            (
                f"{case['case']['ranks']} nodes, {case['case']['name']}: work in proportion makes the ring "
                f"{ring['gain'][0]:.2f} times as fast (no cut could more than {ring['ceiling']:.2f})",
                others,
                "emulated nodes",
                "balance",
            )
        )
    return claims


def _crossover(found: Found) -> list[Claim]:
    claims = []
    for row in _rows(found, "crossover", "crossings"):
        if row["rival"] == "server" and row.get("measured"):
            side = "from batches of" if row["sweep"] == "batch" else "up to layers of"
            claims.append(
                (
                    "**where the server wins**, links of 100 Mbit/s, 4 hosts",
                    f"{side} {row['measured']:,.0f} (simulated {row['predicted']:,.0f})",
                    "measured",
                    "crossover",
                )
            )
    return claims


def _cluster(found: Found) -> list[Claim]:
    claims = []
    for case in found.get("cluster", {}).get("cases", []):
        rows = {row["way"]: row for row in case["rows"]}
        others = ", ".join(
            f"{way} {1e3 * row['seconds'][0]:.0f} ms, link {row['busiest']:.0%} ({row['error']:+.0%})"
            for way, row in rows.items()
            if way != "ring"
        )
        ring = rows["ring"]
        claims.append(
            (
                f"{case['hosts']} hosts, links of 100 Mbit/s: a step takes {1e3 * ring['seconds'][0]:.0f} ms, its busiest "
                f"link is used to {ring['busiest']:.0%} (simulated: {ring['error']:+.0%})",
                others,
                "measured, emulated nodes",
                "cluster",
            )
        )
    return claims


CLAIMS: tuple[Callable[[Found], list[Claim]], ...] = (
    _efficiency,
    _progress,
    _scalability,
    _resilience,
    _capacity,
    _balance,
    _cluster,
    _crossover,
)


def claims(found: Found) -> str:
    """The table of claims in Markdown."""
    lines = ["| the ring | the others | how | again with `python -m jobs.experiments` ... |", "|---|---|---|---|"]
    for make in CLAIMS:
        lines += [f"| {ours} | {theirs} | {how} | `{name}` |" for ours, theirs, how, name in make(found)]
    return "\n".join(lines) + "\n"


def renew(readme: Path, table: str) -> None:
    """Put the table between the marks. Raises `SystemExit` if they are not there."""
    text = readme.read_text()
    begin, end = (text.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        raise SystemExit(f"{readme}: expected the marks {MARKS[0].strip()} and {MARKS[1]}")
    readme.write_text(text[: begin + len(MARKS[0])] + table + text[end:])


# ---- the page --------------------------------------------------------------------------------------------------------


def as_html(markdown: str) -> str:
    """Our own Markdown: tables, bold and code."""
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
    """The whole page."""
    sections, names = [], []
    for name, (module, _) in EXPERIMENTS.items():
        result, figure = places(module, folder)
        tables = result.with_suffix(".md")
        if module not in found and not figure.exists():
            continue
        names.append(name)
        about = (import_module(f"jobs.experiments.{module}").__doc__ or "").split("\n\n")
        text = [f'<h2 id="{name}">{name}</h2>']
        text += [f"<p>{_inline(' '.join(part.split()))}</p>" for part in about[:1] + about[2:]]
        if figure.exists():
            data = base64.b64encode(figure.read_bytes()).decode()
            text.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        if tables.exists():
            text.append(as_html(tables.read_text()))
        if module in found:
            text.append(f'<p class="from">{html.escape(origin(found[module]))}</p>')
        text.append(f"<p>Again with <code>python -m jobs.experiments {name}</code>.</p>")
        sections.append("\n".join(text))
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>RingTMP: the evidence</title>'
        f"<style>{STYLE}</style><body><h1>RingTMP: the evidence</h1><nav>{links}</nav>\n{as_html(table)}\n"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def origin(table: dict[str, Any]) -> str:
    """When, where and from which commit results come."""
    parts = []
    for each in sources(table):
        if "commit" in each:
            parts.append(
                f"{each['date']}, commit {each['commit']}, {each.get('cpu', '')}, {each.get('cores', '?')} cores"
            )
    return "; ".join(dict.fromkeys(parts)) or json.dumps(table.get("provenance") or {})[:300]


def main() -> int:
    """Gather and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", help="folder of results and pictures, instead of the project's")
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--out", help="HTML file to write [jobs/figures/report.html]")
    options = parser.parse_args()
    found: Found = {}
    for module, _ in EXPERIMENTS.values():
        result, _ = places(module, options.folder)
        if result.exists():
            found[module] = read(result)
    if not found:
        print(f"ringtmp: report: no results in {options.folder or 'the project'}", file=sys.stderr)
        return 2
    table = claims(found)
    path = Path(options.out or PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(found, table, options.folder))
    if not (options.folder or options.out):
        renew(ROOT / "README.md", table)
    print(f"{len(found)} experiments: written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

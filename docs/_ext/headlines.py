"""The ten results of the README, in words for those who do not know the project, with numbers from the result files.

    python docs/_ext/headlines.py           print the table
    python docs/_ext/headlines.py --write   write it into README.md, between its marks

A test compares the table in the README with this one, so that no number there is typed. The directive ``headlines``
shows the same table on a page.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- ten results: made by python docs/_ext/headlines.py --write -->\n", "<!-- end of the ten results -->"


class Headline(NamedTuple):
    """A row: a question, the answer for the ring, the answers for the others, and how they were obtained."""

    question: str
    ring: str
    others: str
    how: str


def _bench(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "jobs" / "bench" / "results" / f"{name}.json").read_text())


def _experiment(name: str) -> dict[str, Any]:
    from ringtmp.jobs.lib.store import places, read

    return read(places(name)[0])


def _found(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one row with these values."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


NAMES = {
    "server bsp": "one server",
    "2 servers bsp": "two servers",
    "colocated servers": "servers on all",
    "server asp": "asynchronous server",
    "ring PipeDream": "PipeDream",
    "ring 2BW": "2BW",
}


def _listed(found: dict[str, Any], ways: tuple[str, ...], form: str) -> str:
    """What `found` has for each of `ways`, by the name that the README gives it."""
    return ", ".join(f"{NAMES.get(way, way)} {found[way]:{form}}" for way in ways)


def idle() -> Headline:
    """Idle time of 8 ranks."""
    rows = {row["case"]: row["idle"] for row in _bench("idle")["rows"] if row["ranks"] == 8 and row["jitter"] == 0}
    rule = next(value for case, value in rows.items() if case.startswith("p8 m16 ready"))
    others = f"1F1B {rows['p8 m16 1f1b']:.0%}, the zero-bubble plan ZB-H1 {rows['p8 m16 zb-h1']:.0%}"
    return Headline("How long do 8 ranks wait, with 16 micro-batches?", f"{rule:.1%} of the time", others, "emulated")


def scaling() -> list[Headline]:
    """16 cores at full speed; wide layers over slow links; 4096 nodes."""
    cases = {case["name"]: case for case in _experiment("scalability")["cases"]}

    def times(name: str, scaling: str) -> dict[str, float]:
        rows = [row for row in cases[name]["rows"] if row["scaling"] == scaling]
        most = max(row["nodes"] for row in rows)
        return {row["way"]: row["speed_up"] for row in rows if row["nodes"] == most}

    others = ("server bsp", "colocated servers", "all-reduce")
    full, slow = times("full speed, shared memory", "strong"), times("wide, 1000 Mbit/s", "strong")
    far = {row["way"]: row["used"] for row in cases["wide, 100 Mbit/s"]["far"] if row["nodes"] == 4096}
    return [
        Headline(
            "How many times as fast as one rank are 16, on 16 cores?",
            f"{full['ring']:.1f}",
            _listed(full, others, ".1f"),
            "measured",
        ),
        Headline(
            "And 16 nodes with wide layers and links of 1 Gbit/s?",
            f"{slow['ring']:.1f}",
            _listed(slow, others, ".1f"),
            "emulated",
        ),
        Headline(
            "What of the speed of 4096 nodes is used, wide layers, 100 Mbit/s?",
            f"{far['ring']:.0%}",
            _listed(far, others, ".0%"),
            "simulated",
        ),
    ]


def progress() -> Headline:
    """Samples until a training loss of 0.2, beside BSP."""
    rows = {row["way"]: row["samples to 0.2: times server bsp"][0] for row in _experiment("progress")["rows"]}
    others = _listed(rows, ("server asp", "ring PipeDream", "ring 2BW"), ".2f")
    return Headline(
        "How many samples until a loss of 0.2, beside a synchronous server?",
        f"{rows['ring']:.2f} times",
        others,
        "emulated",
    )


def resilience() -> Headline:
    """Time from a kill to the first new step."""
    rows = [row for row in _experiment("resilience")["recovery"] if row["size"] == "small"]
    seconds = {row["way"]: row["total"][0] for row in rows}
    return Headline(
        "A rank of 4 is killed: when does training go on?",
        f"after {seconds['relaunch, standby']:.2f} s, at most one step repeated, the same bits",
        f"without stand-by processes after {seconds['relaunch']:.1f} s",
        "measured",
    )


def balance() -> Headline:
    """One node becomes slow in mid-run."""
    case = _found(
        [case["case"] | {"rows": case["rows"]} for case in _experiment("balance")["cases"]],
        ranks=8,
        name="one 4 times slower in mid-run",
    )
    ring, server = (_found(case["rows"], way=way) for way in ("ring auto", "server bsp measured"))
    return Headline(
        "One of 8 nodes becomes 4 times slower: what does moving layers gain?",
        f"{ring['gain'][0]:.2f} times as fast (at most {ring['ceiling']:.2f})",
        f"server: {server['gain'][0]:.2f}",
        "emulated",
    )


def capacity() -> Headline:
    """The largest network under a memory limit."""
    rows = [row for row in _experiment("capacity")["rows"] if row["sweep"] == "depth" and row["ranks"] == 4]
    size = {row["way"]: row["parameters"] / 1e6 for row in rows}
    return Headline(
        "How large a network trains on 4 ranks of 640 MiB?",
        f"{size['ring']:.0f} million parameters",
        _listed(size, ("server bsp", "2 servers bsp", "colocated servers"), ".0f") + " million",
        "measured",
    )


def kernels() -> Headline:
    """Training steps beside PyTorch's, and two ranks beside its best way."""
    one, two = _bench("kernels")["provenance"]["geometric_mean"], _bench("pipelines")["rows"]
    best = next(row["ratio"] for row in two if row["case"].startswith("MLP") and "beside the best" in row["case"])
    return Headline(
        "How fast are training steps on a core, beside PyTorch on the same core?",
        f"{one:.2f} times (geometric mean of 7 networks); two ranks {best:.2f} times",
        "PyTorch eager; its best way on two ranks: DDP",
        "measured",
    )


def crossover() -> Headline:
    """Where the server is faster."""
    rows = _experiment("crossover")["crossings"]
    batch = next(row["measured"] for row in rows if row["sweep"] == "batch" and row["rival"] == "server bsp")
    return Headline(
        "When is a parameter server faster, on 4 hosts with links of 100 Mbit/s?",
        "the ring is, with wide layers or small batches",
        f"the server is, with layers of 96 from batches of {batch:,.0f} on",
        "emulated",
    )


def table() -> str:
    """All rows as a Markdown table."""
    rows = [idle(), *scaling(), progress(), resilience(), balance(), capacity(), kernels(), crossover()]
    lines = ["| question | the ring | the others | how |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def written(readme: str) -> str:
    """The text of the README with the table between its marks. Raises `ValueError` if it has no marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}{table()}{MARKS[1]}{after}"


def setup(app: Any) -> dict[str, Any]:
    """Register the directive ``headlines``."""
    from sphinx.util.docutils import SphinxDirective

    class Headlines(SphinxDirective):
        def run(self) -> list[Any]:
            return self.parse_text_to_nodes(table())

    app.add_directive("headlines", Headlines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--write" in sys.argv:
        readme = ROOT / "README.md"
        readme.write_text(written(readme.read_text()))
    else:
        print(table(), end="")

"""The largest network that trains a step where no rank may take more than so much memory: the ring beside the server.

Usage: python -m jobs.experiments.capacity [--quick] [--limit 640MiB] [--billion] [--out FOLDER]

Every rank sets RLIMIT_DATA (`ulimit -d`: heap and anonymous memory) before it starts. Networks of equal dense layers;
first more and more of them at one width (`depth`), then wider ones, as many as there are ranks (`width`), until one
does not train. A point counts if a step has been trained; the reason of the first that did not is kept. Of the ring, on
2, 4 and 8 ranks, with and without recomputation; of the server on 4 ranks: one server, two, and every rank serving.
Bytes that were expected stand beside the most that a rank took.

--billion trains a network of a billion parameters for 3 steps on 8 ranks, each below 3 GiB, and nothing else.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.bench.report import MPIRUN, ROOT, fair_environment, provenance
from jobs.experiments.store import Page, places, publish, read
from ringtmp.config.units import parse_bytes, show_bytes

WIDTH = 1024  # of the networks that become deeper
BATCH, MICRO = 16, 4
SETTINGS = {
    "batch_size": BATCH,
    "micro_batches": MICRO,
    "optimizer": "adamw",
    "checkpoint_every": 0,
    "eval_every": 0,
    "steps": 1,
    "test_fraction": 0.01,
}


@dataclass(frozen=True)
class Way:
    """A trainer on so many ranks."""

    name: str
    ranks: int
    trainer: str
    settings: tuple[tuple[str, Any], ...] = ()


def ways() -> list[Way]:
    """All of them."""
    found = []
    for ranks in (2, 4, 8):
        found.append(Way("ring", ranks, "ringtmp"))
        found.append(Way("ring, recomputation", ranks, "ringtmp", (("recompute", True),)))
    found += [
        Way("server, bsp", 4, "ps"),
        Way("2 servers, bsp", 4, "ps", (("servers", 2),)),
        Way("every rank serves", 4, "ps", (("colocate", True),)),
    ]
    return found


def model(sweep: str, size: int, ranks: int) -> tuple[str, int, int]:
    """The network of a point, its width, and its parameters."""
    width, layers = (WIDTH, size) if sweep == "depth" else (size, ranks)
    return f"mlp:{width}-{width}x{layers}", width, layers * (width * width + width)


def on_a_rank(asked: dict[str, Any]) -> None:
    """Train under the limit, and print what each rank has taken. Collective over the world."""
    import resource

    if asked["limit"]:
        resource.setrlimit(resource.RLIMIT_DATA, (asked["limit"], asked["limit"]))
    from mpi4py import MPI

    import ps
    import ringtmp

    trainer = ps.train if asked["trainer"] == "ps" else ringtmp.train
    try:
        result = trainer(progress=False, **asked["settings"])
    except ringtmp.UserError as error:
        if MPI.COMM_WORLD.rank == 0:
            print(f"REFUSED {error}", flush=True)
        sys.exit(2)
    if MPI.COMM_WORLD.rank == 0:
        ranks = [{"memory": row["memory"], "expected": row.get("expected", 0)} for row in result.ranks]
        losses = [row["loss"] for row in result.rows if row["kind"] == "train"]
        print("TRAINED " + json.dumps({"ranks_took": ranks, "losses": losses}), flush=True)


def attempt(way: Way, limit: int, spec: str, width: int, **more: Any) -> dict[str, Any]:
    """One launch: what the ranks took, or why it did not train."""
    samples = f"synthetic:samples={4 * BATCH},features={width},classes={width}"
    settings = SETTINGS | {"model": spec, "data": samples} | dict(way.settings) | more
    if way.trainer == "ps":
        settings = {**settings, "worker_micro_batches": MICRO}
    asked = {"trainer": way.trainer, "limit": limit, "settings": settings}
    words = [MPIRUN, "-n", str(way.ranks), sys.executable, "-m", "jobs.experiments.capacity", json.dumps(asked)]
    done = subprocess.run(words, cwd=ROOT, env=fair_environment(), capture_output=True, text=True, timeout=1800)
    if found := re.search(r"^TRAINED (.*)$", done.stdout, re.MULTILINE):
        return json.loads(found[1])
    refused = re.search(r"^REFUSED (.*)$", done.stdout, re.MULTILINE)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    return {"why": refused[1] if refused else said[-1].strip() if said else f"exit status {done.returncode}"}


def largest(way: Way, sweep: str, limit: int, steps: int) -> dict[str, Any]:
    """Double the network until it does not train, then halve the gap so many times."""
    low, high = (way.ranks, 0) if sweep == "depth" else (256, 0)
    grain = 1 if sweep == "depth" else 32
    best: dict[str, Any] = {}
    why = ""
    size = low
    for _ in range(steps):
        spec, width, parameters = model(sweep, size, way.ranks)
        outcome = attempt(way, limit, spec, width)
        trained = "ranks_took" in outcome
        what = "trained" if trained else outcome["why"]
        print(f"{way.name}, {way.ranks} ranks, {sweep}: {spec}, {parameters:,} parameters: {what[:110]}", flush=True)
        if trained:
            best = {"parameters": parameters, "model": spec, **outcome}
            low = size
        else:
            why, high = outcome["why"], size
        size = 2 * size if not high else (low + high) // 2 // grain * grain
        if size in (low, high):
            break
    return {"way": way.name, "ranks": way.ranks, "sweep": sweep, "limit": limit, "why": why, **best}


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    worker = {row["sweep"]: row["parameters"] for row in rows if row["way"] == "server, bsp" and "parameters" in row}
    table = Table(title="Largest network that trains a step, each rank under a hard limit", title_justify="left")
    for head in (
        "sweep",
        "way",
        "ranks",
        "limit",
        "parameters",
        "times a worker's",
        "most taken",
        "expected",
        "why not more",
    ):
        table.add_column(head, justify="left" if head in ("sweep", "way", "why not more") else "right")
    for row in rows:
        if "parameters" not in row:
            continue
        top = max(row["ranks_took"], key=lambda each: each["memory"])
        times = row["parameters"] / worker[row["sweep"]] if row["sweep"] in worker else 0.0
        table.add_row(
            row["sweep"],
            row["way"],
            str(row["ranks"]),
            show_bytes(row["limit"]),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{times:.2f}" if times else "",
            show_bytes(top["memory"]),
            f"{top['expected'] / top['memory'] - 1:+.1%}" if top["expected"] else "",
            row["why"][:70],
        )
    console.print(table)


def billion() -> dict[str, Any]:
    """A billion parameters on 8 ranks."""
    width, layers = 8192, 15
    spec, limit = f"mlp:{width}-{width}x{layers}", 3 << 30
    began = time.perf_counter()
    way = Way("ring", 8, "ringtmp")
    outcome = attempt(way, limit, spec, width, steps=3, batch_size=8, micro_batches=4, optimizer="momentum")
    seconds = time.perf_counter() - began
    return {
        "model": spec,
        "parameters": layers * (width * width + width),
        "limit": limit,
        "seconds": seconds,
        **outcome,
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the ring on 2 ranks and one server; to --out alone")
    parser.add_argument("--limit", default="640MiB", help="that no rank may exceed [640MiB]")
    parser.add_argument("--tries", type=int, default=9, help="launches of each way and sweep, at most [9]")
    parser.add_argument("--billion", action="store_true", help="a billion parameters, 3 steps, 8 ranks below 3 GiB")
    parser.add_argument("--out", help="folder for capacity.h5, instead of that of the project")
    options = parser.parse_args()
    result, _ = places("capacity", options.out)
    table: dict[str, Any] = read(result) if result.exists() else {}
    began, page = time.perf_counter(), Page(190)
    if options.billion:
        table["billion"] = {"provenance": provenance(), **billion()}
        print(json.dumps({key: value for key, value in table["billion"].items() if key != "provenance"}, indent=1))
    else:
        limit, rows = parse_bytes(options.limit, "limit"), []
        chosen = [
            way for way in ways() if not options.quick or (way.name, way.ranks) in (("ring", 2), ("server, bsp", 4))
        ]
        for sweep in ("depth", "width"):
            for way in chosen:
                rows.append(largest(way, sweep, limit, 4 if options.quick else options.tries))
        seconds = round(time.perf_counter() - began, 1)
        table["rows"], table["provenance"] = rows, provenance(seconds=seconds, limit=limit)
    show(table.get("rows", []), page)
    if options.out or not options.quick:
        publish("capacity", options.out, table, page, None)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # a rank of a launch
        on_a_rank(json.loads(sys.argv[1]))
    else:
        main()

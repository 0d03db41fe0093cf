"""The largest network that trains a step where the memory of every rank is limited: the ring beside the server.

Usage: ringtmp experiment capacity [--quick] [--limit 640MiB] [--billion] [--out FOLDER]

Every rank sets RLIMIT_DATA (`ulimit -d`: heap and anonymous memory) before it starts. Networks of equal dense layers;
first more and more of them at one width (`depth`), then wider ones, as many as there are ranks (`width`), until one
does not train. A point counts if a step has been trained; the reason of the first that did not is kept. Of the ring, on
2, 4 and 8 ranks, with and without recomputation; of the server on 4 ranks: one server, two, and colocated servers.
Bytes that were expected stand beside the most that a rank took.

--billion trains a network of a billion parameters for 3 steps on 8 ranks, each below 3 GiB.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from ringtmp.config.units import parse_bytes, show_bytes
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.launch import LaunchFailed, launch
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.ways import WAYS, Way, several_servers

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


SERVER = WAYS["bsp"].label


def ways() -> list[tuple[Way, int]]:
    """The ways that are compared, each with its number of ranks."""
    found = []
    for ranks in (2, 4, 8):
        found += [(WAYS["ring"], ranks), (WAYS["ring"].named("ring, recomputation", recompute=True), ranks)]
    return [*found, (WAYS["bsp"], 4), (several_servers(2), 4), (WAYS["colocated"], 4)]


def model(sweep: str, size: int, ranks: int) -> tuple[str, int, int]:
    """The network of a point, its width, and its number of parameters.

    Parameters
    ----------
    sweep : {"depth", "width"}
        What grows.
    size : int
        Number of layers, or width.
    ranks : int
        Number of layers if the width grows.
    """
    width, layers = (WIDTH, size) if sweep == "depth" else (size, ranks)
    return f"mlp:{width}-{width}x{layers}", width, layers * (width * width + width)


def attempt(way: Way, ranks: int, limit: int, spec: str, width: int, **more: Any) -> dict[str, Any]:
    """Launch one run: the memory that the ranks took, or why it did not train.

    Parameters
    ----------
    way : Way
        The way.
    ranks : int
        Ranks of the launch.
    limit : int
        Bytes that no rank may exceed.
    spec : str
        The network.
    width : int
        Width of its layers.
    **more
        Further settings of the run.
    """
    samples = f"synthetic:samples={4 * BATCH},features={width},classes={width}"
    settings = SETTINGS | {"model": spec, "data": samples} | dict(way.settings) | more
    if way.trainer == "ps":
        settings = {**settings, "worker_micro_batches": MICRO}
    try:
        [found] = launch(ranks, [{"trainer": way.trainer, "train": settings}], timeout=1800, memory_limit=limit)
    except LaunchFailed as error:
        return {"why": error.reason}
    taken = zip(found["memory"], found["expected"], strict=True)
    return {
        "ranks_took": [{"memory": memory, "expected": expected} for memory, expected in taken],
        "losses": found["losses"],
    }


def largest(way: Way, ranks: int, sweep: str, limit: int, steps: int) -> dict[str, Any]:
    """Double the network until it does not train, then bisect.

    Parameters
    ----------
    way : Way
        The way.
    ranks : int
        Ranks of the launches.
    sweep : {"depth", "width"}
        What grows.
    limit : int
        Bytes that no rank may exceed.
    steps : int
        Most launches.
    """
    low, high = (ranks, 0) if sweep == "depth" else (256, 0)
    grain = 1 if sweep == "depth" else 32
    best: dict[str, Any] = {}
    why = ""
    size = low
    for _ in range(steps):
        spec, width, parameters = model(sweep, size, ranks)
        outcome = attempt(way, ranks, limit, spec, width)
        trained = "ranks_took" in outcome
        what = "trained" if trained else outcome["why"]
        print(f"{way.label}, {ranks} ranks, {sweep}: {spec}, {parameters:,} parameters: {what[:110]}", flush=True)
        if trained:
            best = {"parameters": parameters, "model": spec, **outcome}
            low = size
        else:
            why, high = outcome["why"], size
        size = 2 * size if not high else (low + high) // 2 // grain * grain
        if size in (low, high):
            break
    return {"way": way.label, "ranks": ranks, "sweep": sweep, "limit": limit, "why": why, **best}


def billion() -> dict[str, Any]:
    """Train a billion parameters on 8 ranks."""
    width, layers = 8192, 15
    spec, limit = f"mlp:{width}-{width}x{layers}", 3 << 30
    began = time.perf_counter()
    outcome = attempt(WAYS["ring"], 8, limit, spec, width, steps=3, batch_size=8, micro_batches=4, optimizer="momentum")
    seconds = time.perf_counter() - began
    return {
        "model": spec,
        "parameters": layers * (width * width + width),
        "limit": limit,
        "seconds": seconds,
        **outcome,
    }


@experiment
class Capacity(Experiment):
    """The largest network of each way where a rank's memory is limited."""

    name, order, width, pictured = "capacity", 60, 190, False
    about = "the largest network where each node's memory is limited; --billion"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """The limit, and how closely the largest network is found."""
        parser.add_argument("--limit", default="640MiB", help="that no rank may exceed [640MiB]")
        parser.add_argument("--tries", type=int, default=9, help="launches of each way and sweep, at most [9]")
        parser.add_argument("--billion", action="store_true", help="a billion parameters, 3 steps, 8 ranks below 3 GiB")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Both sweeps, or --billion; --quick: the ring on 2 ranks and one server."""
        began = time.perf_counter()
        if options.billion:
            table["billion"] = {"provenance": provenance(), **billion()}
            print(json.dumps({key: value for key, value in table["billion"].items() if key != "provenance"}, indent=1))
            return
        limit, rows = parse_bytes(options.limit, "limit"), []
        quick = (("ring", 2), (SERVER, 4))
        every = [(way, ranks) for way, ranks in ways() if not options.quick or (way.label, ranks) in quick]
        for sweep in ("depth", "width"):
            for way, ranks in every:
                rows.append(largest(way, ranks, sweep, limit, 4 if options.quick else options.tries))
        seconds = round(time.perf_counter() - began, 1)
        table["rows"], table["provenance"] = rows, provenance(seconds=seconds, limit=limit)

    def show(self, table: Table, page: Page) -> None:
        """One table."""
        rows = table.get("rows", [])
        worker = {row["sweep"]: row["parameters"] for row in rows if row["way"] == SERVER and "parameters" in row}
        heads = (
            "sweep",
            "way",
            "ranks",
            "limit",
            "parameters",
            "times a worker's",
            "most taken",
            "expected",
            "why not more",
        )
        title = "Largest network that trains a step, each rank under a hard limit"
        shown = make_table(title, heads, ("sweep", "way", "why not more"))
        for row in rows:
            if "parameters" not in row:
                continue
            top = max(row["ranks_took"], key=lambda each: each["memory"])
            times = row["parameters"] / worker[row["sweep"]] if row["sweep"] in worker else 0.0
            shown.add_row(
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
        page.print(shown)

    def claims(self, table: Table) -> list[Claim]:
        """The largest networks, and a billion parameters."""
        rows = [row for row in table.get("rows", []) if row["sweep"] == "depth" and "parameters" in row]
        size = {(row["way"], row["ranks"]): row["parameters"] / 1e6 for row in rows}
        ours = [f"{ranks} ranks {value:.0f} M" for (way, ranks), value in size.items() if way == "ring"]
        theirs = [f"{way} {value:.0f} M" for (way, ranks), value in size.items() if "ring" not in way]
        found = []
        if ours and theirs:
            text = f"largest network where a rank may take 640 MiB: ring on {', '.join(ours)}"
            found.append(Claim(text, f"on 4 ranks: {', '.join(theirs)}", "measured", self.name))
        billion = table.get("billion")
        if billion and "ranks_took" in billion:
            most = max(rank["memory"] for rank in billion["ranks_took"]) / 2**30
            text = f"{billion['parameters'] / 1e9:.1f} billion parameters train on 8 ranks of {most:.2f} GiB"
            found.append(Claim(text, "", "measured", f"{self.name} --billion"))
        return found

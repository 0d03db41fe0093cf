"""Several hosts for real: seconds of a step and how busy each link is, measured beside the simulator.

Usage: ringtmp experiment cluster [--quick] [--hosts 4,8] [--rate 100mbit] [--rounds 3] [--out FOLDER]

Hosts are network namespaces, each with its own address and rate-limited link (`ringtmp.jobs.lib.hosts`); MPI uses
TCP. One rank a host, as emulated nodes of `--gflops`, so that what is measured is the links. Ring, one server (bsp),
colocated servers, and all-reduce train the same network with the same batch. Predicted are the simulators' results
for the nodes' speed and the measured latency and bandwidth of a link (`ringtmp.jobs.lib.predict`).

`link`: bytes that a host sent, or received if that is more, in each step, by the counters of its link, beside what
the link can carry in that time: of the busiest host, and of the others' mean.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.lib.case import Case
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.hosts import Hosts, why_not
from ringtmp.jobs.lib.launch import launch, measure_link, rounds, steps_for
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.predict import SHARED, Link, predict
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.store import plain, renewed
from ringtmp.jobs.lib.ways import Way, chosen

WAYS = chosen("ring", "bsp", "colocated", "allreduce")
LAYERS, WIDTH = 8, 256
MICRO = 4  # micro-batches for each rank
BATCHES = {3: 96, 4: 240, 8: 224}  # multiples of what ranks, workers and micro-batches need, by hosts
SKIP, LEAST, MOST = 3, 5, 30  # steps of a run: left out at its beginning, and timed after them


def case_of(hosts: int, gflops: float) -> Case:
    """The training on `hosts` hosts, each an emulated node of `gflops` GFLOP/s."""
    batch = BATCHES[hosts]
    samples = batch + batch // 16 + 64
    return Case("cluster", hosts, WIDTH, LAYERS, batch, samples, f"{gflops:g}", message_size="32KiB")


def run(hosts: Hosts, case: Case, way: Way, link: Link, seconds: float) -> dict[str, float]:
    """Launch one way once: seconds of a step, and use of the links.

    Parameters
    ----------
    hosts : Hosts
        The hosts.
    case : Case
        The training.
    way : Way
        The way.
    link : Link
        Measured link between two hosts.
    seconds : float
        Seconds of the run that are timed.
    """
    micro = MICRO * case.ranks
    steps = steps_for(predict(case, way, link, micro), seconds, SKIP, LEAST, MOST)
    before = hosts.bytes()
    [found] = launch(case.ranks, [case.run(way, steps, SKIP, micro_batches=micro)], hosts)
    gone = {
        name: max(now[0] - then[0], now[1] - then[1])
        for (name, now), then in zip(hosts.bytes().items(), before.values(), strict=True)
    }
    step = case.batch / found["samples_per_s"]
    carried = step * steps * link.bandwidth
    shares = sorted(count / carried for count in gone.values())
    late = [late for late, role in zip(found["late"], found["roles"], strict=True) if role != "server"]
    return {"seconds": step, "busiest": shares[-1], "others": float(np.mean(shares[:-1])), "late": max(late)}


def measure(number: int, rate: str, gflops: float, count: int, seconds: float) -> dict[str, Any]:
    """Measure all ways, each once a round, every other round backwards.

    Parameters
    ----------
    number : int
        Number of hosts.
    rate : str
        Rate of each link, such as "100mbit".
    gflops : float
        GFLOP/s of each emulated node.
    count : int
        Number of rounds.
    seconds : float
        Seconds of each run that are timed.
    """
    began, case = time.perf_counter(), case_of(number, gflops)
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with Hosts(number, rate) as hosts:
        link = Link(**measure_link(hosts))
        for at, found in rounds(WAYS, count, lambda ways: [run(hosts, case, way, link, seconds) for way in ways]):
            for name, one in found.items():
                seen[name].append(one)
            said = ", ".join(f"{name} {1e3 * one['seconds']:.0f} ms" for name, one in found.items())
            print(f"{number} hosts ({at + 1} of {count}): {said}", flush=True)
    rows = []
    for way, each in seen.items():
        predicted = predict(case, WAYS[way], link, MICRO * number)
        measured = quartiles([one["seconds"] for one in each])
        rows.append(
            {
                "hosts": number,
                "way": way,
                "seconds": measured,
                "predicted": predicted,
                "error": predicted / measured[0] - 1,
                "busiest": float(np.median([one["busiest"] for one in each])),
                "others": float(np.median([one["others"] for one in each])),
                "late": max(one["late"] for one in each),
            }
        )
        if way == "ring":
            rows[-1]["predicted_alone"] = predict(case, WAYS[way], link, MICRO * number, 1)
    took = round(time.perf_counter() - began, 1)
    facts = {
        "bandwidth": link.bandwidth,
        "latency": link.latency,
        "batch": case.batch,
        "width": WIDTH,
        "layers": LAYERS,
        "gflops": gflops,
        "rate": rate,
        "cuts_of_a_link": SHARED,
        "skipped": SKIP,
    }
    return {
        "hosts": number,
        "rows": rows,
        "setting": facts,
        "provenance": provenance(seconds=took, rounds=count, links=rate, pace=f"{gflops:g}"),
    }


@experiment
class Cluster(Experiment):
    """Seconds of a step on hosts with limited links, beside the simulator."""

    name, order = "cluster", 80
    about = "hosts with limited links: a step and how busy links are, beside the simulator"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Hosts, links, nodes, and how much is measured."""
        parser.add_argument("--hosts", default="4,8", help=f"numbers of hosts, of {', '.join(map(str, BATCHES))} [4,8]")
        parser.add_argument("--rate", default="100mbit", help="of every link, each way [100mbit]")
        parser.add_argument("--gflops", type=float, default=0.3, help="of an emulated node [0.3]")
        parser.add_argument("--rounds", type=int, default=3, help="runs of each way [3]")
        parser.add_argument("--seconds", type=float, default=8.0, help="of a run that are timed, about [8]")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """All numbers of hosts; --quick: one short round on 4 hosts."""
        if why := why_not():
            raise SystemExit(f"skipped: {why}")
        numbers = [4] if options.quick else [int(number) for number in options.hosts.split(",")]
        if unknown := [number for number in numbers if number not in BATCHES]:
            options.error(f"--hosts: expected some of {', '.join(map(str, BATCHES))}, got {unknown[0]}")
        count, seconds = (1, 3.0) if options.quick else (options.rounds, options.seconds)
        found = table.setdefault("cases", [])
        for number in numbers:
            case = plain(measure(number, options.rate, options.gflops, count, seconds))
            found[:] = renewed(found, case, lambda each: each["hosts"])
            save()

    def show(self, table: Table, page: Page) -> None:
        """One table."""
        heads = ("hosts", "way", "step, ms", "simulated", "error", "busiest link", "other links")
        shown = make_table("Seconds of a step on hosts with limited links, and how busy those are", heads, ("way",))
        for case in table["cases"]:
            for number, row in enumerate(case["rows"]):
                median, low, high = (1e3 * value for value in row["seconds"])
                shown.add_row(
                    "" if number else str(row["hosts"]),
                    row["way"],
                    f"{median:.0f} ({low:.0f} to {high:.0f})",
                    f"{1e3 * row['predicted']:.0f}",
                    f"{row['error']:+.1%}",
                    f"{row['busiest']:.0%}",
                    f"{row['others']:.0%}",
                )
        page.print(shown)

    def draw(self, table: Table, path: Path) -> None:
        """Measured and simulated steps side by side, and the links."""
        found = table["cases"]
        with figure(path, 2, len(found), 160, figsize=(4.6 * len(found), 6)) as (_, axes):
            for (top, bottom), case in zip(axes.T, found, strict=True):
                ways, places_of = [row["way"] for row in case["rows"]], np.arange(len(case["rows"]))
                top.bar(
                    places_of - 0.2,
                    [row["seconds"][0] for row in case["rows"]],
                    0.38,
                    color="#7a1f2b",
                    label="measured",
                )
                top.bar(
                    places_of + 0.2,
                    [row["predicted"] for row in case["rows"]],
                    0.38,
                    color="#c9a0a6",
                    label="simulated",
                )
                bottom.bar(
                    places_of - 0.2,
                    [100 * row["busiest"] for row in case["rows"]],
                    0.38,
                    color="#30638e",
                    label="busiest",
                )
                bottom.bar(
                    places_of + 0.2,
                    [100 * row["others"] for row in case["rows"]],
                    0.38,
                    color="#8fb8de",
                    label="mean of the others",
                )
                top.set_title(f"{case['hosts']} hosts, links of {case['setting']['rate']}", loc="left", fontsize=10)
                top.set_ylabel("seconds of a step")
                bottom.set_ylabel("percent of what a link carries")
                bottom.set_ylim(0, 105)
                for ax in (top, bottom):
                    ax.set_xticks(places_of, ways, fontsize=8)
                    frame(ax)
                    ax.legend(fontsize=8, frameon=False)

    def claims(self, table: Table) -> list[Claim]:
        """Seconds of a step, how busy the busiest link is, and how wrong the simulator is."""
        found = []
        for case in table["cases"]:
            rows = {row["way"]: row for row in case["rows"]}
            ring = rows.pop("ring")
            others = ", ".join(
                f"{way} {1e3 * row['seconds'][0]:.0f} ms, link {row['busiest']:.0%} ({row['error']:+.0%})"
                for way, row in rows.items()
            )
            found.append(
                Claim(
                    f"{case['hosts']} hosts, links of 100 Mbit/s: a step takes {1e3 * ring['seconds'][0]:.0f} ms, its "
                    f"busiest link is used to {ring['busiest']:.0%} (simulated: {ring['error']:+.0%})",
                    others,
                    "measured, emulated nodes",
                    self.name,
                )
            )
        return found

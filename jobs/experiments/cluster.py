"""Several hosts for real: seconds of a step and how busy each link is, measured beside the simulator.

Usage: python -m jobs.experiments cluster [--quick] [--hosts 4,8] [--rate 100mbit] [--rounds 3] [--out FOLDER]

Hosts are network namespaces with addresses and rate-limited links of their own (`jobs.experiments.hosts`); MPI talks
TCP. One rank a host, as emulated nodes of `--gflops`, so that what is measured is the links. Ring, one server (bsp),
every rank serving, and all-reduce train the same network with the same batch. Predicted is what the simulators say
that are told the nodes' speed and the measured latency and bandwidth of a link, as in `jobs.experiments.crossover`.

`link`: bytes that a host sent, or received if that is more, in each step, by the counters of its link, beside what
the link can carry in that time: of the busiest host, and of the others' mean.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance
from jobs.experiments.crossover import SHARED, SKIP, WAYS, Setting, ask, predict, steps_for
from jobs.experiments.hosts import Hosts, why_not
from jobs.experiments.progress import quartiles
from jobs.experiments.store import Page, places, publish, read, renewed

LAYERS, WIDTH = 8, 256
MICRO = 4  # micro-batches for each rank
BATCHES = {3: 96, 4: 240, 8: 224}  # multiples of what ranks, workers and micro-batches need, by hosts


def setting_of(hosts: int, rate: str, gflops: float) -> Setting:
    """The training on so many hosts."""
    return Setting(hosts, LAYERS, WIDTH, BATCHES[hosts], MICRO * hosts, "32KiB", gflops, rate)


def run(hosts: Hosts, setting: Setting, way: str, seconds: float) -> dict[str, float]:
    """One launch of one way: seconds of a step, and how busy links were."""
    batch, width = setting.batch, setting.width
    steps = steps_for(predict(setting, way, batch, width), seconds)
    before = hosts.bytes()
    asked = {"runs": [{"way": way, "batch": batch, "width": width, "train": setting.run(way, batch, width, steps)}]}
    [found] = ask(hosts, asked, 600)
    gone = {
        name: max(now[0] - then[0], now[1] - then[1])
        for (name, now), then in zip(hosts.bytes().items(), before.values(), strict=True)
    }
    carried = found["seconds"] * steps * setting.bandwidth
    shares = sorted(count / carried for count in gone.values())
    return {
        "seconds": found["seconds"],
        "busiest": shares[-1],
        "others": float(np.mean(shares[:-1])),
        "late": found["late"],
    }


def measure(number: int, rate: str, gflops: float, rounds: int, seconds: float) -> dict[str, Any]:
    """All ways on so many hosts, each once a round, every other round backwards."""
    began, setting = time.perf_counter(), setting_of(number, rate, gflops)
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with Hosts(number, rate) as hosts:
        link = ask(hosts, {}, 60)
        setting = replace(setting, bandwidth=link["bandwidth"], latency=link["latency"])
        for at in range(rounds):
            for way in list(WAYS)[:: -1 if at % 2 else 1]:
                seen[way].append(run(hosts, setting, way, seconds))
            said = ", ".join(f"{way} {1e3 * each[-1]['seconds']:.0f} ms" for way, each in seen.items())
            print(f"{number} hosts ({at + 1} of {rounds}): {said}", flush=True)
    rows = []
    for way, each in seen.items():
        predicted = predict(setting, way, setting.batch, setting.width)
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
            rows[-1]["predicted_alone"] = predict(setting, way, setting.batch, setting.width, 1)
    took = round(time.perf_counter() - began, 1)
    facts = {
        "bandwidth": setting.bandwidth,
        "latency": setting.latency,
        "batch": setting.batch,
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
        "provenance": provenance(seconds=took, rounds=rounds, links=rate, pace=f"{gflops:g}"),
    }


def show(found: list[dict[str, Any]], console: Console) -> None:
    """One table."""
    table = Table(title="Seconds of a step on hosts with limited links, and how busy those are", title_justify="left")
    for head in ("hosts", "way", "step, ms", "simulated", "error", "busiest link", "other links"):
        table.add_column(head, justify="left" if head == "way" else "right")
    for case in found:
        for number, row in enumerate(case["rows"]):
            median, low, high = (1e3 * value for value in row["seconds"])
            table.add_row(
                "" if number else str(row["hosts"]),
                row["way"],
                f"{median:.0f} ({low:.0f} to {high:.0f})",
                f"{1e3 * row['predicted']:.0f}",
                f"{row['error']:+.1%}",
                f"{row['busiest']:.0%}",
                f"{row['others']:.0%}",
            )
    console.print(table)


def draw(table: dict[str, Any], path: Path) -> None:
    """Measured and simulated steps side by side, and the links."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = table["cases"]
    figure, axes = plt.subplots(2, len(found), figsize=(4.6 * len(found), 6), layout="constrained", squeeze=False)
    for (top, bottom), case in zip(axes.T, found, strict=True):
        ways, places_of = [row["way"] for row in case["rows"]], np.arange(len(case["rows"]))
        top.bar(places_of - 0.2, [row["seconds"][0] for row in case["rows"]], 0.38, color="#7a1f2b", label="measured")
        top.bar(places_of + 0.2, [row["predicted"] for row in case["rows"]], 0.38, color="#c9a0a6", label="simulated")
        bottom.bar(
            places_of - 0.2, [100 * row["busiest"] for row in case["rows"]], 0.38, color="#30638e", label="busiest"
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
            ax.spines[["top", "right"]].set_visible(False)
            ax.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round on 4 hosts; written to --out alone")
    parser.add_argument("--hosts", default="4,8", help=f"numbers of hosts, of {', '.join(map(str, BATCHES))} [4,8]")
    parser.add_argument("--rate", default="100mbit", help="of every link, each way [100mbit]")
    parser.add_argument("--gflops", type=float, default=0.3, help="of an emulated node [0.3]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way [3]")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a run that are timed, about [8]")
    parser.add_argument("--out", help="folder for cluster.h5 and cluster.png, instead of those of the project")
    options = parser.parse_args()
    if why := why_not():
        raise SystemExit(f"skipped: {why}")
    numbers = [4] if options.quick else [int(number) for number in options.hosts.split(",")]
    if unknown := [number for number in numbers if number not in BATCHES]:
        parser.error(f"--hosts: expected some of {', '.join(map(str, BATCHES))}, got {unknown[0]}")
    rounds, seconds = (1, 3.0) if options.quick else (options.rounds, options.seconds)
    result, _ = places("cluster", options.out)
    table: dict[str, Any] = read(result) if result.exists() else {"cases": []}
    for number in numbers:
        case = measure(number, options.rate, options.gflops, rounds, seconds)
        table["cases"] = renewed(table["cases"], case, lambda each: each["hosts"])
    page = Page(120)
    show(table["cases"], page)
    if options.out or not options.quick:
        publish("cluster", options.out, table, page, draw)


if __name__ == "__main__":
    main()

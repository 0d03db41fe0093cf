"""How much of the exchange hides behind computing, over real links of 100 Mbit/s between hosts.

Usage: python -m ringtmp.jobs.bench.hidden [--hosts 3] [--rate 100mbit]. One rank on each host
(`ringtmp.jobs.lib.hosts`), nodes emulated so that a worker computes 1, 2 or 4 times as long as the server's link is
busy one way. A worker's transfer time is the union of the times in which one of its messages is under way, from the
sender's post to the receiver's look; hidden is the share of it in which the worker does not wait.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.analysis import open_run, servers, transfers
from ringtmp.analysis.steady import steady
from ringtmp.errors import UserError
from ringtmp.jobs.lib.hosts import Hosts, why_not
from ringtmp.jobs.lib.launch import launch
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.jobs.lib.ways import Way, chosen

AIM = 0.7
WIDTH, LAYERS, BATCH, STEPS = 256, 8, 64, 10
WAYS = chosen("bsp", "ssp", "asp", "colocated", "allreduce")
RATIOS = (1.0, 2.0, 4.0)


def settings(way: Way, ratio: float, ranks: int, bits: float, out: str, name: str) -> dict[str, Any]:
    """A run in which computing lasts a given multiple of the time that all gradients take over one link.

    Parameters
    ----------
    way : Way
        The way.
    ratio : float
        That multiple.
    ranks : int
        Ranks of the launch.
    bits : float
        Bits a second of a link.
    out, name : str
        Folder of the run folder, and its name.
    """
    parameters = LAYERS * (WIDTH * WIDTH + WIDTH)
    exchange = (ranks - 1) * 4 * parameters * 8 / bits
    workers = ranks - way.serves
    operations = 6 * BATCH / workers * LAYERS * WIDTH * WIDTH
    return {
        "model": f"mlp:{WIDTH}-{WIDTH}x{LAYERS}",
        "batch_size": BATCH,
        "optimizer": "momentum",
        "lr": 1e-3,
        "data": f"synthetic:samples=512,features={WIDTH},classes={WIDTH}",
        "steps": STEPS,
        "eval_every": 0,
        "test_fraction": 0.01,
        "checkpoint_every": 0,
        "node_speed": f"{operations / (ratio * exchange) / 1e9:.6g}",
        "message_size": "256KiB",
        "out": out,
        "name": name,
        **way.settings,
    }


def read(path: Path) -> dict[str, float]:
    """Measures of the trace of the run folder `path`: hidden share, step, idle share, use of the server's link."""
    run = open_run(path)
    events, ranks = run.events(), run.ranks()
    workers = ranks.loc[ranks["role"] != "server", "rank"]
    late = events[events["step"] > 1]  # connections have opened their windows
    moved, served = transfers(late, ranks), servers(late, ranks)
    state = steady(events[events["rank"].isin(workers)])
    return {
        "hidden": float(moved["hidden"].median()),
        "step": state.seconds,
        "idle": state.idle,
        "in_flight": float(served["in_flight"].max()) if len(served) else float("nan"),
    }


def main() -> None:
    """Measure and publish."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=3, help="ranks, one on each host [3]")
    arguments.add_argument("--rate", default="100mbit", help="of every link [100mbit]")
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each [3]")
    options = arguments.parse_args()
    if reason := why_not():
        raise UserError(f"no hosts here: {reason}")
    bits = float(options.rate.removesuffix("mbit")) * 1e6
    values: dict[tuple[str, float], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, Hosts(options.hosts, options.rate) as hosts:
        for number in range(options.rounds):
            cases = [(name, ratio) for ratio in RATIOS for name in WAYS]
            for name, ratio in cases if number % 2 == 0 else reversed(cases):
                each = f"{name} {ratio:g} {number}".replace(" ", "-")
                train = settings(WAYS[name], ratio, options.hosts, bits, folder, each)
                launch(options.hosts, [{"trainer": "ps", "train": train, "skip": 1}], hosts, 300)
                values.setdefault((name, ratio), []).append(read(Path(folder) / each))
                print(
                    f"{name}, computing {ratio:g} x one way: {values[name, ratio][-1]['hidden']:.0%} hidden", flush=True
                )
    heads = ("way", "computing / one way", "hidden", "quartiles", "step s", "workers idle", "server's link busy")
    table = make_table(f"{options.hosts} hosts, links of {options.rate}", heads, ("way",))
    rows = []
    for (name, ratio), found in values.items():
        row: dict[str, Any] = {key: float(np.median([each[key] for each in found])) for key in found[0]}
        low, high = np.percentile([each["hidden"] for each in found], [25, 75])
        rows.append({"way": name, "ratio": ratio, **row, "low": float(low), "high": float(high), "aim": AIM})
        busy = "" if np.isnan(row["in_flight"]) else f"{row['in_flight']:.0%}"
        table.add_row(
            name,
            f"{ratio:g}",
            f"{row['hidden']:.0%}",
            f"{low:.0%} to {high:.0%}",
            f"{row['step']:.2f}",
            f"{row['idle']:.0%}",
            busy,
        )
    Page(120).print(table)
    publish_benchmark("hidden", rows, hosts=options.hosts, rate=options.rate, rounds=options.rounds)


if __name__ == "__main__":
    main()

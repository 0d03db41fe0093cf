"""How far each architecture scales, over fast and slow links: rings, rings side by side, servers, all-reduce.

Usage: python -m jobs.experiments scalability [--quick] [--only TEXT] [--nodes 1,2,4,8] [--far 4096] [--out FOLDER]

The same training on more and more nodes: `strong`, one batch dealt over all of them; `weak`, a batch that grows with
them. Networks are chains of 16 equal layers. `narrow` and `wide` run on emulated nodes, all as fast, which take equally
long for a sample of either: what differs is that the wide one has 64 times the parameters. Links are shared memory, or
those of hosts with a rate limit (`jobs.experiments.hosts`). `full speed` is no emulation: real kernels, one thread a
rank, as many ranks as there are cores. `2 rings of 4`: rings side by side (`--rings`). The server's rank is one of
the nodes.

Speed-ups are of samples a second, after the first steps of a run, beside one node; each way runs once a round, every
other round backwards. In brackets, how much faster the simulator says: the functions behind the curves that go to 4096
nodes (`jobs.experiments.architectures`), told the nodes' speed and what was measured of a link between two of them. Of
cores at full speed, which share caches and memory, it knows nothing: what it says there is what nodes with a memory
each would do. It has no rings side by side. With --far the wide network, weak, goes on under that clock where the
machine ends, a layer deeper for each node beyond 16.

Each scene is written as soon as it is measured; --only measures those anew whose name holds the text.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.report import provenance, run_json
from jobs.bench.servers import waited
from jobs.experiments.architectures import Setting, best_ring, chained, data_parallel, ring, rivals
from jobs.experiments.crossover import ask
from jobs.experiments.hosts import Hosts, why_not
from jobs.experiments.progress import quartiles
from jobs.experiments.store import Page, places, plain, publish, read, renewed, write
from ringtmp.config.units import parse_bytes
from ringtmp.simulate.data_parallel import Exchange

LAYERS = 16
SAMPLE = 2.4e-3  # seconds that an emulated node takes for F of a sample
SKIP, LEAST, MOST = 3, 4, 30  # steps of a run: left out at its beginning, and timed after them
SERVERS: dict[str, dict[str, Any]] = {
    "server, bsp": {},
    "server, ssp 3": {"consistency": "ssp", "staleness": 3},
    "every rank serves": {"colocate": True},
    "all-reduce": {"consistency": "allreduce"},
}
SIDE = "rings side by side"
WAYS = ("ring", SIDE, *SERVERS)
FAR = {"ring": "ring", "server, bsp": "one server", "every rank serves": "colocated", "all-reduce": "all-reduce"}
COLOURS = {
    "ring": "#7a1f2b",
    SIDE: "#d1495b",
    "all-reduce": "#edae49",
    "every rank serves": "#00798c",
    "server, bsp": "#30638e",
    "server, ssp 3": "#8fb8de",
}


@dataclass(frozen=True)
class Scene:
    """A network, nodes and links.

    Attributes
    ----------
    network : str
    width : int
    link : str or None
        Rate of each host's link, as the kernel limits it; None: shared memory.
    sample : float
        Seconds that an emulated node takes for F of a sample; 0: as fast as it is.
    strong, weak, rows : int
        Samples of a batch in all, for each node, and of a micro-batch.
    chunk : str
        Most bytes of a message of servers and workers.
    """

    network: str
    width: int
    link: str | None
    sample: float = SAMPLE
    strong: int = 128
    weak: int = 32
    rows: int = 4
    chunk: str = "1MiB"

    @property
    def name(self) -> str:
        """As tables have it."""
        link = f"{self.link.removesuffix('mbit')} Mbit/s" if self.link else "shared memory"
        return f"{self.network}, {link}"

    @property
    def gflops(self) -> float:
        """Of an emulated node; 0: not known."""
        return 2 * self.width**2 * LAYERS / self.sample / 1e9 if self.sample else 0.0

    def batch(self, scaling: str, nodes: int) -> int:
        """Samples of a step."""
        return self.strong if scaling == "strong" else self.weak * nodes

    def runs(self, scaling: str, nodes: int) -> dict[str, dict[str, Any]]:
        """Settings of each way."""
        batch = self.batch(scaling, nodes)
        common: dict[str, Any] = {
            "model": f"mlp:{self.width}-{self.width}x{LAYERS}",
            "batch_size": batch,
            "optimizer": "momentum",
            "data": f"synthetic:samples={batch + batch // 8 + 128},features={self.width},classes={self.width}",
            "test_fraction": 0.05,
            "lr": 1e-3,
            "eval_every": 0,
            "checkpoint_every": 0,
            "message_size": self.chunk,
        }
        if self.sample:
            common["node_speed"] = f"{self.gflops:.6g}"
        found = {"ring": common | {"micro_batches": batch // self.rows}}
        for rings in (2, 4):
            if nodes % rings == 0 and nodes >= rings * rings:
                more = {"rings": rings, "micro_batches": batch // rings // self.rows}
                found[f"{rings} rings of {nodes // rings}"] = common | more
        if nodes > 1:
            found |= {name: common | server for name, server in SERVERS.items()}
        return found

    def simulated(self, setting: Setting, way: str, scaling: str, nodes: int) -> float | None:
        """Seconds of a step under the clock; None where it has no such way."""
        batch, chunk = self.batch(scaling, nodes), parse_bytes(self.chunk, "message_size")
        if way == "ring":
            return ring(setting, nodes, batch, batch // self.rows)[0]
        if way not in SERVERS:
            return None
        options, served = SERVERS[way], way.startswith("server")
        kind: Any = "server" if served else "colocate" if "colocate" in options else "allreduce"
        exchange = Exchange(
            kind,
            bandwidth=setting.bandwidth,
            latency=setting.latency,
            overhead=setting.message,
            chunk=chunk,
            gather=chunk / 4,
            staleness=options.get("staleness", 0),
        )
        return chained(data_parallel(setting, nodes - served, batch, exchange, 12))[0]


SCENES = (
    Scene("narrow", 32, None),
    Scene("narrow", 32, "100mbit", chunk="32KiB"),
    Scene("wide", 256, None),
    Scene("wide", 256, "1000mbit", chunk="128KiB"),
    Scene("wide", 256, "100mbit", chunk="32KiB"),
    Scene("full speed", 512, None, sample=0.0, strong=512, weak=64, rows=16),
)


def launch(scene: Scene, nodes: int, asked: dict[str, Any], module: str = "jobs.bench.steady") -> Any:
    """What rank 0 of a launch on so many nodes has to say."""
    if scene.link is None or nodes == 1:
        return run_json(module, asked, nodes)
    with Hosts(nodes, scene.link) as hosts:
        return ask(hosts, asked, 600, module)


def setting_of(scene: Scene) -> Setting:
    """What the clock is told: a link between two nodes as it is measured, and the speed of one."""
    link = launch(scene, 2, {}, "jobs.experiments.crossover")
    gflops = scene.gflops
    if not gflops:
        run = {"train": scene.runs("strong", 1)["ring"] | {"steps": SKIP + 8}, "skip": SKIP}
        gflops = 6 * LAYERS * scene.width**2 * launch(scene, 1, run)["samples_per_s"] / 1e9
    return Setting(scene.width, LAYERS, gflops, link["bandwidth"], link["latency"])


def measure(scene: Scene, setting: Setting, scaling: str, nodes: int, rounds: int, seconds: float) -> list[Any]:
    """A row for each way on so many nodes."""
    runs = scene.runs(scaling, nodes)
    simulated = {way: scene.simulated(setting, way, scaling, nodes) for way in runs}
    asked: list[dict[str, Any]] = []
    for way, train in runs.items():
        step = simulated[way] or simulated["ring"] or 1.0
        steps = SKIP + min(MOST, max(LEAST, round(seconds / step)))
        trainer = "ps" if way in SERVERS else "ring"
        asked.append({"trainer": trainer, "train": train | {"steps": steps}, "skip": SKIP})
    seen: dict[str, list[Any]] = {way: [] for way in runs}
    for number in range(rounds):
        turn = slice(None, None, -1 if number % 2 else 1)
        found = launch(scene, nodes, {"runs": asked[turn]})
        for way, result in zip([*runs][turn], found, strict=True):
            seen[way].append(result)
    batch = scene.batch(scaling, nodes)
    rows: list[dict[str, Any]] = []
    for way, each in seen.items():
        told = simulated[way]
        rows.append(
            {
                "scaling": scaling,
                "nodes": nodes,
                "batch": batch,
                "way": way,
                "samples_per_s": quartiles([result["samples_per_s"] for result in each]),
                "idle": float(np.median([waited(result) for result in each])),
                "simulated": batch / told if told else None,
            }
        )
    said = ", ".join(f"{row['way']} {row['samples_per_s'][0]:,.1f}" for row in rows)
    print(f"{scene.name}, {scaling}, {nodes} nodes: {said}", flush=True)
    return rows


def measured(scene: Scene, counts: Sequence[int], scalings: Sequence[str], rounds: int, seconds: float) -> Any:
    """A scene: rows of both scalings on all numbers of nodes, with their speed-ups."""
    began, setting, rows = time.perf_counter(), setting_of(scene), []
    cores = os.cpu_count() or 1
    for scaling in scalings:
        some = [
            row
            for nodes in counts
            if scene.sample or nodes <= cores
            for row in measure(scene, setting, scaling, nodes, rounds, seconds)
        ]
        alone = some[0]["samples_per_s"][0]
        for row in some:
            row["speed_up"] = row["samples_per_s"][0] / alone
            row["simulated_speed_up"] = row["simulated"] / alone if row["simulated"] else None
        rows += some
    took = round(time.perf_counter() - began, 1)
    return {
        "name": scene.name,
        "width": scene.width,
        "link": scene.link,
        "gflops": setting.gflops,
        "rows": rows,
        "bandwidth": setting.bandwidth,
        "latency": setting.latency,
        "weak": scene.weak,
        "strong": scene.strong,
        "provenance": provenance(
            seconds=took,
            rounds=rounds,
            seconds_of_a_run=seconds,
            links=scene.link or "shared memory",
            pace=f"{scene.gflops:g}" if scene.sample else "none",
        ),
    }


def far(case: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Weak scaling under the clock, from 32 nodes on: what of the nodes' speed each way uses."""
    known = Setting(case["width"], LAYERS, case["gflops"], case["bandwidth"], case["latency"])
    rows, ratio, nodes = [], 8, 2 * LAYERS
    while nodes <= most:
        setting, batch = replace(known, layers=nodes), case["weak"] * nodes
        best, ratio = best_ring(setting, nodes, batch, ratio)
        step = {row.name: row.step_seconds for row in (best, *rivals(setting, nodes, batch))}
        rows += [
            {"nodes": nodes, "way": way, "used": setting.ideal(nodes, batch) / step[name], "step": step[name]}
            for way, name in FAR.items()
        ]
        nodes *= 2 if nodes < 64 else 4
    return rows


# ---- what is shown --------------------------------------------------------------------------------------------------


def family(way: str) -> str:
    """What a way's curve is called."""
    return SIDE if "rings of" in way else way


def best(rows: Sequence[dict[str, Any]], scaling: str, nodes: int) -> dict[str, dict[str, Any]]:
    """Of each kind of way the fastest one on so many nodes."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        way = family(row["way"])
        if (row["scaling"], row["nodes"]) == (scaling, nodes):
            found[way] = max(row, found.get(way, row), key=lambda each: each["speed_up"])
    return found


def points(case: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Scalings and numbers of nodes of a scene, but for one node."""
    yield from dict.fromkeys((row["scaling"], row["nodes"]) for row in case["rows"] if row["nodes"] > 1)


def errors(cases: Sequence[dict[str, Any]], way: str) -> list[float]:
    """By how much the clock is wrong, at each point; it has no cores that share caches and memory."""
    return [
        row["simulated"] / row["samples_per_s"][0] - 1
        for case in cases
        for row in case["rows"]
        if case["name"].partition(",")[0] != "full speed"
        and row["nodes"] > 1
        and row["way"] == way
        and row["simulated"]
    ]


def show(cases: Sequence[dict[str, Any]], console: Console) -> None:
    """Speed-ups, how wrong the clock is, and what it says of many nodes."""
    table = Table(title="Times as fast as one node (simulated: so much faster); * the fastest", title_justify="left")
    for head in ("network and links", "scaling", "nodes", *WAYS):
        table.add_column(head, justify="left" if head in ("network and links", "scaling") else "right")
    for case in cases:
        before = ""
        for scaling, nodes in points(case):
            there = best(case["rows"], scaling, nodes)
            most, cells = max(row["speed_up"] for row in there.values()), []
            for way in WAYS:
                if way not in there:
                    cells.append("")
                    continue
                row = there[way]
                error = f" ({row['simulated'] / row['samples_per_s'][0] - 1:+.0%})" if row["simulated"] else ""
                cells.append(f"{'*' * (row['speed_up'] == most)}{row['speed_up']:.2f}{error}")
            table.add_row("" if before else case["name"], "" if scaling == before else scaling, str(nodes), *cells)
            before = scaling
    console.print(table)
    table = Table(title="Simulated beside measured on emulated nodes, all points above", title_justify="left")
    for head in ("way", "points", "median error", "within 10 %", "worst"):
        table.add_column(head, justify="left" if head == "way" else "right")
    for way in WAYS:
        wrong = errors(cases, way)
        if wrong:
            within = sum(abs(each) <= 0.1 for each in wrong)
            table.add_row(way, str(len(wrong)), f"{np.median(wrong):+.1%}", str(within), f"{max(wrong, key=abs):+.1%}")
    console.print(table)
    table = Table(title="Weak scaling of the wide network, simulated: used of the nodes' speed", title_justify="left")
    for head in ("links", "nodes", *FAR):
        table.add_column(head, justify="left" if head == "links" else "right")
    for case in cases:
        rows = case.get("far") or []
        for number, nodes in enumerate(dict.fromkeys(row["nodes"] for row in rows)):
            used = {row["way"]: row["used"] for row in rows if row["nodes"] == nodes}
            link = "" if number else case["name"].partition(", ")[2]
            table.add_row(link, f"{nodes:,}", *(f"{used[way]:.2%}" for way in FAR))
    if table.row_count:
        console.print(table)


def draw(table: dict[str, Any], path: Path) -> None:
    """What of the nodes' speed is used, over nodes: a column for each scene, strong above, weak below."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = table["cases"]
    figure, axes = plt.subplots(
        2, len(cases), figsize=(2.9 * len(cases) + 0.6, 6), layout="constrained", squeeze=False, sharey=True
    )
    for column, case in zip(axes.T, cases, strict=True):
        for axis, scaling in zip(column, ("strong", "weak"), strict=True):
            counts = [nodes for each, nodes in points(case) if each == scaling]
            for way, colour in COLOURS.items():
                rows = [found[way] for nodes in counts if way in (found := best(case["rows"], scaling, nodes))]
                if not rows:
                    continue
                axis.plot(
                    [1, *(row["nodes"] for row in rows)],
                    [100, *(100 * row["speed_up"] / row["nodes"] for row in rows)],
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    linewidth=1.4,
                    label=way,
                )
                dashed = [
                    (row["nodes"], 100 * row["simulated_speed_up"] / row["nodes"])
                    for row in rows
                    if row["simulated_speed_up"]
                ]
                if scaling == "weak":
                    dashed += [(row["nodes"], 100 * row["used"]) for row in case.get("far") or [] if row["way"] == way]
                if dashed:
                    axis.plot(*zip(*dashed, strict=True), color=colour, linestyle="--", linewidth=0.9)
            axis.set_xscale("log", base=2)
            most = max([*counts, *(row["nodes"] for row in case.get("far") or [] if scaling == "weak")], default=1)
            ticks = [n for n in ((1, 2, 4, 8, 16) if most <= 16 else (1, 4, 16, 64, 256, 1024, 4096)) if n <= most]
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.grid(color="#eeeeee")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylim(0, 112)
            axis.set_title(f"{case['name']}: {scaling}", loc="left", fontsize=9)
        column[-1].set_xlabel("nodes", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("percent of the nodes' speed", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for axis in axes.flat:
        more = [each for each in zip(*axis.get_legend_handles_labels(), strict=True) if each[1] not in labels]
        handles, labels = [*handles, *(each[0] for each in more)], [*labels, *(each[1] for each in more)]
    figure.legend(handles, labels, ncols=len(labels), loc="outside lower center", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    """Measure, simulate, show and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two scenes, strong, on 4 nodes at most; to --out alone")
    parser.add_argument("--only", default="", help="scenes whose name holds this text, as in 'wide'")
    parser.add_argument("--nodes", help="powers of two, up to 16 [1,2,4,8, and 16 on as many cores]")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way [2]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a run that are timed, about [1]")
    parser.add_argument("--far", type=int, default=4096, help="nodes to which the clock goes on; 0: not at all [4096]")
    parser.add_argument("--out", help="folder for scalability.h5 and .png, instead of those of the project")
    options = parser.parse_args()
    most = 4 if options.quick else 16 if (os.cpu_count() or 1) >= 16 else 8
    text = options.nodes or ",".join(str(n) for n in (1, 2, 4, 8, 16) if n <= most)
    counts = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if counts[0] != 1 or not set(counts) <= {1, 2, 4, 8, 16}:
        parser.error(f"--nodes: expected 1 and some of 2, 4, 8, 16, got {text}")
    rounds, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    result, _ = places("scalability", options.out)
    table: dict[str, Any] = read(result) if result.exists() else {"cases": []}
    keeps, reason = bool(options.out) or not options.quick, why_not()
    order = [scene.name for scene in SCENES]
    for scene in SCENES:
        if options.only not in scene.name or (options.quick and scene not in SCENES[-2:]):
            continue
        if scene.link and reason:
            print(f"{scene.name}: skipped: {reason}", flush=True)
            continue
        case = measured(scene, counts, ("strong",) if options.quick else ("strong", "weak"), rounds, seconds)
        table["cases"] = renewed(table["cases"], plain(case), lambda each: order.index(each["name"]))
        if keeps:
            write(table, result)
    for case in table["cases"]:
        if options.far and case["name"].startswith("wide") and not case.get("far"):
            case["far"] = plain(far(case, min(options.far, 2 * LAYERS) if options.quick else options.far))
            print(f"{case['name']}: simulated to {case['far'][-1]['nodes']:,} nodes", flush=True)
    page = Page(150)
    show(table["cases"], page)
    if keeps:
        publish("scalability", options.out, table, page, draw)


if __name__ == "__main__":
    main()

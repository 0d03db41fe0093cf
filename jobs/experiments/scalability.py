"""How far each architecture scales, over fast and slow links: rings, rings side by side, servers, all-reduce.

Usage: ringtmp experiment scalability [--quick] [--only TEXT] [--nodes 1,2,4,8] [--far 4096] [--out
FOLDER]

The same training on more and more nodes: `strong`, one batch dealt over all of them; `weak`, a batch that grows with
them. Networks are chains of 16 equal layers. `narrow` and `wide` run on emulated nodes, all as fast, which take equally
long for a sample of either: what differs is that the wide one has 64 times the parameters. Links are shared memory, or
those of hosts with a rate limit (`ringtmp.jobs.lib.hosts`). `full speed` is no emulation: real kernels, one thread a
rank, as many ranks as there are cores. `2 rings of 4`: rings side by side (`--rings`). The server's rank is one of
the nodes.

Speed-ups are of samples a second, after the first steps of a run, beside one node; each way runs once a round, every
other round backwards. In brackets, the simulated speed-up: from the functions behind the curves up to 4096 nodes
(`ringtmp.jobs.lib.simulated`), for the nodes' speed and the measured link between two of them. The simulator does not
model cores at full speed, which share caches and memory: it simulates nodes with separate memory there. It does not
simulate rings side by side. With --far the wide network is simulated, weak, beyond the nodes of the machine, a layer
deeper for each node beyond 16.

Each scene is written as soon as it is measured; --only measures again those whose name holds the text.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.config.units import parse_bytes
from ringtmp.jobs.experiments import scalability_figure
from ringtmp.jobs.experiments.scalability_figure import FAR, best
from ringtmp.jobs.lib.case import Case
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.hosts import Hosts, why_not
from ringtmp.jobs.lib.launch import launch, measure_link, rounds, steps_for
from ringtmp.jobs.lib.on_ranks import waited
from ringtmp.jobs.lib.page import Page
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.simulated import Machine, best_ring, paced_exchange, ring, rivals
from ringtmp.jobs.lib.store import plain, renewed
from ringtmp.jobs.lib.ways import WAYS, Way, rings_of

LAYERS = 16
SAMPLE = 2.4e-3  # seconds that an emulated node takes for F of a sample
SKIP, LEAST, MOST = 3, 4, 30  # steps of a run: left out at its beginning, and timed after them


@dataclass(frozen=True)
class Scene:
    """A network, nodes and links.

    Attributes
    ----------
    network : str
        Name of the network.
    width : int
        Width of its layers.
    link : str or None
        Rate of each host's link, to which the kernel limits it; None: shared memory.
    sample : float
        Seconds of F of a sample on an emulated node; 0: nodes are not emulated.
    strong, weak, rows : int
        Samples of a batch in all, for each node, and of a micro-batch.
    message_size : str
        Most bytes of a message of servers and workers.
    """

    network: str
    width: int
    link: str | None
    sample: float = SAMPLE
    strong: int = 128
    weak: int = 32
    rows: int = 4
    message_size: str = "1MiB"

    @property
    def name(self) -> str:
        """Name in tables."""
        link = f"{self.link.removesuffix('mbit')} Mbit/s" if self.link else "shared memory"
        return f"{self.network}, {link}"

    @property
    def gflops(self) -> float:
        """GFLOP/s of an emulated node; 0: not emulated."""
        return 2 * self.width**2 * LAYERS / self.sample / 1e9 if self.sample else 0.0

    def batch(self, scaling: str, nodes: int) -> int:
        """Samples of a step on `nodes` nodes with `scaling` "strong" or "weak"."""
        return self.strong if scaling == "strong" else self.weak * nodes

    def case(self, scaling: str, nodes: int) -> Case:
        """The training on `nodes` nodes with `scaling` "strong" or "weak"."""
        batch = self.batch(scaling, nodes)
        samples, speed = batch + batch // 8 + 128, f"{self.gflops:.6g}" if self.sample else ""
        return Case(
            self.name,
            nodes,
            self.width,
            LAYERS,
            batch,
            samples,
            speed,
            message_size=self.message_size,
            test_fraction=0.05,
        )

    def ways(self, scaling: str, nodes: int) -> list[Way]:
        """The ways that are compared on `nodes` nodes with `scaling` "strong" or "weak"."""
        batch = self.batch(scaling, nodes)
        found = [WAYS["ring"].named("ring", micro_batches=batch // self.rows)]
        for rings in (2, 4):
            if nodes % rings == 0 and nodes >= rings * rings:
                side = rings_of(rings, nodes // rings)
                found.append(side.named(side.label, micro_batches=batch // rings // self.rows))
        return found + [WAYS[name] for name in ("bsp", "ssp", "colocated", "allreduce") if nodes > 1]

    def simulated(self, machine: Machine, way: Way, scaling: str, nodes: int) -> float | None:
        """Simulated seconds of a step; None if the way cannot be simulated.

        Parameters
        ----------
        machine : Machine
            Measured link and speed of a node.
        way : Way
            The way.
        scaling : {"strong", "weak"}
            How the batch grows.
        nodes : int
            Number of nodes.
        """
        batch = self.batch(scaling, nodes)
        if way.label == "ring":
            return ring(machine, nodes, batch, batch // self.rows)[0]
        if way.trainer == "ring":
            return None
        return paced_exchange(machine, way, nodes, batch, parse_bytes(self.message_size, "message_size"))


SCENES = (
    Scene("narrow", 32, None),
    Scene("narrow", 32, "100mbit", message_size="32KiB"),
    Scene("wide", 256, None),
    Scene("wide", 256, "1000mbit", message_size="128KiB"),
    Scene("wide", 256, "100mbit", message_size="32KiB"),
    Scene("full speed", 512, None, sample=0.0, strong=512, weak=64, rows=16),
)


def launch_on(scene: Scene, nodes: int, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train `runs` on `nodes` nodes: over shared memory, or on hosts with the links of `scene`."""
    if scene.link is None or nodes == 1:
        return launch(nodes, runs)
    with Hosts(nodes, scene.link) as hosts:
        return launch(nodes, runs, hosts)


def machine_of(scene: Scene) -> Machine:
    """The machine to simulate for `scene`: the measured link between two nodes, and the speed of one node."""
    if scene.link is None:
        link = measure_link()
    else:
        with Hosts(2, scene.link) as hosts:
            link = measure_link(hosts)
    gflops = scene.gflops
    if not gflops:
        [way] = scene.ways("strong", 1)
        [found] = launch(1, [scene.case("strong", 1).run(way, SKIP + 8, SKIP)])
        gflops = 6 * LAYERS * scene.width**2 * found["samples_per_s"] / 1e9
    return Machine(scene.width, LAYERS, gflops, link["bandwidth"], link["latency"])


def measure(scene: Scene, machine: Machine, scaling: str, nodes: int, count: int, seconds: float) -> list[Any]:
    """A row for each way.

    Parameters
    ----------
    scene : Scene
        Network, nodes and links.
    machine : Machine
        The machine to simulate.
    scaling : {"strong", "weak"}
        How the batch grows.
    nodes : int
        Number of nodes.
    count : int
        Number of rounds.
    seconds : float
        Seconds of each run that are timed.
    """
    case = scene.case(scaling, nodes)
    simulated = {way.label: scene.simulated(machine, way, scaling, nodes) for way in scene.ways(scaling, nodes)}
    runs = {}
    for way in scene.ways(scaling, nodes):
        step = simulated[way.label] or simulated["ring"] or 1.0
        runs[way.label] = case.run(way, steps_for(step, seconds, SKIP, LEAST, MOST), SKIP)
    seen: dict[str, list[Any]] = {way: [] for way in runs}
    for _, found in rounds(runs, count, lambda some: launch_on(scene, nodes, some)):
        for label, result in found.items():
            seen[label].append(result)
    rows: list[dict[str, Any]] = []
    for label, each in seen.items():
        told = simulated[label]
        rows.append(
            {
                "scaling": scaling,
                "nodes": nodes,
                "batch": case.batch,
                "way": label,
                "samples_per_s": quartiles([result["samples_per_s"] for result in each]),
                "idle": float(np.median([waited(result) for result in each])),
                "simulated": case.batch / told if told else None,
            }
        )
    said = ", ".join(f"{row['way']} {row['samples_per_s'][0]:,.1f}" for row in rows)
    print(f"{scene.name}, {scaling}, {nodes} nodes: {said}", flush=True)
    return rows


def measured(scene: Scene, counts: Sequence[int], scalings: Sequence[str], count: int, seconds: float) -> Any:
    """A scene: rows of both scalings on all numbers of nodes, with their speed-ups.

    Parameters
    ----------
    scene : Scene
        Network, nodes and links.
    counts : sequence of int
        Numbers of nodes, ascending.
    scalings : sequence of str
        "strong" and "weak".
    count : int
        Number of rounds.
    seconds : float
        Seconds of each run that are timed.
    """
    began, machine, rows = time.perf_counter(), machine_of(scene), []
    cores = os.cpu_count() or 1
    for scaling in scalings:
        some = [
            row
            for nodes in counts
            if scene.sample or nodes <= cores
            for row in measure(scene, machine, scaling, nodes, count, seconds)
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
        "gflops": machine.gflops,
        "rows": rows,
        "bandwidth": machine.bandwidth,
        "latency": machine.latency,
        "weak": scene.weak,
        "strong": scene.strong,
        "provenance": provenance(
            seconds=took,
            rounds=count,
            seconds_of_a_run=seconds,
            links=scene.link or "shared memory",
            pace=f"{scene.gflops:g}" if scene.sample else "none",
        ),
    }


def far(case: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Simulated weak scaling of the scene `case` from 32 to `most` nodes: share of the nodes' speed that is used."""
    known = Machine(case["width"], LAYERS, case["gflops"], case["bandwidth"], case["latency"])
    rows, ratio, nodes = [], 8, 2 * LAYERS
    while nodes <= most:
        machine, batch = replace(known, layers=nodes), case["weak"] * nodes
        first, ratio = best_ring(machine, nodes, batch, ratio)
        step = {row.name: row.step_seconds for row in (first, *rivals(machine, nodes, batch))}
        rows += [
            {"nodes": nodes, "way": way, "used": machine.ideal(nodes, batch) / step[way], "step": step[way]}
            for way in FAR
        ]
        nodes *= 2 if nodes < 64 else 4
    return rows


@experiment
class Scalability(Experiment):
    """Speed-up of every way on more and more nodes, beside the simulator."""

    name, order, width = "scalability", 30, 150
    about = "speed-up on more and more nodes: rings, rings side by side, all-reduce, servers"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Which scenes, on how many nodes, and how much is measured."""
        parser.add_argument("--only", default="", help="scenes whose name holds this text, such as 'wide'")
        parser.add_argument("--nodes", help="powers of two, up to 16 [1,2,4,8, and 16 on as many cores]")
        parser.add_argument("--rounds", type=int, default=2, help="runs of each way [2]")
        parser.add_argument("--seconds", type=float, default=1.0, help="of a run that are timed, about [1]")
        parser.add_argument(
            "--far", type=int, default=4096, help="nodes to which the clock goes on; 0: not at all [4096]"
        )

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Scene by scene; --quick: two scenes, strong scaling, on 4 nodes at most."""
        counts = _counts(options)
        count, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
        found, reason = table.setdefault("cases", []), why_not()
        order = [scene.name for scene in SCENES]
        scalings = ("strong",) if options.quick else ("strong", "weak")
        for scene in SCENES:
            if options.only not in scene.name or (options.quick and scene not in SCENES[-2:]):
                continue
            if scene.link and reason:
                print(f"{scene.name}: skipped: {reason}", flush=True)
                continue
            case = plain(measured(scene, counts, scalings, count, seconds))
            found[:] = renewed(found, case, lambda each: order.index(each["name"]))
            save()
        for case in found:
            if options.far and case["name"].startswith("wide") and not case.get("far"):
                case["far"] = plain(far(case, min(options.far, 2 * LAYERS) if options.quick else options.far))
                print(f"{case['name']}: simulated to {case['far'][-1]['nodes']:,} nodes", flush=True)

    def show(self, table: Table, page: Page) -> None:
        """Speed-ups, how wrong the clock is, and what it says of many nodes."""
        scalability_figure.show(table["cases"], page)

    def draw(self, table: Table, path: Path) -> None:
        """What of the nodes' speed is used, over nodes."""
        scalability_figure.draw(table, path)

    def claims(self, table: Table) -> list[Claim]:
        """Speed-ups on the most nodes, and what is used of 4096 of them."""
        found: list[Claim] = []
        for case in table["cases"]:
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
            found.append(Claim(f"{what}: {rings}", others, how, self.name))
            far_there = {row["way"]: row["used"] for row in case.get("far") or [] if row["nodes"] == 4096}
            if "ring" in far_there and case["link"] == "100mbit":
                used = far_there.pop("ring")
                text = f"weak scaling on 4096 nodes, {case['name']}: the ring uses {used:.0%} of their speed"
                others = ", ".join(f"{way} {share:.1%}" for way, share in far_there.items())
                found.append(Claim(text, others, "simulated", self.name))
        return found


def _counts(options: argparse.Namespace) -> list[int]:
    """The numbers of nodes that the command line says."""
    most = 4 if options.quick else 16 if (os.cpu_count() or 1) >= 16 else 8
    text = options.nodes or ",".join(str(n) for n in (1, 2, 4, 8, 16) if n <= most)
    counts = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if counts[0] != 1 or not set(counts) <= {1, 2, 4, 8, 16}:
        options.error(f"--nodes: expected 1 and some of 2, 4, 8, 16, got {text}")
    return counts

"""Where the parameter server and the ring cost the same: the batch and the width, predicted and measured.

Usage: python -m jobs.experiments.crossover [--quick] [--hosts 4] [--width 96] [--batch 1152] [--gflops 10] ...

In a step W M bytes go each way over the link of a server with W workers and M bytes of parameters, which grows with the
width squared and not with the batch; and 4 B d each way over each cut of a ring, which grows with both. So the server
is cheaper with large batches and narrow layers. Both frameworks train the same network with the same global batch and
optimizer on the same hosts with a link each (`jobs.experiments.hosts`), one rank a host, as emulated nodes of
`--gflops`: a ring of all hosts in ready mode, and one server (bsp) with workers on all others. Servers on every
worker's host (colocated) and an all-reduce run beside them.

Predicted: `ringtmp.simulate.pipeline` and `ringtmp.simulate.data_parallel`, told what the nodes compute, the measured latency and
bandwidth of a link, and the micro-batches and chunks of the run (layers of less than a quarter of a chunk go together,
as in `ps`). The predicted crossover is where these curves cross. Measured: real runs at three points on each side of
it, `--rounds` times, in turns; the first steps of each run are left out. The measured crossover is where the medians
cross, on a straight line in logarithms between two points.

Micro-batches and chunks are the same at all points: 4 micro-batches a rank, and chunks that the clock finds good for
the server (with those of 1 MiB, the default, most of these networks are one message: pushes and answers take turns). A
host inside the ring has one link for two cuts: bytes over the busiest link are the same at half the batch at which a
server moves as many as one cut (`same_bytes`).

What the clock leaves out: see `CAVEATS`. With `--rate 20mbit --gflops 2 --seconds 2` all takes five times as long, and
the processor is nearly out of it: what is then left of the error is the links'. Prints tables, writes
results/crossover.h5 and jobs/figures/crossover.png; where hosts are not permitted, predictions alone.
`python -m jobs.experiments.crossover_figure` prints and draws again.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from jobs.bench.report import ROOT, fair_environment, provenance
from jobs.experiments.crossover_figure import draw, show
from jobs.experiments.hosts import Hosts, why_not
from jobs.experiments.store import Page, plain, publish
from ringtmp.config.units import parse_bytes
from ringtmp.emulate import node_speed as speed
from ringtmp.emulate.nodes import nominal
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.simulate import planner
from ringtmp.simulate.data_parallel import Exchange, simulate_data_parallel

SWEEPS = ("batch", "width")
WAYS: dict[str, dict[str, Any]] = {
    "ring": {"mode": "ready"},
    "server": {"consistency": "bsp", "servers": 1},
    "colocated": {"colocate": True},
    "all-reduce": {"consistency": "allreduce"},
}
OPTIMIZER = "momentum"
FACTORS = (1 / 3, 1 / 2, 1 / math.sqrt(2), math.sqrt(2), 2, 3)  # times the predicted crossover: where it is measured
SKIP, LEAST, MOST = 3, 5, 30  # steps of a run: left out at its beginning, and timed after them
SHARED = 2  # cuts whose messages share the link of a host inside the ring
PAYLOAD, LATENCY = 0.94, 150e-6  # of a link that is not measured: share of its rate, and seconds
CAVEATS = (
    "ring: a host between two neighbours has one link for both. The clock gives each of them half of it all the time; "
    "on a real one whoever sends has all of it while the other is silent: steps are shorter than predicted",
    "server: under the clock workers keep step and share its link evenly. Real ones drift apart, each sends its chunks "
    "in another order, and an answer waits for the last of them: steps are longer than predicted",
    "all: the clock has no processor, and nothing for Python, MPI, TCP and ranks that wake late on shared cores: steps "
    "are longer, short ones and those with many small messages most",
    "all: after a pause a link lets 32 KB pass at once, its token bucket; the clock's links have none",
    "all-reduce: the clock lets one bucket after the other go round, ps several at once",
)


@dataclass(frozen=True)
class Setting:
    """Network, nodes and links; `width` is that of the sweep over batches, `batch` that of the sweep over widths.

    Attributes
    ----------
    hosts : int
        Ranks: one on each.
    layers, width, batch, micro_batches : int
    chunk : str
        Most bytes of a message of servers and workers, and of a bucket of the all-reduce.
    gflops : float
        Of each emulated node.
    rate : str
        Of each link, in each direction, as the kernel limits it.
    bandwidth : float
        Bytes a second that it has for messages while both directions are in use.
    latency : float
        Seconds that a small message is under way.
    """

    hosts: int
    layers: int
    width: int
    batch: int
    micro_batches: int
    chunk: str
    gflops: float
    rate: str
    bandwidth: float = 0.0
    latency: float = LATENCY

    def at(self, sweep: str, value: float) -> tuple[int, int]:
        """Batch and width at a point of a sweep, or nearest to it: all workers and micro-batches are equal."""
        if sweep == "width":
            return self.batch, max(2, round(value))
        grain = math.lcm(self.micro_batches, self.hosts, self.hosts - 1)
        return max(1, round(value / grain)) * grain, self.width

    def spec(self, width: int) -> str:
        """Layers of one width, the first and the last one too."""
        return f"mlp:{width}-{width}x{self.layers}"

    def model(self, width: int) -> Model:
        """What `spec` says."""
        return build_model(self.spec(width), "auto", (width,), "classes", width)

    def run(self, way: str, batch: int, width: int, steps: int) -> dict[str, Any]:
        """As `ringtmp.train` and `ps.train` take it."""
        return {
            "model": self.spec(width),
            "batch_size": batch,
            "micro_batches": self.micro_batches,
            "steps": steps,
            "data": f"synthetic:samples={batch + batch // 16 + 64},features={width},classes={width}",
            "test_fraction": 0.01,
            "optimizer": OPTIMIZER,
            "lr": 1e-3,
            "eval_every": 0,
            "checkpoint_every": 0,
            "message_size": self.chunk,
            "node_speed": f"{self.gflops:g}",
            **WAYS[way],
        }


# ---- predicted ------------------------------------------------------------------------------------------------------


@cache
def predict(setting: Setting, way: str, batch: int, width: int, shared: int = SHARED) -> float:
    """Seconds of a step under the clock, once steps chain.

    `shared`: cuts of the ring that share a link, half of which then belongs to each; 1: each has a link of its own.
    """
    model = setting.model(width)
    if way == "ring":
        problem = planner.Problem(
            model,
            batch,
            np.dtype(np.float32),
            Optimizer(OPTIMIZER),
            setting.hosts,
            speed.costs_paced(model),
            setting.latency,
            setting.bandwidth / shared,
            (setting.gflops,) * setting.hosts,
            whole=True,
        )
        return planner.run(problem, planner.RULE, setting.micro_batches)[0].step_seconds
    workers, chunk = setting.hosts - (way == "server"), parse_bytes(setting.chunk, "message_size")
    kind: Any = {"colocated": "colocate", "all-reduce": "allreduce"}.get(way, way)
    exchange = Exchange(kind, bandwidth=setting.bandwidth, latency=setting.latency, chunk=chunk, gather=chunk / 4)
    costs = [nominal(model, layer, batch // workers, setting.gflops) for layer in range(setting.layers)]
    seconds = np.array([[one, one, one, update] for one, update in costs])
    sizes = [4.0 * layer.count for layer in model.layers]
    return simulate_data_parallel(workers, seconds, sizes, exchange, steps=12).step_seconds


def curves(setting: Setting, sweep: str) -> list[dict[str, Any]]:
    """Predicted seconds of every way, from a fifth of the sweep's middle to five times as much."""
    middle, rows = getattr(setting, sweep), []
    for batch, width in dict.fromkeys(setting.at(sweep, middle * 5 ** (n / 20)) for n in range(-20, 21)):
        each = {way: predict(setting, way, batch, width) for way in WAYS}
        alone = predict(setting, "ring", batch, width, 1)
        rows.append({"sweep": sweep, "batch": batch, "width": width, **each, "ring, links of its own": alone})
    return rows


def equal(values: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Where a ratio is 1, on straight lines in logarithms between known ones; of several such places the middle one."""
    x, y, found = np.log(np.asarray(values, float)), np.log(np.asarray(ratios, float)), []
    for n in range(len(x) - 1):
        if (y[n] < 0) != (y[n + 1] < 0):
            found.append(float(np.exp(x[n] + (x[n + 1] - x[n]) * y[n] / (y[n] - y[n + 1]))))
    return found[len(found) // 2] if found else None


def same_bytes(setting: Setting, sweep: str) -> dict[str, float]:
    """Where W M each way is 4 B d each way over a cut of the ring, and over the link of a host between two cuts.

    M is 4 L (d^2 + d): 2 W M = 8 B d at B = W L (d + 1).
    """
    layers = (setting.hosts - 1) * setting.layers
    if sweep == "batch":
        cut = float(layers * (setting.width + 1))
        return {"cut": cut, "link": cut / SHARED}
    return {"cut": setting.batch / layers - 1, "link": SHARED * setting.batch / layers - 1}


# ---- measured -------------------------------------------------------------------------------------------------------


def on_a_rank(asked: dict[str, Any]) -> None:
    """What a rank of a launch does: several runs one after the other, or measure a link. Collective over the world."""
    from mpi4py import MPI

    import ps.trainer
    import ringtmp.ring.trainer
    from jobs.bench.steady import steady_rate

    comm, found = MPI.COMM_WORLD, []
    for run in asked.get("runs", ()):
        train = ringtmp.ring.trainer.train if run["way"] == "ring" else ps.trainer.train
        result = train(progress=False, **run["train"])
        if comm.rank == 0:
            workers = [row for row in result.ranks if row.get("role") != "server"]
            found.append(
                {
                    **{key: run[key] for key in ("way", "batch", "width")},
                    "seconds": run["batch"] / steady_rate(result, run["batch"], SKIP),
                    "late": max(row["late"] for row in workers),
                    "waiting": sum(row["parts"]["wait"] for row in workers)
                    / sum(sum(row["parts"].values()) for row in workers),
                }
            )
    answer = found if "runs" in asked else measure_link(comm)
    if comm.rank == 0:
        print(json.dumps(answer))


def measure_link(comm: Any) -> dict[str, float]:
    """Half a median round trip of 1 KB, and bytes a second each way while both directions are busy (ranks 0 and 1)."""
    trips: list[float] = []
    streams: list[float] = []
    for size, times, spans in ((1 << 22, 6, streams), (1 << 10, 300, trips)):  # first what opens TCP's window
        out, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        for _ in range(times if comm.rank < 2 else 0):
            began = time.perf_counter()
            if spans is streams:
                comm.Sendrecv(out, 1 - comm.rank, recvbuf=back, source=1 - comm.rank)
            elif comm.rank == 0:
                comm.Send(out, 1)
                comm.Recv(back, 1)
            else:
                comm.Recv(back, 0)
                comm.Send(out, 0)
            spans.append(time.perf_counter() - began)
    if comm.rank:
        return {}
    return {"latency": float(np.median(trips)) / 2, "bandwidth": (1 << 22) / float(np.median(streams[1:]))}


def ask(hosts: Hosts, asked: dict[str, Any], timeout: float, module: str = "jobs.experiments.crossover") -> Any:
    """What rank 0 of a launch on the hosts has to say."""
    words = [sys.executable, "-m", module, json.dumps(asked)]
    done = hosts.mpirun(words, env=fair_environment(), cwd=ROOT, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def steps_for(step: float, seconds: float) -> int:
    """Steps of a run that lasts about so many seconds after those that are left out."""
    return SKIP + min(MOST, max(LEAST, math.ceil(seconds / step)))


def measure(
    hosts: Hosts,
    setting: Setting,
    points: Sequence[tuple[int, int]],
    ways: Sequence[str],
    seconds: float,
    backwards: bool,
) -> list[dict[str, Any]]:
    """A run of every way at every point, about so many seconds of it timed; all in one launch."""
    runs, expected = [], 60.0
    for batch, width in points:
        for way in ways:
            step = predict(setting, way, batch, width)
            steps = steps_for(step, seconds)
            expected += 5 + 4 * steps * step  # on a machine that others use as well
            runs.append({"way": way, "batch": batch, "width": width, "train": setting.run(way, batch, width, steps)})
    return ask(hosts, {"runs": runs[::-1] if backwards else runs}, expected)


# ---- what is made of them -------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"measured": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}


def tabulate(
    setting: Setting,
    sweep: str,
    points: Sequence[tuple[int, int]],
    rounds: Sequence[list[dict[str, Any]]],
    ways: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each point: of each way and of server / ring, what was predicted and measured."""
    rows = []
    for batch, width in points:
        each = {
            way: [
                run["seconds"]
                for some in rounds
                for run in some
                if (run["way"], run["batch"], run["width"]) == (way, batch, width)
            ]
            for way in ways
        }
        row: dict[str, Any] = {"sweep": sweep, "batch": batch, "width": width}
        for way, values in each.items():
            row[way] = {"predicted": predict(setting, way, batch, width), **(spread(values) if values else {})}
        ratio = {"predicted": row["server"]["predicted"] / row["ring"]["predicted"]}
        if rounds:
            ratio |= spread([a / b for a, b in zip(each["server"], each["ring"], strict=True)])
            ratio["measured"] = row["server"]["measured"] / row["ring"]["measured"]  # of the medians
        rows.append(row | {"ratio": ratio})
    return rows


def crossing(
    sweep: str,
    rival: str,
    curve: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    rounds: Sequence[list[dict[str, Any]]],
) -> dict[str, Any]:
    """Where a rival and the ring take as long: predicted, measured, and in the rounds taken alone."""
    found: dict[str, Any] = {"sweep": sweep, "rival": rival, "measured": None, "rounds": []}
    found["predicted"] = equal([row[sweep] for row in curve], [row[rival] / row["ring"] for row in curve])
    measured = [row for row in rows if "measured" in row.get(rival, {})]
    if measured:
        values = [row[sweep] for row in measured]
        found["measured"] = equal(values, [row[rival]["measured"] / row["ring"]["measured"] for row in measured])
        for some in rounds:
            each = {(run["way"], run["batch"], run["width"]): run["seconds"] for run in some}
            keys = [(row["batch"], row["width"]) for row in measured]
            found["rounds"].append(equal(values, [each[rival, *key] / each["ring", *key] for key in keys]))
    return found


def main() -> None:
    """Predict, measure, print, write, draw."""
    setting, options = read_flags()
    began = time.perf_counter()
    factors = FACTORS[1:-1] if options.quick else FACTORS
    ways = list(WAYS)[: 2 if options.quick else None]
    reason = why_not()
    points: dict[str, list[tuple[int, int]]] = {}
    curve: list[dict[str, Any]] = []
    rounds: list[list[dict[str, Any]]] = []

    def clocked(bandwidth: float, latency: float) -> Setting:
        """The predictions for such links, and the points to measure."""
        told = replace(setting, bandwidth=bandwidth, latency=latency)
        for sweep in SWEEPS:
            some = curves(told, sweep)
            curve.extend(some)
            middle = equal([row[sweep] for row in some], [row["server"] / row["ring"] for row in some])
            if middle is None:
                raise SystemExit(f"the predicted curves do not cross within a fifth and five times that {sweep}")
            points[sweep] = list(dict.fromkeys(told.at(sweep, middle * factor) for factor in factors))
        return told

    if reason:
        print(f"not measured, predicted alone: {reason}", flush=True)
        setting = clocked(_bits(setting.rate) / 8 * PAYLOAD, LATENCY)
    else:
        with Hosts(setting.hosts, setting.rate) as hosts:
            link = ask(hosts, {}, 60)
            setting = clocked(link["bandwidth"], link["latency"])
            print(f"a link: {setting.bandwidth / 1e6:.2f} MB/s each way, {setting.latency * 1e6:.0f} us", flush=True)
            every = list(dict.fromkeys(point for sweep in SWEEPS for point in points[sweep]))
            for number in range(options.rounds):
                rounds.append(measure(hosts, setting, every, ways, options.seconds, number % 2 == 1))
                took = time.perf_counter() - began
                print(f"round {number + 1} of {options.rounds} done after {took:.0f} s", flush=True)

    rows, crossings = [], []
    for sweep in SWEEPS:
        mine = [row for row in curve if row["sweep"] == sweep]
        some = tabulate(setting, sweep, points[sweep], rounds, ways)
        rows += some
        crossings += [crossing(sweep, rival, mine, some, rounds) for rival in list(WAYS)[1:]]
    origin = provenance(
        seconds=round(time.perf_counter() - began, 1),
        rounds=len(rounds),
        not_measured=reason,
        links=setting.rate,
        pace=f"{setting.gflops:g}",
    )
    table = plain(
        {
            "provenance": origin,
            "setting": asdict(setting),
            "caveats": list(CAVEATS),
            "crossings": crossings,
            "same_bytes": {sweep: same_bytes(setting, sweep) for sweep in SWEEPS},
            "rows": rows,
            "curves": curve,
            "runs": [{"round": n, **run} for n, some in enumerate(rounds) for run in some],
        }
    )
    page = Page(140)
    show(table, page)
    if options.out or not options.quick:
        publish("crossover", options.out, table, page, draw)
    print(f"{time.perf_counter() - began:.0f} s")


def _bits(rate: str) -> float:
    """Bits a second of a rate such as 100mbit."""
    return float(rate[:-4]) * {"k": 1e3, "m": 1e6, "g": 1e9}[rate[-4]]


def read_flags() -> tuple[Setting, argparse.Namespace]:
    """The setting, and what else is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round of server and ring, two points on each side; nothing is written but to --out",
    )
    parser.add_argument("--hosts", type=int, default=4, help="ranks, one on each [4]")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=96, help="where the batch varies; middle of the sweep over widths")
    parser.add_argument("--batch", type=int, default=1152, help="where the width varies; middle of that over batches")
    parser.add_argument("--micro-batches", type=int, default=16, help="of the ring")
    parser.add_argument("--message-size", default="32KiB", help="of servers, and buckets of the all-reduce")
    parser.add_argument("--gflops", type=float, default=10.0, help="of an emulated node")
    parser.add_argument("--rate", default="100mbit", help="of every link, each way")
    parser.add_argument("--rounds", type=int, help="runs of each way at each point [3; quick: 1]")
    parser.add_argument("--seconds", type=float, help="of a run that are timed, about [0.8; quick: 0.4]")
    parser.add_argument("--out", help="folder for crossover.h5 and crossover.png, instead of those of the project")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.4 if options.quick else 0.8)
    if options.hosts < 3 or options.layers < options.hosts or options.batch < 1:
        parser.error("expected 3 hosts or more, and a layer for each")
    return Setting(
        options.hosts,
        options.layers,
        options.width,
        options.batch,
        options.micro_batches,
        options.chunk,
        options.gflops,
        options.rate,
    ), options


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # a rank of a launch of `ask`
        on_a_rank(json.loads(sys.argv[1]))
    else:
        main()

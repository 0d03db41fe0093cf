"""Resilience measured: time until a lost rank is back, cost of failures, and outcome of each fault.

Usage: ringtmp experiment resilience [--only recovery,throughput,efficiency,outcomes] [--quick] [--out
FOLDER]

recovery    From the kill of a rank to the first new step, as seen from outside, and by phase: clear, start, agree,
            split, restore, redo as the run reports them; detect is the rest of the time. 4 ranks on nodes with
            separate memory, a small model and one of 100 MB of weights and moments, real computing.
throughput  Steps a second before and after one of R nodes is lost for good, with its memory. Emulated nodes; a chain of
            equal layers, 12 for R = 4 and 56 for R = 8, so that they divide evenly before and after.
efficiency  Useful steps per wall time against the undisturbed run of the same command, where a rank at random is killed
            at moments of a Poisson process: the same moments and ranks for the ring and the parameter servers, all on
            the same emulated nodes, all under the supervisor, all with checkpoints as --mtbf places them. A kill that
            falls into a recovery hits its rank as soon as that is back, and so may cost more than it would have. The
            undisturbed run takes the checkpoints of the longest mean.
outcomes    Outcome by role and fault: `ringtmp.jobs.experiments.resilience_outcomes`.

Writes results/resilience.h5 (the parts that are measured; others are kept) and jobs/figures/resilience.png; --quick
takes small and few runs and writes to --out alone.
"""

import argparse
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ringtmp.jobs.experiments import resilience_figure
from ringtmp.jobs.experiments.resilience_outcomes import BSP, RING, outcomes
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.experiment import Claim, Experiment, Table, experiment
from ringtmp.jobs.lib.page import Page
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.strikes import poisson
from ringtmp.jobs.lib.struck_job import open_mpi
from ringtmp.jobs.lib.supervised_runs import (
    Course,
    Recovery,
    heal,
    loaded,
    lose_node,
    paced,
    place,
    relaunch,
    run_through,
)
from ringtmp.jobs.lib.watch import (
    Watch,
    efficiency,
    expected,
    fell_back,
    lost_seconds,
    per_second,
    rate,
    reported_recoveries,
    useful,
)
from ringtmp.jobs.lib.ways import WAYS, Way
from ringtmp.resilience.incident import PHASES

RECOVERIES = (
    Recovery("relaunch, standby", relaunch("--standby", "on"), True, 2.0),
    Recovery("relaunch", relaunch("--standby", "off"), False, 2.0),
    Recovery("within the job (ULFM)", heal, False, 0.5, kills=1),
)
COMPARED = (RING, BSP, WAYS["ssp"], WAYS["asp"])
SIZES = {"small": "mlp:64-48x7-10", "100 MB": "mlp:64-1024x9-10"}
AIM_RATE, AIM_EFFICIENCY = 0.95, 0.81
Rows = list[dict[str, Any]]


# ---- recovery time --------------------------------------------------------------------------------------------------


def recovery(quick: bool) -> Rows:
    """Kill ranks one after the other, and measure the time until the first new step; `quick`: one way, few kills."""
    rows = []
    for size, model in SIZES.items():
        for way in RECOVERIES:
            if quick and (size, way) != ("small", RECOVERIES[0]):
                continue
            if way.kills and not open_mpi():
                _say(f"recovery, {size}, {way.name}: left out; make setup MPI=openmpi makes the environment for it")
                continue
            row = _recover(way, model, 2 if quick else 12)
            rows.append({"size": size, "model": model, "ranks": 4, "way": way.name, "aim": way.aim, **row})
            _say(
                f"recovery, {size}, {way.name}: {row['total'][0]:.2f} s to the first new step "
                f"({row['total'][1]:.2f} to {row['total'][2]:.2f}) in {row['kills']} kills"
            )
    return rows


def _recover(way: Recovery, model: str, kills: int) -> dict[str, Any]:
    flags = [
        "--model",
        model,
        "--steps",
        "1000000",
        "--eval-every",
        "0",
        "--checkpoint-every",
        "0",
        "--batch-size",
        "32",
        "--micro-batches",
        "4",
        "--lr",
        "1e-4",
        "--lr-schedule",
        "constant",
        "--name",
        "run",
    ]
    draw = random.Random(1)
    runs = [_strike(way, flags, way.kills or kills, draw) for _ in range(kills // (way.kills or kills))]
    totals = [seconds for run in runs for seconds in run[0]]
    told = [each for run in runs for each in run[1]]
    ready = [stood for run in runs for stood in run[2]]
    phases = {phase: [seconds.get(phase, 0.0) for seconds, _ in told] for phase in ("detect", *PHASES)}
    return {
        "kills": len(totals),
        "stood_by": sum(ready),
        "again_at_most": max(again for _, again in told),
        "total": quartiles(totals, interpolate=True),
        "phases": {phase: quartiles(values, interpolate=True) for phase, values in phases.items()},
    }


def _strike(
    way: Recovery, flags: list[str], kills: int, draw: random.Random
) -> tuple[list[float], list[tuple[dict[str, float], int]], list[bool]]:
    """In one run: seconds to each first new step, seconds by phase and steps made again, whether others stood by."""
    kills_at: list[float] = []
    backs: list[float] = []
    ready: list[bool] = []
    with place(4) as folder, way.start(folder, 4, flags) as job, Watch(job) as watch:
        watch.until(20, 120)
        for _ in range(kills):
            if way.stands_by:
                ready.append(loaded(job, 4))
            else:
                time.sleep(1.0)
            rank, phase, told = draw.randrange(4), draw.choice("FIWU"), job.recovered()
            job.catch(rank, phase, 0)
            kills_at.append(time.time())
            job.kill(rank)
            while job.recovered() == told:
                if time.time() > kills_at[-1] + 60 or job.process.poll() is not None:
                    raise SystemExit(f"no recovery from a kill of rank {rank} in {phase}:\n{job.text}")
                time.sleep(0.002)
            backs.append(time.time())
            watch.until(watch.newest + 5, 60)
        job.process.send_signal(signal.SIGTERM)
        job.wait(60)
        recoveries, new = reported_recoveries(job.text), useful(watch.moments)
    totals: list[float] = []
    told_of_all: list[tuple[dict[str, float], int]] = []
    for moment, back, told_of in zip(kills_at, backs, recoveries, strict=True):
        seconds = told_of["seconds"]
        # The line comes with the first step of the new launch, after the report of the lost one.
        totals.append(next(at for at, _ in new if at > back - seconds.get("redo", 0)) - moment)
        detect = max(0.0, back - moment - sum(seconds.values()))
        told_of_all.append(({"detect": detect, **seconds}, told_of["again"]))
    return totals, told_of_all, ready


# ---- throughput after a loss ----------------------------------------------------------------------------------------


def throughput(quick: bool) -> Rows:
    """Steps a second before and after one of R nodes is gone for good; `quick`: one short run on 4 nodes."""
    rows = []
    for ranks, layers in ((4, 12), (8, 56)):
        if quick and ranks != 4:
            continue
        step, seconds = 0.12 if quick else 0.2, 3.0 if quick else 30.0
        for seed in range(1 if quick else 3):
            rank = random.Random(seed).randrange(ranks)
            flags = [
                *paced(layers, step, 1 / ranks, 1000000, checkpoint_every=0, seed=seed),
                "--micro-batches",
                str(2 * ranks),
            ]
            with place(ranks) as folder, relaunch()(folder, ranks, flags) as job, Watch(job) as watch:
                begin = watch.until(10, 120)
                loaded(job, ranks)
                begin = time.time()
                time.sleep(seconds)
                job.catch(rank, "W", 0)
                fault, newest = time.time(), watch.newest
                lose_node(folder, rank)
                job.kill(rank)
                back = watch.until(newest + 10, 120)
                loaded(job, ranks - 1)
                back = time.time()
                time.sleep(seconds)
                end = time.time()
                job.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    job.wait(60)
                over = f"{ranks - 1} ranks" in job.text
            before, after = rate(watch.moments, begin, fault), rate(watch.moments, back, end)
            ratio = after / before / ((ranks - 1) / ranks)
            rows.append(
                {
                    "ranks": ranks,
                    "layers": layers,
                    "seed": seed,
                    "lost": rank,
                    "before": before,
                    "after": after,
                    "share_of_ideal": ratio,
                    "aim": AIM_RATE,
                    "over": over,
                }
            )
            _say(
                f"throughput, {ranks} nodes, one lost: {before:.2f} -> {after:.2f} steps/s, {ratio:.1%} of "
                f"{ranks - 1}/{ranks}"
            )
    return rows


# ---- efficiency under failures --------------------------------------------------------------------------------------


def efficiencies(quick: bool) -> Rows:
    """Useful steps per wall time with failures at random, relative to the run without failures; `quick`: short runs."""
    ranks, step = 4, 0.06
    means, length, seeds = ([10.0], 8.0, [1]) if quick else ([60.0, 30.0, 15.0], 100.0, [1])
    rows = []
    for way in COMPARED[:2] if quick else COMPARED:
        calm = _course(way, ranks, step, 4.0 if quick else 60.0, means[0], [], 1e9)
        alone = calm.rate
        _say(f"efficiency, {way.label}: {alone:.2f} steps/s undisturbed")
        for mean in means:
            for seed in seeds:
                schedule = poisson(mean, 50 * length, ranks, seed)
                course = _course(way, ranks, step, length, mean, schedule, alone)
                rows.append(_row(way, course, mean, seed, alone, quick))
                _say(
                    f"efficiency, {way.label}, a failure in {mean:g} s: {rows[-1]['efficiency']:.1%} with "
                    f"{rows[-1]['kills']} kills in {rows[-1]['seconds']:.0f} s; {rows[-1]['cost']:.2f} s each, so "
                    f"{rows[-1]['expected']:.1%} in the long run"
                )
    return rows


def _course(
    way: Way,
    ranks: int,
    step: float,
    length: float,
    mean: float,
    schedule: list[tuple[float, int]],
    alone: float,
) -> Course:
    """A run that undisturbed, at `alone` steps a second if that is known, lasts so long."""
    # All nodes are alike: a worker's share of a batch takes the seconds of a step; the ring has one node more.
    flags = paced(12, step, 1 / (ranks - 1), max(20, round(length * min(alone, 1 / step))), mtbf=mean)
    return run_through(way, ranks, flags, schedule, 20 * length + 120)


def _row(way: Way, course: Course, mean: float, seed: int, alone: float, quick: bool) -> dict[str, Any]:
    share, kills = efficiency(course.rate, alone), len(course.strikes)
    cost = lost_seconds(share, course.seconds, kills)
    return {
        "way": way.label,
        "mean": mean,
        "seed": seed,
        "kills": kills,
        "seconds": course.seconds,
        "steps": course.moments[-1][1],
        "undisturbed": alone,
        "efficiency": share,
        "cost": cost,
        "expected": expected(cost, mean),
        "again": fell_back(course.moments),
        "finished": course.finished,
        "aim": AIM_EFFICIENCY if way.trainer == "ring" and mean == 60 else None,
        "scaled": quick,
        "strikes": [at - course.begin for at in course.strikes],
        "course": per_second(course.moments, course.begin),
    }


# ---- the experiment --------------------------------------------------------------------------------------------------

MEASURED: dict[str, Callable[[bool], Rows]] = {
    "recovery": recovery,
    "throughput": throughput,
    "efficiency": efficiencies,
    "outcomes": outcomes,
}


def _say(text: str) -> None:
    print(f"{time.perf_counter() - _BEGAN:5.0f} s  {text}", flush=True)


_BEGAN = time.perf_counter()


@experiment
class Resilience(Experiment):
    """Recovery time, throughput after a loss, efficiency under failures, outcomes of faults."""

    name, order, width = "resilience", 50, 150
    about = "recovery by phase, throughput after a loss, efficiency under failures, outcomes"

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Which parts."""
        parser.add_argument("--only", default=",".join(MEASURED), help="parts to measure, with commas between them")

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Part by part; --quick: few and short runs."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
        parts = options.only.split(",")
        if unknown := [part for part in parts if part not in MEASURED]:
            options.error(f"--only: expected some of {', '.join(MEASURED)}, got {', '.join(unknown)}")
        origins = table.setdefault("provenance", {})
        for part in parts:
            began = time.perf_counter()
            table[part] = MEASURED[part](options.quick)
            seconds = round(time.perf_counter() - began)
            pace = "so that a step takes 0.06 to 0.2 s"
            origins[part] = provenance(seconds=seconds, quick=options.quick, pace=pace)
            save()

    def show(self, table: Table, page: Page) -> None:
        """All parts that the table has."""
        resilience_figure.show(table, page)

    def draw(self, table: Table, path: Path) -> None:
        """Throughput over time with kill marks; efficiency by failure rate; recovery by phase."""
        resilience_figure.draw(table, path)

    def claims(self, table: Table) -> list[Claim]:
        """Efficiency under failures, and how many faults were survived."""
        found = []
        rows = table.get("efficiency", [])
        for mean in sorted({row["mean"] for row in rows}, reverse=True):
            share = {row["way"]: row["efficiency"] for row in rows if row["mean"] == mean}
            others = ", ".join(f"{way} {value:.1%}" for way, value in share.items() if way != "ring")
            text = f"a rank killed every {mean:g} s: the ring keeps {share['ring']:.1%} of its steps"
            found.append(Claim(text, others, "emulated nodes, real kills", self.name))
        if every := table.get("outcomes", []):
            ours = [row for row in every if row["role"].startswith(("ring", "first"))]
            theirs = [row for row in every if row not in ours]
            alive, theirs_alive = (sum(bool(row["survived"]) for row in some) for some in (ours, theirs))
            found.append(
                Claim(
                    f"{alive} of {len(ours)} faults of ring ranks survived, at most "
                    f"{max(row['pause'] for row in ours):.1f} s without a step",
                    f"of server and workers {theirs_alive} of {len(theirs)}, "
                    f"at most {max(row['pause'] for row in theirs):.1f} s",
                    "real faults",
                    self.name,
                )
            )
        return found

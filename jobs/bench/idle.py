"""Idle time side by side: what the schedule forces, what the clock predicts, what a run measured.

Usage: make bench-idle [ARGS="--repeats 3"]. Cases: 2 ranks on 2 cores at full speed; 4 and 8 emulated nodes
(`--node-speed`), dense layers of equal cost, chained steps; 8 emulated nodes whose every action varies by 30 %. Idle is
time blocked in a wait (from the trace, steady state); the clock knows the layers' durations and a latency, nothing of
the run.
"""

import argparse
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.analysis import open_run
from ringtmp.analysis.steady import steady
from ringtmp.emulate import node_speed as speed
from ringtmp.jobs.lib.launch import launch
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.store import publish_benchmark
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.schedule.local_rule import default_most
from ringtmp.schedule.registry import build
from ringtmp.simulate import planner
from ringtmp.simulate.pipeline import Scene, simulate

ACTION = 4e-3  # seconds of F of a whole rank on an emulated node
LATENCY = 120e-6  # seconds from the end of an action to its neighbour's notice, 8 ranks napping on 2 cores
WIDTH, LAYERS, ROWS = 64, 32, 32
FULL_SPEED_BATCH = 512  # samples of a step at full speed
STEPS, SKIP = 26, 5


@dataclass(frozen=True)
class Case:
    """One run: `schedule` is a plan's name or `ready`; `held` bounds what the rule may hold."""

    ranks: int
    micro_batches: int
    schedule: str
    chunks: int = 1
    jitter: float = 0.0
    held: int = 0
    paced: bool = True

    @property
    def name(self) -> str:
        """As it stands in the table."""
        chunks = f" v{self.chunks}" if self.chunks > 1 else ""
        return self.schedule + chunks + (f" (at most {self.held} held)" if self.held else "")

    @property
    def speed(self) -> float:
        """GFLOP/s of an emulated node."""
        return 2 * ROWS * WIDTH * WIDTH * LAYERS / self.ranks / ACTION / 1e9

    @property
    def w_group(self) -> int:
        """Most micro-batches that one W of the engine takes: 1 on emulated nodes, as many as fill it at full speed."""
        return 1 if self.paced else _model(False).w_group(FULL_SPEED_BATCH // self.micro_batches, self.micro_batches)

    @property
    def most(self) -> int:
        """Most micro-batches that the engine lets the rule hold."""
        return self.held or default_most(self.ranks, self.w_group)

    def settings(self) -> dict[str, Any]:
        """For `ringtmp.train`."""
        ready = self.schedule == planner.RULE
        width, layers, rows = (WIDTH, LAYERS, ROWS) if self.paced else (1024, 8, FULL_SPEED_BATCH // self.micro_batches)
        batch = rows * self.micro_batches
        settings: dict[str, Any] = {
            "model": f"mlp:{width}-{width}x{layers}",
            "batch_size": batch,
            "micro_batches": self.micro_batches,
            "data": f"synthetic:samples={3 * batch},features={width},classes={width}",
            "optimizer": "momentum",
            "lr": 1e-3,
            "steps": STEPS,
            "eval_every": 0,
            "checkpoint_every": 0,
            "chunks": self.chunks,
        }
        settings |= {"mode": "ready"} if ready else {"schedule": self.schedule}
        if self.held:
            settings["in_flight"] = self.held
        return settings | ({"node_speed": str(self.speed), "jitter": self.jitter} if self.paced else {})

    def problem(self) -> planner.Problem:
        """As the clock sees it."""
        model, batch = _model(self.paced), self.settings()["batch_size"]
        optimizer = Optimizer("momentum")
        dtype = np.dtype(np.float32)
        costs = speed.costs_paced(model) if self.paced else speed.costs_on(model, dtype, optimizer)
        return planner.Problem(
            model,
            batch,
            dtype,
            optimizer,
            self.ranks,
            costs,
            LATENCY if self.paced else 5e-6,
            float("inf") if self.paced else 5e9,
            (self.speed,) * self.ranks if self.paced else (),
            self.jitter,
            in_flight=self.held,
            whole=self.paced,
        )


@cache
def _model(paced: bool) -> Model:
    width, layers = (WIDTH, LAYERS) if paced else (1024, 8)
    return build_model(f"mlp:{width}-{width}x{layers}", "auto", (width,), "classes", width)


def cases() -> list[Case]:
    """All cases, those of one number of ranks together."""
    found = []
    for m in (8, 16):
        found += [Case(2, m, name, paced=False) for name in ("1f1b", "zb-h2", planner.RULE)]
    for p in (4, 8):
        for m in (8, 16, 32):
            found += [Case(p, m, "gpipe"), Case(p, m, "1f1b"), Case(p, m, "interleaved", 2), Case(p, m, "zb-h1")]
            found += [Case(p, m, "zb-h2"), Case(p, m, "interleaved-zb", 2)]
            found.append(Case(p, m, planner.RULE, held=(3 if m >= 4 * p else 2) * p))
    for m in (16, 32):
        names = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-h2", 1), ("interleaved-zb", 2))
        found += [Case(8, m, name, v, 0.3) for name, v in names]
        found.append(Case(8, m, planner.RULE, 1, 0.3, (2 if m == 16 else 3) * 8))
    return found


def ideal(case: Case) -> float:
    """Idle share that the schedule of `case` forces once steps overlap; F, I and W last 1, no latency or jitter.

    The rule may hold as many micro-batches as in the measured run.
    """
    scene = Scene.even(case.ranks, case.micro_batches, chunks=case.chunks, layers=LAYERS // case.ranks)
    plan = None if case.schedule == planner.RULE else build(case.schedule, case.ranks, case.micro_batches, case.chunks)
    return simulate(scene, plan, steps=20, most=case.most).steady_idle


def main() -> None:
    """Measure and publish."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=3, help="runs of each case, by turns [3]")
    arguments.add_argument("--only", default="", help="cases whose description holds this text, such as p8 m16")
    options = arguments.parse_args()
    chosen = [case for case in cases() if options.only in describe(case)]
    values: dict[Case, list[tuple[float, float, int]]] = {case: [] for case in chosen}
    for repeat in range(options.repeats):
        for ranks in sorted({case.ranks for case in chosen}):
            some = [case for case in chosen if case.ranks == ranks]
            with tempfile.TemporaryDirectory() as folder:
                runs = [case.settings() | {"out": folder, "name": str(n)} for n, case in enumerate(some)]
                for start in range(0, len(runs), 7):  # one launch for a few runs
                    launch(ranks, [{"trainer": "ring", "train": run} for run in runs[start : start + 7]])
                    for n, case in list(enumerate(some))[start : start + 7]:
                        values[case].append(_read(Path(folder) / str(n)))
                        print(f"{describe(case)}: {values[case][-1][1]:.1%} idle ({repeat + 1})", flush=True)
    rows = [_row(case, values[case]) for case in chosen]
    _publish(rows, bool(options.only))


def describe(case: Case) -> str:
    """Ranks, micro-batches, way and jitter of `case`, as text."""
    return f"p{case.ranks} m{case.micro_batches} {case.name}{f' jitter {case.jitter:.0%}' if case.jitter else ''}"


def _read(path: Path) -> tuple[float, float, int]:
    """Seconds of a step, idle share, most micro-batches held."""
    run = open_run(path)
    state = steady(run.events(), SKIP)
    return state.seconds, state.idle, int(run.peak_in_flight().max())


def _row(case: Case, values: list[tuple[float, float, int]]) -> dict[str, Any]:
    outcome, _ = planner.run(case.problem(), case.schedule, case.micro_batches, case.chunks, steps=STEPS)
    seconds, idle = [float(np.median([v[n] for v in values])) for n in (0, 1)]
    low, high = np.percentile([v[1] for v in values], [25, 75])
    p, m = case.ranks, case.micro_batches
    formula = (p - 1) / (case.chunks * m + p - 1) if case.schedule in ("1f1b", "gpipe", "interleaved") else None
    return {
        "case": describe(case),
        "ranks": p,
        "micro_batches": m,
        "way": case.name,
        "jitter": case.jitter,
        "paced": case.paced,
        "formula": formula,
        "planned": ideal(case),
        "simulated": outcome.steady_idle,
        "idle": idle,
        "low": float(low),
        "high": float(high),
        "step": seconds,
        "simulated_step": outcome.step_seconds,
        "off": outcome.step_seconds / seconds - 1,
        "held": max(v[2] for v in values),
    }


def _publish(rows: list[dict[str, Any]], partial: bool) -> None:
    for row in rows:  # beside 1F1B of the same ranks, micro-batches and jitter
        same = ("ranks", "micro_batches", "jitter", "paced")
        base = next((r for r in rows if r["way"] == "1f1b" and all(r[k] == row[k] for k in same)), None)
        row["times_1f1b"] = base["step"] / row["step"] if base else None
    heads = (
        "case",
        "formula",
        "planned",
        "simulated",
        "measured",
        "quartiles",
        "step ms",
        "simulated",
        "x 1F1B",
        "held",
    )
    title = "Idle share of the ranks' time, steady state; p and m: ranks and micro-batches"
    table = make_table(title, heads, ("case",), wrap=False)
    for row in rows:
        table.add_row(
            row["case"] + ("" if row["paced"] else " unpaced"),
            _percent(row["formula"]),
            _percent(row["planned"]),
            _percent(row["simulated"]),
            _percent(row["idle"]),
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{1e3 * row['step']:.1f}",
            f"{row['off']:+.1%}",
            f"{row['times_1f1b']:.2f}" if row["times_1f1b"] else "",
            str(row["held"]),
        )
    Page(150).print(table)
    publish_benchmark("idle", rows, keep=not partial)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()

"""How far each schedule and the local rule are from the best possible one, on cases small enough to search.

Usage: ringtmp experiment optimum [--out FOLDER]

F, I and W last 1, an update and messages nothing; a rank's F of a step comes after its own W's of the step before; a
rank holds at most `cap` micro-batches (F begun, W not done). For every case two figures, both exact: the time of a
single step, and the time of a step once steps chain for ever. Prints a table, writes results/optimum.h5.

What was found (p ranks, m micro-batches): a single step takes max(3 m + p - 1, 2 m + 2 p - 1) at best, whether a rank
may hold p or any number; a chained one the same with p held, and max(3 m, 2 m + 2 p - 1) with 2 p - 1.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from ringtmp.jobs.lib.experiment import Experiment, Table, experiment
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.schedule.plan import Plan
from ringtmp.schedule.registry import build, plan_names
from ringtmp.simulate.pipeline import Scene, simulate

MICRO_BATCHES = (1, 2, 3, 4, 5, 6, 8, 12)
RULE = "the rule"
NAMES = [name for name in plan_names() if name != "interleaved"]  # that is 1F1B where ranks have one stage

State = tuple[int, ...]  # how many F, I, W each rank has done since the start: F, I, W of rank 0, of rank 1, ...


@dataclass(frozen=True)
class Figures:
    """Time of a single step, and of a step once steps overlap, in units of an action."""

    makespan: float
    period: float


def optimum(p: int, m: int, cap: int | None = None) -> Figures:
    """The least times of any order of actions.

    Time runs in units, and `front` holds the states that can be reached by now. Nothing is lost by

    - counting: micro-batches are alike, so the n-th F of a rank may be taken to be that of micro-batch n;
    - whole units: every order, each action as early as it can be, begins actions at whole times only;
    - never idling where something can run, and dropping a state if in another one every count is as high: all
      constraints say "the n-th of this after the k-th of that" (the cap and the chained steps too), so from the other
      state the same actions can follow, less those that it has behind it.

    The possible continuations do not depend on the number of whole steps before. So once a front is an earlier one
    moved on by some steps, all later ones repeat, and the steps per time in between are those of the best endless
    schedule.

    Parameters
    ----------
    p : int
        Ranks.
    m : int
        Micro-batches of a step.
    cap : int, optional
        Most micro-batches that a rank may hold; by default any number.

    Raises
    ------
    ValueError
        `cap` is below 1.
    """
    if cap is not None and cap < 1:
        raise ValueError(f"cap: expected 1 or more, got {cap}")
    front: list[State] = [(0,) * (3 * p)]
    seen: dict[frozenset[State], tuple[int, int]] = {}
    time, makespan = 0, 0
    while True:
        steps = min(map(min, front)) // m
        shape = frozenset(tuple(count - steps * m for count in state) for state in front)
        if makespan and shape in seen:
            before, steps_before = seen[shape]
            return Figures(makespan, float(Fraction(time - before, steps - steps_before)))
        seen[shape] = time, steps
        time += 1
        front = _undominated({after for state in front for after in _following(state, m, cap)})
        if not makespan and any(min(state) >= m for state in front):
            makespan = time


def _following(state: State, m: int, cap: int | None) -> Iterable[State]:
    """What can have been done a unit of time later: each rank runs one of the actions that it can, if there is one."""
    ranks = []
    for r in range(0, len(state), 3):
        f, i, w = state[r : r + 3]
        come = f + 1 if r == 0 else state[r - 3]
        back = f if r + 3 == len(state) else min(f, state[r + 4])
        can = []
        if f < come and f < (w // m + 1) * m and (cap is None or f - w < cap):
            can.append((f + 1, i, w))
        if i < back:
            can.append((f, i + 1, w))
        if w < i:
            can.append((f, i, w + 1))
        ranks.append(can or [(f, i, w)])
    return (sum(choice, ()) for choice in product(*ranks))


def _undominated(states: set[State]) -> list[State]:
    """Those to which no other is equal or higher in every count."""
    counts = np.array(list(states), np.int16)
    totals = counts.sum(1)
    kept = counts[:0]
    for total in np.unique(totals)[::-1]:  # only one with a higher sum can be as high everywhere
        level = counts[totals == total]
        fresh = [row for row in level if not np.all(kept >= row, axis=1).any()]
        kept = np.concatenate([kept, *(row[None] for row in fresh)])
    return [tuple(row) for row in kept.tolist()]


def reached(p: int, m: int, cap: int | None, plan: Plan | None = None) -> Figures | None:
    """Simulated times of a plan or, without one, of the local rule; None if it holds more than `cap` micro-batches.

    The rule's single step is its first, the chained ones come after it has learnt. They are counted over 24 steps:
    exact, unless they repeat only after a number of steps that does not divide 24.

    Parameters
    ----------
    p : int
        Ranks.
    m : int
        Micro-batches of a step.
    cap : int or None
        Most micro-batches that a rank may hold; None: any number.
    plan : Plan, optional
        The plan.
    """
    scene = Scene.even(p, m)
    single, chained = (simulate(scene, plan, steps=steps, most=cap) for steps in (1, 48))
    if cap is not None and max(single.held.max(), chained.held.max()) > cap:
        return None
    return Figures(single.seconds, float(chained.ends[47] - chained.ends[23]) / 24)


def rows(ranks: Iterable[int] = (2, 3, 4), micro_batches: Iterable[int] = MICRO_BATCHES) -> list[dict[str, Any]]:
    """A row for each case: the optimum, and the times of each schedule and of the rule (null: holds too much).

    `ranks` and `micro_batches` list the numbers that are combined.
    """
    table = []
    for p, m in product(ranks, micro_batches):
        plans = {name: build(name, p, m) for name in NAMES}
        for cap in (p, 2 * p - 1, None):
            row: dict[str, Any] = {"ranks": p, "micro_batches": m, "cap": cap, "optimum": asdict(optimum(p, m, cap))}
            for name in [*NAMES, RULE]:
                figures = reached(p, m, cap, plans.get(name))
                row[name] = figures and asdict(figures)
            table.append(row)
    return table


def _lost(figures: dict[str, float] | None, best: dict[str, float]) -> str:
    if figures is None:
        return "-"
    lost = [round(figures[key] - best[key], 6) for key in ("makespan", "period")]
    return " ".join(f"+{each:g}" for each in lost) if any(lost) else "="


@experiment
class Optimum(Experiment):
    """The optimum of every small case, and what each schedule and the rule lose to it."""

    name, about, order = "optimum", "how far each schedule is from the true optimum of tiny rings", 110
    pictured = False

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Search; --quick does the same, since all takes seconds."""
        table.clear()
        table |= {"provenance": provenance(links="simulated", pace="simulated"), "rows": rows()}

    def show(self, table: Table, page: Page) -> None:
        """A line for each case."""
        heads = ("p", "m", "held", "optimum", *NAMES, RULE)
        shown = make_table("Time of a step, single and chained: the optimum, and what is lost to it", heads, wrap=False)
        for row in table["rows"]:
            best, cap = row["optimum"], row["cap"]
            cells = [f"{best['makespan']:g} {best['period']:g}"]
            cells += [_lost(row[name], best) for name in (*NAMES, RULE)]
            shown.add_row(
                str(row["ranks"]),
                str(row["micro_batches"]),
                "any" if cap is None else f"<= {cap}",
                *cells,
                end_section=cap is None,
            )
        page.print(shown)
        print("=: none; -: holds more. All times in units of F = I = W = 1.")

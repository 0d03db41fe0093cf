"""The local rule's limits, swept under the clock: what is best, and what the rule finds by itself.

Usage: ringtmp experiment limits [--quick] [--out FOLDER]

For rings of several sizes, delays, jitters, unequal ranks and memories, every pair of fixed limits (how many
micro-batches a rank may hold, how far ahead of its gradients it may run) is compared with the rule as it trains,
starting from `ringtmp.schedule.local_rule.first_limits` and growing as it waits, and with what the planner picks for it
(`--schedule auto`). Prints a table, writes results/limits.h5 and jobs/figures/limits.png. All of it is simulated.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringtmp.jobs.lib.experiment import Experiment, Table, experiment
from ringtmp.jobs.lib.page import Page, make_table
from ringtmp.jobs.lib.plot import figure, frame
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate
from ringtmp.simulate.planner import AHEAD

SEEDS, STEPS, PIECES = 3, 24, 4
SLOPES, BASES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0), (1, 2, 4)  # forwards ahead: slope x ranks to the right + base


@dataclass(frozen=True)
class Setting:
    """A simulated ring.

    Parameters
    ----------
    ranks, micro_batches : int
        Ranks, and micro-batches of a step.
    latency : float
        Latency of a message, in units of an action.
    jitter : float
        Bound of the relative change of each action's duration, from 0 to below 1.
    slow : float
        Duration of the middle rank's actions, relative to those of the others.
    most : int
        Bound of the micro-batches that a rank may hold, in units of `ranks`.
    """

    ranks: int
    micro_batches: int
    latency: float
    jitter: float
    slow: float
    most: int  # in units of the ranks

    def scenes(self) -> list[Scene]:
        """One scene for each seed."""
        slower = {self.ranks // 2: self.slow} if self.slow != 1 else None
        return [
            Scene.even(
                self.ranks,
                self.micro_batches,
                latency=self.latency,
                jitter=self.jitter,
                seed=seed,
                layers=PIECES,
                slower=slower,
            )
            for seed in range(SEEDS if self.jitter else 1)
        ]


def settings(quick: bool) -> list[Setting]:
    """The settings that are swept; `quick`: few of them."""
    rings = [(4, 8), (8, 16)] if quick else [(2, 8), (4, 8), (4, 16), (8, 8), (8, 16), (8, 32), (16, 32), (16, 64)]
    delays, jitters = ((0.05,), (0.0, 0.3)) if quick else ((0.0, 0.05, 0.5), (0.0, 0.1, 0.3))
    return [
        Setting(p, m, delay, jitter, slow, most)
        for (p, m), delay, jitter, slow, most in itertools.product(rings, delays, jitters, (1.0, 1.3), (1, 2, 3))
    ]


def sweep(setting: Setting) -> dict[str, Any]:
    """Idle share of the best fixed limits, of the rule by itself, and of the best plans, for `setting`."""
    p, m, scenes = setting.ranks, setting.micro_batches, setting.scenes()
    most = min(setting.most * p, m)

    def idle(**how: Any) -> float:
        return float(np.mean([simulate(scene, steps=STEPS, **how).steady_idle for scene in scenes]))

    found: dict[str, float] = {}
    for cap in sorted({min(c, most) for c in (p, 3 * p // 2, 2 * p, 5 * p // 2, 3 * p)}):
        for slope, base in itertools.product(SLOPES, BASES):
            limit = np.array([[min(most, int(slope * (p - 1 - r)) + base)] for r in range(p)])
            found[f"hold {cap}, ahead {slope:g} r + {base}"] = idle(
                limits=(np.full((p, 1), cap), limit), adaptive=False, most=most
            )
    best = min(found, key=lambda name: found[name])
    own = idle(most=most)
    auto = min(idle(most=most, ahead=ahead) for ahead in AHEAD)  # what the planner picks for the rule
    plans = {
        name: float(np.mean([simulate(s, build(name, p, m), steps=STEPS).steady_idle for s in scenes]))
        for name in ("1f1b", "zb-h1", "zb-h2")
    }
    floor = 1 - scenes[0].busy.mean() / scenes[0].busy.max()  # where the slowest rank never waits
    return {
        "ranks": p,
        "micro_batches": m,
        "latency": setting.latency,
        "jitter": setting.jitter,
        "slow": setting.slow,
        "most": most,
        "best": best,
        "best_idle": found[best],
        "rule": own,
        "auto": auto,
        "points": 100 * (own - found[best]),
        "auto_points": 100 * (auto - found[best]),
        "floor": float(floor),
        **plans,
    }


@experiment
class Limits(Experiment):
    """Idle share of the best fixed limits, of the rule by itself, and of the best plans."""

    name, order, width = "limits", 100, 130
    about = "what the local rule finds by itself beside the best fixed limits (simulated)"

    def measure(self, options: argparse.Namespace, table: Table, save: Callable[[], None]) -> None:
        """Sweep; --quick: a few settings only."""
        rows = []
        every = settings(options.quick)
        for number, setting in enumerate(every):
            rows.append(sweep(setting))
            if number % 36 == 35:
                print(f"{number + 1} of {len(every)} settings", flush=True)
        table.clear()
        table |= {"provenance": provenance(links="simulated", pace="simulated"), "rows": rows}

    def show(self, table: Table, page: Page) -> None:
        """The worst settings, and those without a slow rank."""
        rows = table["rows"]
        heads = (
            "p",
            "m",
            "may hold",
            "latency",
            "jitter",
            "slow rank",
            "best fixed limits",
            "best",
            "rule",
            "1F1B",
            "ZB-H2",
        )
        shown = make_table("Idle share, chained steps, simulated; latency in actions", heads)
        worst = sorted(rows, key=lambda row: -row["points"])
        for row in worst[:15] + [
            row for row in rows if row["latency"] == 0.05 and row["slow"] == 1.0 and row not in worst[:15]
        ]:
            shares = [row["best_idle"], row["rule"], row["auto"], row["1f1b"], row["zb-h2"]]
            shown.add_row(
                str(row["ranks"]),
                str(row["micro_batches"]),
                str(row["most"]),
                f"{row['latency']:g}",
                f"{row['jitter']:.0%}",
                f"x {row['slow']:g}",
                row["best"],
                *(f"{share:.1%}" for share in shares),
            )
        page.print(shown)
        for name, key in (("rule by itself", "points"), ("limits that auto picks", "auto_points")):
            over = np.array([row[key] for row in rows])
            print(
                f"{name} minus best found, points: median {np.median(over):.2f}, 95 % {np.percentile(over, 95):.2f}, "
                f"worst {max(over):.2f}; within 1 point in {np.mean(over <= 1):.1%} of {len(rows)} settings"
            )

    def draw(self, table: Table, path: Path) -> None:
        """The rule against the best fixed limits, and against 1F1B."""
        rows = table["rows"]
        with figure(path, 1, 2, 120, figsize=(11, 4.6)) as (_, grid):
            axes = grid[0]
            for jitter, colour in ((0.0, "#0072B2"), (0.1, "#E69F00"), (0.3, "#D55E00")):
                some = [row for row in rows if row["jitter"] == jitter]
                best, own = [100 * r["best_idle"] for r in some], [100 * r["rule"] for r in some]
                axes[0].scatter(best, own, s=14, alpha=0.7, color=colour, label=f"jitter {jitter:.0%}")
                ahead = [100 * (r["rule"] - min(r["zb-h1"], r["zb-h2"])) for r in some]
                axes[1].hist(ahead, bins=np.arange(-20, 6, 1), alpha=0.6, color=colour, label=f"jitter {jitter:.0%}")
            top = max(100 * r["rule"] for r in rows) + 2
            axes[0].plot([0, top], [0, top], color="black", linewidth=0.8)
            axes[0].plot([0, top - 1], [1, top], color="black", linewidth=0.8, linestyle=":", label="1 point more")
            axes[0].set(xlabel="best fixed limits, idle %", ylabel="the rule by itself, idle %")
            axes[0].set_title("What the rule finds by itself (simulated)", loc="left", fontsize=10)
            axes[1].set(xlabel="points of idle, rule minus best zero-bubble plan (less is better)", ylabel="settings")
            axes[1].set_title("The rule beside ZB-H1 and ZB-H2 (simulated)", loc="left", fontsize=10)
            for ax in axes:
                ax.legend(frameon=False, fontsize=8)
                frame(ax)

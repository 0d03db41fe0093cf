"""The ring under a clock, from Python: the same plans and the same local rule as in training, without a machine.

>>> scene = Scene.even(8, micro_batches=16)
>>> simulate(scene).idle, simulate(scene, build("1f1b", 8, 16)).idle
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.action_kinds import KINDS
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.nn.layer import Array
from ringtmp.schedule.local_rule import default_growth, default_most, first_limits, fixed_limits
from ringtmp.schedule.plan import Plan
from ringtmp.simulate import pipeline_clock as clock

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Scene:
    """What is simulated: stages with durations, links, and how regular they are.

    Attributes
    ----------
    ranks, chunks : int
        Stage `s` of `ranks` x `chunks` lives on rank `s % ranks`.
    sizes : array of float [m]
        Size of each micro-batch of a step, 1.0 for a whole one.
    seconds : array of float [stages, 4]
        Of F, I, W and U of each stage, for a whole micro-batch.
    pieces : tuple of tuple of float
        For each stage, the shares of its W that run without reading the inbox in between (a layer, or several short
        ones together); the shares of a stage add up to 1.
    overhead : float
        Seconds a rank spends beside each action.
    latency : float
        Seconds a message is under way.
    transfer : array of float [stages, 2]
        Seconds a link is taken by a stage's activation, and by the gradient that it sends back.
    jitter : float
        Durations vary by a factor uniform in 1 +- jitter.
    seed : int
    """

    ranks: int
    chunks: int
    sizes: Array
    seconds: Array
    pieces: tuple[tuple[float, ...], ...]
    overhead: float = 0.0
    latency: float = 0.0
    transfer: Array = field(default_factory=lambda: np.zeros((0, 2)))
    jitter: float = 0.0
    seed: int = 0

    @classmethod
    def even(
        cls,
        ranks: int,
        micro_batches: int,
        *,
        chunks: int = 1,
        latency: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        layers: int = 1,
        update: float = 0.0,
        times: tuple[float, float, float] = (1.0, 1.0, 1.0),
        slower: dict[int, float] | None = None,
    ) -> "Scene":
        """Equal stages whose F, I and W last `times` on a rank, split over its chunks.

        `layers` of a rank are the pieces of its W; `slower` gives ranks that take so many times as long.
        """
        seconds = np.tile(np.array([*times, update], float) / chunks, (ranks * chunks, 1))
        for rank, factor in (slower or {}).items():
            seconds[rank::ranks] *= factor
        count = max(1, layers // chunks)
        return cls(
            ranks,
            chunks,
            np.ones(micro_batches),
            seconds,
            ((1 / count,) * count,) * (ranks * chunks),
            latency=latency,
            jitter=jitter,
            seed=seed,
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return len(self.sizes)

    @property
    def busy(self) -> Array:
        """Seconds of work of each rank in a step."""
        each = self.seconds[:, :3].sum(1) * self.sizes.sum() + self.seconds[:, 3]
        return each.reshape(self.chunks, self.ranks).sum(0)


class Timed:
    """What every simulation's outcome says about time, whatever was simulated."""

    steps: int
    seconds: float
    busy: Array
    ends: Array

    @property
    def idle(self) -> float:
        """Share of all ranks' time in which they do not work, fill and drain included."""
        return 1.0 - float(self.busy.sum()) / (len(self.busy) * self.seconds)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step once steps chain: the first quarter is left out."""
        skip = self.steps // 4
        if not skip:
            return self.seconds / self.steps
        return float(self.ends[-1] - self.ends[skip - 1]) / (self.steps - skip)

    @property
    def steady_idle(self) -> float:
        """Idle share of a step once steps chain."""
        return 1.0 - float(self.busy.mean()) / self.steps / self.step_seconds


@dataclass(frozen=True)
class Outcome(Timed):
    """What came of a simulation.

    Attributes
    ----------
    scene : Scene
    steps : int
    seconds : float
        From the first action to the last.
    busy : array of float [ranks]
    held : array of int [ranks]
        Most micro-batches that a rank held at once (F begun and W not done), over its chunks.
    ends : array of float [steps]
        When the last rank had made each update.
    actions : int
        Actions run; each piece of a W counts.
    limits : tuple of arrays [ranks, chunks]
        The rule's `cap` and `limit` at the end.
    log : array of float [rows, 6]
        Stage, kind, number, start, end and count of each action; empty unless asked for.
    """

    scene: Scene
    steps: int
    seconds: float
    busy: Array
    held: Array
    ends: Array
    actions: int
    limits: tuple[Array, Array]
    log: Array

    def events(self) -> "DataFrame":
        """The log as a trace would tell it: rank, kind, start and end in nanoseconds, step, micro_batch, stage."""
        import pandas as pd

        stage, kind, number, start, end, count = self.log.T
        m = self.scene.micro_batches
        kinds = np.array(list(KINDS), object)[kind.astype(int)]
        update = kinds == "U"
        number = number.astype(np.int64)
        frame = pd.DataFrame(
            {
                "rank": stage.astype(np.int64) % self.scene.ranks,
                "kind": kinds,
                "start": np.rint(start * 1e9).astype(np.int64),
                "end": np.rint(end * 1e9).astype(np.int64),
                "step": np.where(update, number, number // m),
                "micro_batch": np.where(update, -1, number % m),
                "stage": stage.astype(np.int64),
                "peer": -1,
                "bytes": 0,
            }
        )
        return frame.sort_values(["rank", "start"], ignore_index=True)


class StuckError(Exception):
    """A simulation that did not come to its end; plans that `check` accepts always do."""


def simulate(
    scene: Scene,
    plan: Plan | None = None,
    *,
    steps: int = 20,
    most: int | None = None,
    adaptive: bool = True,
    limits: tuple[Array, Array] | None = None,
    ahead: float = 0.0,
    w_group: int = 1,
    lag: int = 0,
    log: bool = False,
) -> Outcome:
    """Run `steps` chained steps of a plan, or of the local rule.

    Parameters
    ----------
    scene : Scene
    plan : Plan, optional
        By default the local rule decides.
    steps : int
    most : int, optional
        Most micro-batches that the rule may hold in each chunk; by default that of training
        (`ringtmp.schedule.local_rule.default_most`).
    adaptive : bool
        Whether the rule's limits grow by what ranks learn.
    limits : (cap, limit) of arrays [ranks, chunks], optional
        Limits that the rule starts with; by default those of `ahead`, or else
        `ringtmp.schedule.local_rule.first_limits`.
    ahead : float
        If above 0 the limits do not grow, and are `ringtmp.schedule.local_rule.fixed_limits` unless `limits` is given.
    w_group : int
        Most micro-batches that one W of the rule takes together.
    lag : int
        1: weights are one update behind (2BW).
    log : bool
        Keep every action, for `Outcome.events`.

    Raises
    ------
    StuckError
        The plan waits for itself.
    """
    ranks, chunks, stages = scene.ranks, scene.chunks, scene.ranks * scene.chunks
    prepare_kernels(np.float64, {"pipeline_clock"})
    most = default_most(ranks, w_group) if most is None else most
    under_way = (1 + lag) * scene.micro_batches  # as `ringtmp.schedule.policies.LocalRule` counts
    if ahead:
        adaptive = False
        first = [fixed_limits(ranks, chunks, rank, under_way, most, ahead) for rank in range(ranks)]
    elif limits is None:
        first = [first_limits(ranks, chunks, rank, under_way, most, w_group) for rank in range(ranks)]
    if limits is None:
        limits = np.array([each[0] for each in first]), np.array([each[1] for each in first])
    cap, limit = (np.array(each, np.int64).reshape(ranks, chunks) for each in limits)
    codes, ends = plan_codes(plan) if plan else (np.zeros(0, np.int64), np.zeros(ranks, np.int64))
    ring = clock.Ring(
        ranks=ranks,
        chunks=chunks,
        steps=steps,
        sizes=np.asarray(scene.sizes, float),
        seconds=np.ascontiguousarray(scene.seconds, float),
        shares=np.array([share for stage in scene.pieces for share in stage], float),
        share_ends=np.cumsum([len(stage) for stage in scene.pieces]),
        overhead=float(scene.overhead),
        latency=float(scene.latency),
        transfer=np.asarray(scene.transfer if len(scene.transfer) else np.zeros((stages, 2)), float),
        jitter=float(scene.jitter),
        seed=scene.seed,
        lag=lag,
    )
    growth = default_growth(ranks) if adaptive else 0
    orders = clock.Orders(codes, ends, cap, limit, most, growth, w_group)
    rows = np.zeros((steps * scene.micro_batches * stages * 4 * max(map(len, scene.pieces)) if log else 0, 6))
    seconds, busy, held, step_ends, actions = clock.run(ring, orders, rows)
    if seconds < 0:
        raise StuckError(f"{plan.name if plan else 'the rule'} never ends: {scene.ranks} ranks, {chunks} chunks")
    return Outcome(scene, steps, seconds, busy, held, step_ends, actions, (cap, limit), rows[:actions])


def plan_codes(plan: Plan) -> tuple[Array, Array]:
    """A plan as the clock reads it: 8 x stage + kind of every action, and where each rank's end."""
    codes = [8 * action.stage + KINDS.index(action.kind) for actions in plan.ranks for action in actions]
    return np.array(codes, np.int64), np.cumsum([len(actions) for actions in plan.ranks])

"""Which schedule, how many micro-batches and chunks: every candidate is simulated with this network's own costs.

Only synchronous ways are compared. They differ in nothing but the rounding of sums, since they divide a batch into
different micro-batches; the fastest that fits is therefore the best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ringtmp.config.units import show_bytes
from ringtmp.emulate.node_speed import CostTable
from ringtmp.errors import UserError
from ringtmp.nn.buffers import slot_bytes
from ringtmp.nn.layer import pieces
from ringtmp.nn.model import Model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import LOOK, join
from ringtmp.schedule.local_rule import default_most
from ringtmp.schedule.partition import partition
from ringtmp.schedule.plan import Plan, peak_in_flight
from ringtmp.schedule.policies import POSTED
from ringtmp.schedule.registry import SCHEDULES, build, plan_names
from ringtmp.simulate.pipeline import Outcome, Scene, simulate

ENGINE = 8e-6  # seconds the engine takes beside each action (`make bench` measures it)
RULE = "ready"
AHEAD = (0.0, 1.0, 1.5, 2.0, 3.0)  # limits of the rule that are tried; `jobs/experiments/limits.py` sweeps more


@dataclass(frozen=True)
class Problem:
    """A network to be trained on a ring.

    Attributes
    ----------
    model : Model
        The network.
    batch : int
        Samples of a step.
    dtype : numpy dtype
        Dtype of weights and activations.
    optimizer : Optimizer
        Decides the memory of its slots and the time of an update.
    ranks : int
        Ranks of the ring.
    costs : callable
        (rows, w_group) -> cost of each layer, on a rank of speed 1.
    latency, bandwidth : float
        Seconds that a message takes besides its bytes; bytes a second of a link.
    speeds : tuple of float
        Speed of each rank, relative to that of `costs`; empty: all alike.
    jitter, seed : float, int
        Bound of the relative change of each action's duration, from 0 to below 1; seed of the changes.
    memory, activations : int
        Bytes that a rank may take for weights, slots of the optimizer and activations, and for the last alone; 0: no
        bound.
    in_flight : int
        Most micro-batches that the rule may hold in a chunk; 0: `default_most`.
    whole : bool
        Emulated nodes: every layer's W is a piece of its own.
    split : tuple of int
        Layers of each stage if the split is fixed; otherwise layers are divided evenly by operations.
    """

    model: Model
    batch: int
    dtype: np.dtype
    optimizer: Optimizer
    ranks: int
    costs: CostTable
    latency: float = 0.0
    bandwidth: float = float("inf")
    speeds: tuple[float, ...] = ()
    jitter: float = 0.0
    seed: int = 0
    memory: int = 0
    activations: int = 0
    in_flight: int = 0
    whole: bool = False
    split: tuple[int, ...] = ()

    def ends(self, chunks: int) -> list[int]:
        """Last layer + 1 of each stage with `chunks` chunks a rank, by `split` or evenly by operations."""
        settled = len(self.split) == self.ranks * chunks
        counts = self.split if settled else _evenly(self.model, self.ranks * chunks)
        return [int(end) for end in np.cumsum(counts)]

    def scene(self, micro_batches: int, chunks: int = 1, w_group: int = 1, ends: Sequence[int] = ()) -> Scene:
        """The simulator's description of one way to train.

        Parameters
        ----------
        micro_batches : int
            Micro-batches of a step.
        chunks : int
            Chunks of each rank.
        w_group : int
            Micro-batches that one product of W takes.
        ends : sequence of int
            Last layer + 1 of each stage; empty: `self.ends(chunks)`.
        """
        ends = list(ends) or self.ends(chunks)
        sizes = pieces(self.batch, micro_batches)
        costs, layers, item = self.costs(sizes[0], w_group), self.model.layers, np.dtype(self.dtype).itemsize
        seconds, shares, transfer = [], [], []
        for stage, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            speed = self.speeds[stage % self.ranks] if self.speeds else 1.0
            mine = costs[first:last]
            weights = [c.backward_weight for c in mine]
            row = [sum(c.forward for c in mine), sum(c.backward_input for c in mine), sum(weights)]
            seconds.append([each / speed for each in [*row, sum(c.update for c in mine)]])
            alone = self.costs(sizes[0], 1)[first:last]  # `Stage.cut` goes by the W of one micro-batch
            held = [c.backward_weight / speed for c, la in zip(alone, layers[first:last], strict=True) if la.count]
            shares.append(_shares(held, 0.0 if self.whole else LOOK))
            ends_at = sizes[0] * item / self.bandwidth
            transfer.append([ends_at * layers[last - 1].outputs, ends_at * layers[first].inputs])
        return Scene(
            self.ranks,
            chunks,
            np.array(sizes) / sizes[0],
            np.array(seconds),
            tuple(shares),
            ENGINE,
            self.latency,
            np.array(transfer),
            self.jitter,
            self.seed,
        )

    def most(self, micro_batches: int, chunks: int, w_group: int) -> int:
        """Most micro-batches that the rule may hold in each chunk within the memory; the arguments of `scene`."""
        most = max(1, min(self.in_flight or default_most(self.ranks, w_group), micro_batches))
        while most > 1 and not self.allows(*self.bytes(chunks, micro_batches, self.room(most, chunks))):
            most -= 1
        return most

    def room(self, most: int, chunks: int) -> list[list[int]]:
        """Slots of each stage of each rank, [ranks][chunks], if the rule may hold `most` micro-batches in a chunk."""
        return [[most + POSTED] * chunks] * self.ranks

    def allows(self, total: int, activations: int) -> bool:
        """Whether a rank may take `total` bytes in all and `activations` bytes for activations."""
        return (not self.memory or total <= self.memory) and (not self.activations or activations <= self.activations)

    def bytes(self, chunks: int, micro_batches: int, held: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Most bytes of a rank for weights, gradients, optimizer and activations, and most bytes for activations alone.

        `held` [ranks][chunks] holds the slots of each stage; the other arguments are those of `scene`.
        """
        ends = self.ends(chunks)
        starts, item, rows = [0, *ends], np.dtype(self.dtype).itemsize, pieces(self.batch, micro_batches)[0]
        most = most_active = 0
        for rank in range(self.ranks):
            total = active = 0
            for c in range(chunks):
                first, last = starts[c * self.ranks + rank], ends[c * self.ranks + rank]
                for layer in self.model.layers[first:last]:
                    total += item * (layer.count * (2 + len(self.optimizer.slots)) + layer.derived_numbers())
                active += held[rank][c] * slot_bytes(self.model, first, last, rows, self.dtype)
            most, most_active = max(most, total + active), max(most_active, active)
        return most, most_active


@cache  # called for every candidate, and takes 50 ms for 64 layers over 32 ranks
def _evenly(model: Model, stages: int) -> list[int]:
    return partition([layer.flops(1) for layer in model.layers], stages)


def _shares(seconds: list[float], least: float) -> tuple[float, ...]:
    """Shares of W of its pieces: layers joined until each piece lasts at least `least`, like in `Stage.cut`."""
    parts = [sum(seconds[place] for place in piece) for piece in join(seconds, least)]
    total = sum(parts)
    return tuple(part / total for part in parts) if total > 0 else (1.0,)


@dataclass(frozen=True)
class Choice:
    """A way to train, and its simulated result.

    Attributes
    ----------
    schedule : str
        Name of a plan, or `ready`: no plan, the local rule.
    micro_batches, chunks, w_group : int
        Micro-batches of a step; chunks of each rank; micro-batches that one product of W takes.
    ahead : float
        Limit of the rule; 0: learnt during the run.
    seconds : float
        Seconds of a step, once steps overlap.
    idle : float
        Share of the ranks' time without work.
    bytes, activations : int
        Most bytes of a rank in all, and most bytes of a rank for activations; the two may be of different ranks.
    held : int
        Most micro-batches in flight on a rank.
    in_flight : int
        Most micro-batches that a chunk has slots for.
    """

    schedule: str
    micro_batches: int
    chunks: int
    w_group: int
    ahead: float
    seconds: float
    idle: float
    bytes: int
    activations: int
    held: int
    in_flight: int

    def settings(self) -> dict[str, str | float | None]:
        """The settings of `RunConfig` that train this way."""
        ready = self.schedule == RULE
        given: dict[str, str | float | None] = {
            "mode": "ready" if ready else "strict",
            "schedule": None if ready else self.schedule,
            "micro_batches": self.micro_batches,
            "chunks": self.chunks,
        }
        if ready:
            given |= {"w_group": self.w_group, "in_flight": self.in_flight, "ahead": self.ahead or None}
        return given


def run(
    problem: Problem,
    schedule: str,
    micro_batches: int,
    chunks: int = 1,
    w_group: int = 1,
    ahead: float = 0.0,
    *,
    steps: int = 12,
    log: bool = False,
) -> tuple[Outcome, Plan | None]:
    """Simulate one way to train.

    Parameters
    ----------
    problem : Problem
        Network and ring.
    schedule : str
        Name of a plan, or `ready`.
    micro_batches, chunks, w_group : int
        Micro-batches of a step; chunks of each rank; micro-batches that one product of W takes.
    ahead : float
        Limit of the rule; 0: learnt.
    steps : int
        Steps to simulate.
    log : bool
        Whether the outcome lists every action.

    Returns
    -------
    Outcome, Plan or None
        The simulated run; the plan, None for `ready`.

    Raises
    ------
    UserError
        The schedule does not take these numbers.
    """
    scene = problem.scene(micro_batches, chunks, w_group)
    plan = None if schedule == RULE else build(schedule, problem.ranks, micro_batches, chunks)
    outcome = simulate(
        scene,
        plan,
        steps=steps,
        most=problem.most(micro_batches, chunks, w_group),
        ahead=ahead,
        w_group=w_group,
        log=log,
    )
    return outcome, plan


def measure(
    problem: Problem, schedule: str, micro_batches: int, chunks: int = 1, w_group: int = 1, ahead: float = 0.0
) -> Choice:
    """Simulate one way to train and compute its memory; `run` explains the parameters, and raises the same errors."""
    outcome, plan = run(problem, schedule, micro_batches, chunks, w_group, ahead)
    ranks = range(problem.ranks)
    if plan:
        held = [[peak_in_flight(plan, r, c * problem.ranks + r) + POSTED for c in range(chunks)] for r in ranks]
    else:
        held = problem.room(problem.most(micro_batches, chunks, w_group), chunks)
    total, activations = problem.bytes(chunks, micro_batches, held)
    return Choice(
        schedule,
        micro_batches,
        chunks,
        w_group,
        ahead,
        outcome.step_seconds,
        outcome.steady_idle,
        total,
        activations,
        int(outcome.held.max()),
        max(map(max, held)) - POSTED,
    )


def explore(
    problem: Problem,
    *,
    schedules: Iterable[str] = (),
    micro_batches: Iterable[int] = (),
    chunks: Iterable[int] = (),
    w_groups: Iterable[int] = (),
    aheads: Iterable[float] = (),
) -> list[Choice]:
    """Simulate every possible combination, the fastest first. An empty parameter stands for a choice of useful values.

    Parameters
    ----------
    problem : Problem
        Network and ring.
    schedules : iterable of str
        Names of plans, and `ready`.
    micro_batches, chunks, w_groups : iterable of int
        Micro-batches of a step; chunks of each rank; micro-batches that one product of W takes.
    aheads : iterable of float
        Limits of the rule; 0: learnt.

    Raises
    ------
    UserError
        No combination is possible.
    """
    ms = list(micro_batches) or reasonable_micro_batches(problem.batch, problem.ranks)
    if max(ms) > problem.batch:
        raise UserError(f"micro_batches: {max(ms)} need a sample each, batch_size is {problem.batch}")
    problem.ends(1)  # a layer for each rank, or an error that says so
    found = []
    for schedule in list(schedules) or [RULE, *plan_names()]:
        takes_chunks = schedule == RULE or SCHEDULES[schedule].takes_chunks
        for v in list(chunks) or (1, 2, 3):
            if (v > 1 and not takes_chunks) or problem.ranks * v > len(problem.model.layers):
                continue
            if schedule in ("interleaved", "interleaved-zb") and v == 1 and not list(chunks):
                continue
            for m in ms:
                full = problem.model.w_group(pieces(problem.batch, m)[0], m)
                groups = (list(w_groups) or sorted({1, full})) if schedule == RULE else [1]
                found += [
                    measure(problem, schedule, m, v, group, ahead)
                    for group in groups
                    for ahead in ((list(aheads) or AHEAD) if schedule == RULE else (0.0,))
                ]
    if not found:
        several = ", ".join([RULE, *(name for name in plan_names() if SCHEDULES[name].takes_chunks)])
        raise UserError(
            f"chunks: several a rank need {problem.ranks} layers each (the model has {len(problem.model.layers)}) and "
            f"a schedule that takes them: {several}"
        )
    return sorted(found, key=lambda choice: choice.seconds)


def reasonable_micro_batches(batch: int, ranks: int) -> list[int]:
    """Powers of two from `ranks` (and 1) to 8 x `ranks`, none above the `batch` samples."""
    return [m for m in (2**n for n in range(12)) if m <= min(batch, 8 * ranks) and (m >= ranks or m == 1)]


def fits(problem: Problem, choice: Choice) -> bool:
    """Whether no rank takes more memory for `choice` than `problem` allows."""
    return problem.allows(choice.bytes, choice.activations)


def recommend(problem: Problem, choices: list[Choice]) -> Choice:
    """The fastest of `choices` that fits; of those within 1 % of it the one with the least memory.

    Parameters
    ----------
    problem : Problem
        Network and ring.
    choices : list of Choice
        The fastest first.

    Raises
    ------
    UserError
        None fits.
    """
    fitting = [choice for choice in choices if fits(problem, choice)]
    if not fitting:
        key = "activation_memory" if problem.activations else "memory"
        least = min(choices, key=lambda choice: choice.bytes)
        raise UserError(
            f"{key}: the leanest way, {least.schedule} with {least.micro_batches} micro-batches, takes "
            f"{show_bytes(least.bytes)} on its fullest rank, {show_bytes(least.activations)} of it for activations; "
            "take more ranks or smaller micro-batches"
        )
    best = fitting[0].seconds
    return min((c for c in fitting if c.seconds <= 1.01 * best), key=lambda c: (c.bytes, c.seconds))

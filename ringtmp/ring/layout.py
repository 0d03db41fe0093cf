"""Who holds which layers and in which order they are worked: a job's settings for the ring, resolved.

The same on every rank, from the configuration alone; what has to be measured for it, rank 0 measures.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import kernels
from ringtmp.errors import UserError
from ringtmp.nn.costs import Cost, layer_costs
from ringtmp.nn.stage import slot_bytes
from ringtmp.ring.check import check
from ringtmp.ring.pace import Pace, nominal, parse_pace
from ringtmp.ring.partition import parse_split, partition
from ringtmp.ring.plan import Plan, build, forward_only
from ringtmp.ring.rule import FollowPlan, LocalRule, Policy, Stream
from ringtmp.run.job import Job
from ringtmp.run.mpi import from_rank_0
from ringtmp.run.units import parse_bytes, show_bytes

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

POSTED = 2  # receives of activations that are posted ahead of the micro-batches in flight


@dataclass(frozen=True)
class Layout:
    """How a job is dealt over a ring.

    Attributes
    ----------
    job : Job
    ranks, chunks : int
    ends : tuple of int
        Where the layers of each stage end.
    mode, schedule : str
        `ready` or `strict`, and the order's name.
    plan : Plan or None
        What strict mode follows.
    w_group : int
        Micro-batches that one W takes.
    most : int
        Most micro-batches that each chunk may hold in ready mode.
    speeds : tuple of float
        GFLOP/s of each rank on emulated nodes, else empty.
    """

    job: Job
    ranks: int
    chunks: int
    ends: tuple[int, ...]
    mode: str
    schedule: str
    plan: Plan | None
    w_group: int
    most: int
    speeds: tuple[float, ...]

    @property
    def lag(self) -> int | None:
        """Which weights a forward takes (`ringtmp.ring.chunk.Versions`)."""
        return {"2bw": 1, "pipedream": None}.get(self.schedule, 0)

    def layers(self, rank: int) -> list[tuple[int, int]]:
        """First layer, and the one after the last, of each stage of a rank."""
        starts = (0, *self.ends)
        return [(starts[stage], self.ends[stage]) for stage in range(rank, len(self.ends), self.ranks)]

    def policy(self, rank: int) -> Policy:
        """Who decides what a rank runs next."""
        if self.plan:
            return FollowPlan(self.plan, rank, self.job.config.recompute)
        if self.schedule == "pipedream":
            return Stream(self.ranks, rank)
        return LocalRule(self.ranks, rank, self.job.config.micro_batches, chunks=self.chunks, w_group=self.w_group,
                         most=self.most, lag=self.lag or 0)  # fmt: skip

    def paces(self, rank: int) -> list[Pace]:
        """The emulated node that a rank is; empty where it is none."""
        if not self.speeds:
            return []
        model, config = self.job.model, self.job.config
        return [
            Pace(model, first, last, c * self.ranks + rank, self.speeds[rank], config.jitter, config.seed)
            for c, (first, last) in enumerate(self.layers(rank))
        ]

    def describe(self) -> str:
        """In a few words."""
        words = [
            f"ready{' 2bw' if self.schedule == '2bw' else ''}" if self.mode == "ready" else f"strict {self.schedule}"
        ]
        words += [f"{self.chunks} chunks a rank"] * (self.chunks > 1)
        words += [f"emulated nodes of {', '.join(f'{s:g}' for s in dict.fromkeys(self.speeds))} GFLOP/s"] * bool(
            self.speeds
        )
        return ", ".join(words)


def make_layout(comm: "Intracomm", job: Job) -> Layout:
    """Resolve the ring's settings of a job. Collective over `comm`; raises `UserError` on every rank."""
    config, ranks, m = job.config, comm.size, job.config.micro_batches
    speeds = tuple(parse_pace(config.pace, ranks)) if config.pace else ()
    mode, schedule, chunks = config.effective_mode, config.schedule or "1f1b", config.effective_chunks
    w_group = 0
    if schedule == "auto":
        from ringtmp.ring.planner import pick

        mode, schedule, chunks, w_group = pick(comm, job, speeds)
    ends = np.cumsum(split(comm, job, ranks * chunks))
    plan = None
    if mode == "strict" and schedule != "pipedream":
        plan = build(schedule, ranks, m, chunks)
        for each in (plan, forward_only(ranks, len(job.timetable().test_sizes), chunks)):  # a step, and an evaluation
            check(each)
    most = most_in_flight(job, ranks, chunks, tuple(ends)) if mode == "ready" else 0
    group = _w_group(job, w_group, bool(speeds)) if mode == "ready" else 1
    return Layout(job, ranks, chunks, tuple(map(int, ends)), mode, schedule, plan, group, most, speeds)


def split(comm: "Intracomm", job: Job, stages: int) -> list[int]:
    """Layers of each stage, by the job's `split`. Collective over `comm`."""
    model, how = job.model, job.config.split
    if how == "flops":
        return partition([layer.flops(1) for layer in model.layers], stages)
    if how == "measured":
        costs = from_rank_0(comm, lambda: measured_costs(job))
        return partition([cost.step(job.config.micro_batches) for cost in costs], stages)
    return parse_split(how, len(model.layers), stages)


def measured_costs(job: Job) -> list[Cost]:
    """Seconds of each layer's actions, timed on this machine (or known from before)."""
    kernels.compile_all(job.dtype, job.model.families)
    return layer_costs(job.model, job.timetable().rows, job.dtype, job.optimizer())


def paced_costs(job: Job) -> list[Cost]:
    """Seconds of each layer's actions on an emulated node of 1 GFLOP/s."""
    rows, layers = job.timetable().rows, job.model.layers
    costs = []
    for index, layer in enumerate(layers):
        one, update = nominal(job.model, index, rows, 1.0)
        costs.append(Cost(one, one, one, update, layer.flops(rows), 0))
    return costs


def _w_group(job: Job, picked: int, paced: bool) -> int:
    """Micro-batches that one W takes: as many as fill a product, never more than a step has."""
    if job.config.recompute:
        return 1
    asked, most = job.config.w_group or picked, job.config.micro_batches
    if not asked and paced:  # there a larger product is not faster
        return 1
    return min(asked, most) if asked else job.model.w_group(job.timetable().rows, most)


def most_in_flight(job: Job, ranks: int, chunks: int, ends: tuple[int, ...]) -> int:
    """Most micro-batches that each chunk of every rank may hold: by number, and by the bytes that they take."""
    config, starts = job.config, (0, *ends)
    most = config.in_flight or 3 * ranks
    if config.activation_memory is None:
        return most
    limit = parse_bytes(config.activation_memory, "activation_memory")
    for rank in range(ranks):
        each = sum(
            slot_bytes(job.model, starts[s], ends[s], job.timetable().rows, job.dtype, config.recompute)
            for s in range(rank, len(ends), ranks)
        )
        if limit < (1 + POSTED) * each:
            raise UserError(
                f"activation_memory: rank {rank} needs {show_bytes((1 + POSTED) * each)} for one micro-batch in flight "
                f"and {POSTED} that arrive, got {config.activation_memory}; more --micro-batches are smaller ones"
            )
        most = min(most, limit // each - POSTED)
    return most

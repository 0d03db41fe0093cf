"""Which rank holds which layers, and in which order a rank runs its work: the ring's settings of a job, resolved.

The result is the same on every rank.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ringtmp.comm.clock_sync import measure_link
from ringtmp.comm.mpi import from_rank_0, raise_on_all
from ringtmp.config.units import parse_bytes, show_bytes, show_seconds
from ringtmp.emulate.node_speed import costs_on, costs_paced
from ringtmp.emulate.nodes import Pace, parse_courses, parse_pace
from ringtmp.errors import UserError
from ringtmp.nn.buffers import slot_bytes
from ringtmp.ring.layer_split import split_over_ring
from ringtmp.ring.memory_model import Needs
from ringtmp.run.job import Job
from ringtmp.schedule.check import check
from ringtmp.schedule.local_rule import default_most
from ringtmp.schedule.partition import StageCosts, check_enough, parse_split, split_layers
from ringtmp.schedule.plan import Plan, forward_only
from ringtmp.schedule.policies import POSTED, FollowPlan, LocalRule, Policy
from ringtmp.schedule.registry import Schedule, build, plan_names, schedule_named
from ringtmp.simulate.planner import RULE, Problem, explore, recommend

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass(frozen=True)
class Layout:
    """How a job is divided over a ring.

    Attributes
    ----------
    job : Job
    ranks, chunks : int
        Ranks of the ring, and stages of each rank.
    ends : tuple of int
        Index after the last layer of each stage.
    mode : str
        `ready` or `strict`.
    schedule : Schedule
    plan : Plan or None
        The plan that strict mode follows.
    w_group : int
        Most micro-batches that one W takes.
    most : int
        Most micro-batches that each chunk may hold in ready mode.
    speeds : tuple of float
        GFLOP/s of each rank on emulated nodes, else empty.
    needs : Needs
        Memory that stages need, and this rank's limit.
    recompute : tuple of tuple of bool
        For each stage of this rank, for each layer: whether its activations are computed again instead of kept.
    """

    job: Job
    ranks: int
    chunks: int
    ends: tuple[int, ...]
    mode: str
    schedule: Schedule
    plan: Plan | None
    w_group: int
    most: int
    speeds: tuple[float, ...]
    needs: Needs
    recompute: tuple[tuple[bool, ...], ...] = ()

    def layers(self, rank: int) -> list[tuple[int, int]]:
        """Index of the first layer, and that after the last one, of each stage of a rank."""
        starts = (0, *self.ends)
        return [(starts[stage], self.ends[stage]) for stage in range(rank, len(self.ends), self.ranks)]

    def rooms(self, rank: int) -> tuple[int, ...]:
        """Number of micro-batches that each stage of a rank has room for."""
        policy = self.policy(rank)
        return tuple(policy.room(c) for c in range(self.chunks))

    def policy(self, rank: int) -> Policy:
        """Make the policy that decides what a rank runs next."""
        if self.plan:
            return FollowPlan(self.plan, rank, any(map(any, self.recompute)))
        micro_batches = self.job.config.micro_batches
        if self.schedule.order:
            return self.schedule.order(self.ranks, rank, micro_batches)
        return LocalRule(
            self.ranks,
            rank,
            micro_batches,
            chunks=self.chunks,
            w_group=self.w_group,
            most=self.most,
            lag=self.schedule.lag or 0,
            ahead=self.job.config.ahead or 0.0,
        )

    def paces(self, rank: int) -> list[Pace]:
        """Make the pace of each stage of a rank on an emulated node; empty on a real one."""
        model, config = self.job.model, self.job.config
        if not self.job.node_speed:
            return []
        courses = parse_courses(self.job.node_speed, self.ranks)
        return [
            Pace(model, first, last, c * self.ranks + rank, courses[rank], config.jitter, config.seed)
            for c, (first, last) in enumerate(self.layers(rank))
        ]

    def describe(self) -> str:
        """The order of work in a few words, for the first lines."""
        name = self.schedule.name
        words = [f"strict {name}" if self.mode == "strict" else "ready" + f" {name}" * (not self.schedule.synchronous)]
        words += [f"{self.chunks} chunks a rank"] * (self.chunks > 1)
        words += [f"emulated nodes of {', '.join(f'{s:g}' for s in dict.fromkeys(self.speeds))} GFLOP/s"] * bool(
            self.speeds
        )
        return ", ".join(words)


def make_layout(comm: "Intracomm", job: Job) -> Layout:
    """Resolve the ring's settings of a job. Collective over `comm`; raises `UserError` on every rank."""
    # Choose mode, schedule and chunks; build and check the plan of a step and of an evaluation.
    config, ranks, m = job.config, comm.size, job.config.micro_batches
    speeds = tuple(parse_pace(job.node_speed, ranks)) if job.node_speed else ()
    mode, chunks = config.effective_mode, config.effective_chunks
    schedule = schedule_named(config.schedule or ("1f1b" if mode == "strict" else None))
    if chunks > 1 and ranks * chunks > len(job.model.layers):
        raise UserError(
            f"chunks: {chunks} on each of {ranks} rank{'s' * (ranks > 1)} need a layer each, the model has "
            f"{len(job.model.layers)}"
        )
    plan = None
    if mode == "strict" and schedule.plan:
        plan = build(schedule.name, ranks, m, chunks)
        for each in (plan, forward_only(ranks, len(job.timetable().test_sizes), chunks)):
            check(each)

    # Split the layers, so that each stage has room for the fewest micro-batches with which it can work.
    group = _w_group(job, bool(speeds)) if mode == "ready" else 1
    draft = Layout(job, ranks, chunks, (), mode, schedule, plan, group, 0, speeds, Needs.of(comm, job, chunks))
    ready = mode == "ready"
    least = (1 + POSTED,) * chunks if ready else draft.rooms(comm.rank)
    ends = tuple(itertools.accumulate(split(comm, draft, least)))
    if job.across:  # all rings are split alike, since gradients are summed across them
        ends = job.across.bcast(ends)
    layout = replace(draft, ends=ends)

    # Bound the micro-batches in flight by what the memory of every rank allows.
    if ready:
        most = most_in_flight(job, ranks, chunks, layout.ends, group)
        fits = layout.needs.in_flight(layout.layers(comm.rank), min(most, m), ranks)
        layout = replace(layout, most=min([most, *(each for each in comm.allgather(fits) if each < min(most, m))]))
    elif config.activation_memory:
        _check_memory(layout)

    # Choose what to compute again, and check that all fits.
    layout = _with_recomputation(layout, comm.rank)
    with raise_on_all(comm):
        layout.needs.check(layout.layers(comm.rank), layout.rooms(comm.rank), layout.recompute, comm.rank)
    return layout


def fastest_ranks(comm: "Intracomm", job: Job) -> list[int]:
    """Find the ranks with which the ring is fastest, leaving out slow ones. Collective over `comm`."""
    costs = job.own_costs(comm, job.timetable().rows, job.config.micro_batches)
    needs = Needs.of(comm, job, 1)
    counts = split_over_ring(comm, [StageCosts.of(costs, needs.reach(1 + POSTED), idle=True)]).counts
    return [rank for rank, count in enumerate(counts) if count] or list(range(comm.size))


def _with_recomputation(layout: Layout, rank: int) -> Layout:
    """The same layout, in which a rank's stages compute again as much as they must to fit into its memory."""
    stages, rooms, room = layout.layers(rank), layout.rooms(rank), layout.needs.room // layout.chunks
    flags = tuple(layout.needs.choose_recompute(*ends, slots, room) for ends, slots in zip(stages, rooms, strict=True))
    if (
        layout.job.config.recompute == "auto"
        and layout.needs.rank(stages, rooms, flags).total > layout.needs.limit.size
    ):
        flags = tuple((True,) * (last - first) for first, last in stages)  # one stage needs more than its share
    return replace(layout, recompute=flags, w_group=1 if any(map(any, flags)) else layout.w_group)


def with_ends(layout: Layout, ends: tuple[int, ...], rank: int) -> Layout:
    """The same layout with other stages.

    Parameters
    ----------
    layout : Layout
    ends : tuple of int
        Index after the last layer of each stage.
    rank : int
        This rank.

    Raises
    ------
    UserError
        The stages do not fit into `activation_memory`.
    """
    most = layout.most
    if most and layout.job.config.activation_memory:
        most = most_in_flight(layout.job, layout.ranks, layout.chunks, ends, layout.w_group)
    changed = replace(layout, ends=ends, most=most)
    if layout.mode == "strict" and layout.job.config.activation_memory:
        _check_memory(changed)
    return _with_recomputation(changed, rank)


def split(comm: "Intracomm", layout: Layout, slots: Sequence[int]) -> list[int]:
    """Split the layers over the stages by the setting `layer_split`. Collective over `comm`.

    Parameters
    ----------
    comm : Intracomm
        The ring.
    layout : Layout
        Without `ends`.
    slots : sequence of int
        Micro-batches for which each stage of this rank must have room.

    Returns
    -------
    list of int
        Layers of each stage.

    Raises
    ------
    UserError
        On every rank: the setting is no split, or no split fits.
    """
    job, needs, chunks = layout.job, layout.needs, layout.chunks
    model, how, stages = job.model, job.config.layer_split, comm.size * chunks
    if how not in ("even", "flops", "measured"):
        return parse_split(how, len(model.layers), stages)
    check_enough(len(model.layers), stages)
    costs = [1.0 if how == "even" else float(layer.flops(1)) for layer in model.layers]
    if how == "measured":
        costs = job.own_costs(comm, job.timetable().rows, job.config.micro_batches)
    counts = split_over_ring(comm, [StageCosts.of(costs, needs.reach(room)) for room in slots]).counts
    if not counts and chunks > 1:  # a share of a rank's memory may be too small although the whole is not
        return split_layers([StageCosts.of(costs)] * stages).counts
    if not counts:  # show with an even split how much memory is missing
        ends = tuple(itertools.accumulate(split_layers([StageCosts.of(costs)] * stages).counts))
        with raise_on_all(comm):
            needs.check(replace(layout, ends=ends).layers(comm.rank), slots, ((True,),) * chunks, comm.rank)
        raise UserError(
            f"memory_limit: no split of the {len(model.layers)} layers over {stages} stages fits; "
            f"{needs.advice(slots[0])}"
        )
    return counts


def problem_of(job: Job, ranks: int, latency: float, bandwidth: float) -> Problem:
    """Describe a job to the planner.

    Parameters
    ----------
    job : Job
        With `node_speed` on emulated nodes, else on this machine.
    ranks : int
    latency : float
        Of a message, in seconds.
    bandwidth : float
        Of a link, in bytes a second.
    """
    config = job.config
    speeds = tuple(parse_pace(job.node_speed, ranks)) if job.node_speed else ()
    costs = costs_paced(job.model) if speeds else costs_on(job.model, job.dtype, job.optimizer())
    memory = parse_bytes(config.activation_memory, "activation_memory") if config.activation_memory else 0
    settled: list[int] = []
    if config.layer_split not in ("even", "flops", "measured"):
        chunks = config.chunks or max(1, len(config.layer_split.split(",")) // ranks)
        settled = parse_split(config.layer_split, len(job.model.layers), ranks * chunks)
    return Problem(
        job.model,
        config.batch_size,
        job.dtype,
        job.optimizer(),
        ranks,
        costs,
        latency,
        bandwidth,
        speeds,
        config.jitter,
        config.seed,
        activations=memory,
        in_flight=config.in_flight or 0,
        whole=bool(speeds),
        split=tuple(settled),
    )


def resolve_auto(comm: "Intracomm", job: Job) -> str:
    """Replace the schedule "auto" by what the planner recommends. Collective over `comm`.

    Returns a line that says what that is; empty for another schedule.
    """
    config = job.config
    if config.schedule != "auto":
        return ""
    latency, bandwidth = measure_link(comm)

    def choose() -> dict[str, Any]:
        problem = problem_of(job, comm.size, latency, bandwidth)
        chunks = config.chunks or len(problem.split) // comm.size
        choices = explore(
            problem,
            schedules={"ready": [RULE], "strict": plan_names(), None: []}[config.mode],
            micro_batches=[config.micro_batches] if "micro_batches" in job.explicit else [],
            chunks=[chunks] if chunks else [],
            w_groups=[config.w_group] if config.w_group else [],
            aheads=[config.ahead] if config.ahead else [],
        )
        best = recommend(problem, choices)
        said = (
            f"auto: {best.schedule}, {best.micro_batches} micro-batches, {best.chunks} chunk{'s' * (best.chunks > 1)} "
            f"a rank; predicted {show_seconds(best.seconds)} a step, {best.idle:.1%} idle ({len(choices)} ways tried)"
        )
        return {"settings": best.settings(), "said": said}

    found = from_rank_0(comm, choose)
    job.config = config.model_copy(update=found["settings"])
    return found["said"]


def _w_group(job: Job, paced: bool) -> int:
    """Most micro-batches that one W takes: enough to make its product large, never more than a step has."""
    if job.config.recompute is True:
        return 1
    asked, most = job.config.w_group, job.config.micro_batches
    if not asked and paced:  # on emulated nodes a larger product is not faster
        return 1
    return min(asked, most) if asked else job.model.w_group(job.timetable().rows, most)


def _slot_bytes(job: Job, first: int, last: int) -> int:
    """Bytes of a micro-batch in a stage that computes again as much as `--recompute` allows."""
    return slot_bytes(job.model, first, last, job.timetable().rows, job.dtype, job.config.recompute is not False)


def _check_memory(layout: Layout) -> None:
    """Raise `UserError` if a plan holds more than `activation_memory`, for which it cannot wait."""
    config = layout.job.config
    limit = parse_bytes(str(config.activation_memory), "activation_memory")
    for rank in range(layout.ranks):
        policy = layout.policy(rank)
        need = sum(policy.room(c) * _slot_bytes(layout.job, *ends) for c, ends in enumerate(layout.layers(rank)))
        if need > limit:
            raise UserError(
                f"activation_memory: rank {rank} takes {show_bytes(need)} in schedule {layout.schedule.name}, got "
                f"{config.activation_memory}; --mode ready keeps within it"
            )


def most_in_flight(job: Job, ranks: int, chunks: int, ends: tuple[int, ...], w_group: int) -> int:
    """Find how many micro-batches each chunk of every rank may hold, by `in_flight` and by `activation_memory`.

    Raises `UserError` if not even one fits. See `Layout` for the parameters.
    """
    config, starts = job.config, (0, *ends)
    most = config.in_flight or default_most(ranks, w_group)
    if config.activation_memory is None:
        return most
    limit = parse_bytes(config.activation_memory, "activation_memory")
    for rank in range(ranks):
        each = sum(_slot_bytes(job, starts[s], ends[s]) for s in range(rank, len(ends), ranks))
        if limit < (1 + POSTED) * each:
            raise UserError(
                f"activation_memory: rank {rank} needs {show_bytes((1 + POSTED) * each)} for one micro-batch in flight "
                f"and {POSTED} that arrive, got {config.activation_memory}; more --micro-batches are smaller ones"
            )
        most = min(most, limit // each - POSTED)
    return most

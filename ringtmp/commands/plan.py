"""The command `ringtmp plan`: which schedule, micro-batches and chunks suit a network and a cluster."""

from types import SimpleNamespace
from typing import Any

import click

from ringtmp.config.click_command import Command, option
from ringtmp.errors import UserError

HELP = """Find the fastest schedule for a network on a cluster, or say what would have made a run faster.

Simulates every schedule, number of micro-batches, of chunks a rank and of micro-batches in one product of W with the
network's own layer times, and prints which is fastest within the memory. Needs no MPI."""
EXAMPLES = """
ringtmp plan --model mlp:1024-1024x15-10 --ranks 8 --batch-size 512
ringtmp plan --model gpt:layers=14,width=256,heads=8,context=128 --ranks 8 --batch-size 64 \\
    --link-latency 50us --link-bandwidth 1Gbit/s --memory 2GB --out plan.svg
ringtmp plan --trace runs/first
"""


@click.command("plan", cls=Command, help=HELP, short_help="Find the fastest schedule for a network", examples=EXAMPLES)
@option("--model", help="short form of a model, such as --model of ringtmp train takes")
@option("--ranks", type=int, default=8, help="ranks of the ring")
@option("--batch-size", type=int, default=64, help="samples of a step")
@option("--micro-batches", help="only these, such as 8,16,32; default: powers of two")
@option("--schedule", help="only these, such as ready,1f1b (ready is the local rule); default: all")
@option("--chunks", help="only these, such as 1,2; default: 1,2,3 as far as the layers suffice")
@option("--link-latency", default="20us", help="latency of a message")
@option("--link-bandwidth", default="1.25GB/s", help="bytes or bits a second")
@option("--memory", help="bound for weights, optimizer and activations of a rank, such as 2GB")
@option("--speed", help="GFLOP/s of nodes, one for all or for each; default: measured on this machine")
@option("--jitter", type=float, default=0.0, show_default=True, help="durations vary by 1 +- this")
@option("--optimizer", default="adamw", help="update rule")
@option("--dtype", default="float32", type=click.Choice(["float32", "float64"]), help="of weights and activations")
@option("--top", type=int, default=15, help="lines of the table")
@option("--out", metavar="FILE", help="draw the recommended way: .png, .svg, .pdf, or .json for Perfetto")
@option("--trace", metavar="RUN", help="a run folder: what would have been faster, and why")
def command(**parameters: Any) -> None:
    options = SimpleNamespace(**parameters)
    if options.trace:
        from ringtmp.analysis.what_if import explain

        explain(options.trace, options.out)
    else:
        _plan(options)


def _plan(options: SimpleNamespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from ringtmp.config.units import show_bytes, show_seconds
    from ringtmp.simulate import planner

    if options.out:
        from ringtmp.analysis.picture import check_ending

        check_ending(options.out)
    problem = _problem(options)
    choices = planner.explore(
        problem,
        schedules=_words(options),
        micro_batches=_numbers(options.micro_batches, "micro_batches"),
        chunks=_numbers(options.chunks, "chunks"),
    )
    best = planner.recommend(problem, choices)
    table = Table(
        title=f"{options.model} over {problem.ranks} ranks, {problem.batch} samples a step; simulated",
        title_justify="left",
    )
    for name in (
        "schedule",
        "micro-batches",
        "chunks",
        "W group",
        "ahead",
        "step",
        "samples/s",
        "idle",
        "in flight",
        "bytes",
    ):
        table.add_column(name, justify="left" if name == "schedule" else "right")
    firsts = {choice.schedule: choice for choice in reversed(choices)}.values()  # the fastest of each schedule
    shown = [c for n, c in enumerate(choices) if n < options.top or any(c is first for first in firsts) or c is best]
    for choice in shown:
        misfit = "" if planner.fits(problem, choice) else " !"
        numbers = (choice.micro_batches, choice.chunks, choice.w_group)
        table.add_row(
            choice.schedule + " <--" * (choice is best),
            *map(str, numbers),
            f"{choice.ahead:g}" * (choice.ahead > 0),
            show_seconds(choice.seconds),
            f"{problem.batch / choice.seconds:,.0f}",
            f"{choice.idle:.1%}",
            str(choice.held),
            show_bytes(choice.bytes) + misfit,
            style="bold" if choice is best else None,
        )
    console = Console(width=120)
    console.print(table)
    if any(not planner.fits(problem, choice) for choice in shown):
        console.print("!: more than --memory")
    how = "--mode ready" if best.schedule == planner.RULE else f"--schedule {best.schedule}"
    group = f" --w-group {best.w_group}" if best.schedule == planner.RULE else ""
    if best.schedule == planner.RULE and problem.memory:
        group += f" --in-flight {best.in_flight}"
    group += f" --ahead {best.ahead:g}" if best.ahead else ""
    console.print(
        f"recommended of {len(choices)}: {how} --micro-batches {best.micro_batches} --chunks {best.chunks}{group}",
        highlight=False,
    )
    if options.out:
        from ringtmp.analysis.picture import write

        outcome, _ = planner.run(
            problem, best.schedule, best.micro_batches, best.chunks, best.w_group, best.ahead, steps=3, log=True
        )
        write(outcome.events(), options.out)


def _problem(options: SimpleNamespace) -> Any:
    import numpy as np

    from ringtmp.config.units import parse_bytes, parse_rate, parse_seconds
    from ringtmp.emulate import node_speed as speed
    from ringtmp.emulate.nodes import parse_pace
    from ringtmp.nn.model import build_model
    from ringtmp.nn.model_spec import sample_of
    from ringtmp.nn.optimizers import Optimizer
    from ringtmp.simulate import planner

    if not options.model:
        raise UserError("model: expected a network such as mlp:1024-1024x15-10, or --trace RUN")
    for key in ("ranks", "batch_size", "top"):
        if getattr(options, key) < 1:
            raise UserError(f"{key}: expected a whole number above 0, got {getattr(options, key)}")
    if not 0 <= options.jitter < 1:
        raise UserError(f"jitter: expected a number from 0 to below 1, got {options.jitter}")
    shape, classes, alphabet = sample_of(options.model)
    model = build_model(options.model, "auto", shape, "classes", classes, shape[0] if alphabet else 1, alphabet)
    if options.ranks > len(model.layers):
        raise UserError(f"ranks: {options.ranks} ranks need a layer each, {options.model} has {len(model.layers)}")
    speeds = tuple(parse_pace(options.speed, options.ranks)) if options.speed else ()
    optimizer, dtype = Optimizer(options.optimizer), np.dtype(options.dtype)
    costs = speed.costs_paced(model) if speeds else speed.costs_on(model, dtype, optimizer)
    return planner.Problem(
        model,
        options.batch_size,
        dtype,
        optimizer,
        options.ranks,
        costs,
        parse_seconds(options.link_latency, "link_latency"),
        parse_rate(options.link_bandwidth, "link_bandwidth"),
        speeds,
        options.jitter,
        memory=parse_bytes(options.memory, "memory") if options.memory else 0,
    )


def _words(options: SimpleNamespace) -> list[str]:
    from ringtmp.schedule.registry import plan_names
    from ringtmp.simulate.planner import RULE

    words = options.schedule.split(",") if options.schedule else []
    for word in words:
        if word not in (RULE, *plan_names()):
            raise UserError(f"schedule: expected some of {', '.join([RULE, *plan_names()])}, got {word!r}")
    return words


def _numbers(text: str | None, key: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise UserError(f"{key}: expected whole numbers above 0, as in 1,2, got {text!r}")
    return numbers

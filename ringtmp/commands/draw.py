"""The command `ringtmp draw`: a trace, a plan or the local rule, as a picture or for Perfetto."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ringtmp.config.click_command import Command, Option, argument, option
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

HELP = "Draw a run's trace, a plan or the local rule as a Gantt chart, or as a trace for ui.perfetto.dev."
EXAMPLES = """
ringtmp draw runs/first --out first.png                 two steps from the middle of the newest launch
ringtmp draw runs/first --steps all --out first.json.gz
ringtmp draw plan:interleaved --ranks 4 --chunks 2 --out plan.svg
ringtmp draw rule --ranks 8 --micro-batches 16 --latency 0.5 --jitter 0.2 --steps 3 --out rule.pdf
"""
_ENDINGS = ".png, .svg, .pdf, or .json and .json.gz for Perfetto"
_ACTION = 1e-3  # seconds that an action of a whole rank takes when simulated: a millisecond, so axes count actions
_MOST = 1_000_000  # actions of a simulation
_SIMULATED: dict[str, Any] = {"ranks": 4, "micro_batches": 8, "chunks": 1, "latency": 0.0, "jitter": 0.0}
_MEANINGS = {
    "ranks": "ranks of the ring",
    "micro_batches": "micro-batches of a step",
    "chunks": "stages of a rank",
    "latency": "time of a message; an action of a rank takes 1",
    "jitter": "an action takes 1 - jitter to 1 + jitter",
}


@click.command("draw", cls=Command, help=HELP, short_help="Draw a trace, a plan or the local rule", examples=EXAMPLES)
@argument("what", help="a run folder, plan:NAME (naive, gpipe, 1f1b, ...), or rule: the local rule")
@option("--out", required=True, metavar="FILE", type=click.Path(), help=f"{_ENDINGS}; an existing file is replaced")
@option(
    "--steps",
    metavar="A-B",
    help="of a trace: A-B or all, by default two in the middle; of a simulation: their number, or A-B, by default 1",
)
@option("--launch", type=int, help="launch of a trace, from 0; default: the newest")
def command(**parameters: Any) -> None:
    draw(SimpleNamespace(**parameters))


for _name, _meaning in _MEANINGS.items():
    command.params.append(
        Option(
            f"--{_name.replace('_', '-')}",
            type=type(_SIMULATED[_name]),
            group="For plan:NAME and rule",
            help=f"{_meaning}  [default: {_SIMULATED[_name]:g}]",
        )
    )


def draw(options: SimpleNamespace) -> None:
    """Draw what `options`, the command's parameters, request.

    Raises
    ------
    UserError
        The subject does not exist, an option does not fit it, or the file cannot be written.
    """
    from ringtmp.analysis.picture import check_ending, write

    check_ending(options.out)
    simulated = options.what == "rule" or options.what.startswith("plan:")
    events, steps = _simulation(options) if simulated else _trace(options)
    write(events, options.out, steps, "time (F, I or W of a micro-batch takes a rank 1)" if simulated else "")


def _trace(options: SimpleNamespace) -> tuple["DataFrame", tuple[int, int] | None]:
    """Events of a launch, and the steps to show (None: all)."""
    from ringtmp.analysis import open_run

    for name in _SIMULATED:
        if getattr(options, name) is not None:
            raise UserError(f"{name.replace('_', '-')}: goes with plan:NAME and rule, not with {options.what}")
    if not Path(options.what).is_dir():
        raise UserError(f"what: expected a run folder, plan:NAME or rule, got {options.what!r}")
    events = open_run(options.what, options.launch).events()
    if options.steps == "all":
        return events, None
    if options.steps is not None:
        steps = _range(options.steps)
        if steps is None:
            raise UserError(f"steps: expected A-B such as 40-41, or all, got {options.steps!r}")
        first, last = events["step"].min(), events["step"].max()
        if steps[0] > last or steps[1] < first:
            raise UserError(f"steps: {options.what} holds steps {first} to {last}, got {options.steps}")
        return events, steps
    trained = sorted(events.loc[events["kind"] == "F", "step"].unique().tolist())
    if not trained:
        return events, None
    middle = max(len(trained) // 2 - 1, 0)
    return events, (trained[middle], trained[min(middle + 1, len(trained) - 1)])


def _simulation(options: SimpleNamespace) -> tuple["DataFrame", tuple[int, int]]:
    """Events of a plan or of the rule on equal ranks, and the steps to show."""
    from ringtmp.schedule.registry import build
    from ringtmp.simulate.pipeline import Scene, simulate

    if options.launch is not None:
        raise UserError(f"launch: goes with a run folder, not with {options.what}")
    given = {name: getattr(options, name) for name in _SIMULATED}
    ranks, micro_batches, chunks, latency, jitter = (
        default if given[name] is None else given[name] for name, default in _SIMULATED.items()
    )
    for name, value in (("ranks", ranks), ("micro-batches", micro_batches), ("chunks", chunks)):
        if value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")
    if not (latency >= 0 and math.isfinite(latency)):
        raise UserError(f"latency: expected a number from 0, got {latency}")
    if not 0 <= jitter < 1:
        raise UserError(f"jitter: expected a number from 0 and below 1, got {jitter}")
    text = "1" if options.steps is None else options.steps
    steps = (0, int(text) - 1) if re.fullmatch(r"[1-9]\d*", text) else _range(text)
    if steps is None:
        raise UserError(f"steps: expected how many, or A-B such as 4-5, got {options.steps!r}")
    actions = 3 * ranks * chunks * micro_batches * (steps[1] + 1)
    if actions > _MOST:
        raise UserError(f"steps: {steps[1] + 1} of them are {actions:,} actions, expected at most {_MOST:,}")
    plan = build(options.what[5:], ranks, micro_batches, chunks) if options.what != "rule" else None
    scene = Scene.even(
        ranks, micro_batches, chunks=chunks, latency=latency * _ACTION, jitter=jitter, times=(_ACTION, _ACTION, _ACTION)
    )
    return simulate(scene, plan, steps=steps[1] + 1, log=True).events(), steps


def _range(text: str) -> tuple[int, int] | None:
    """First and last of `A-B`."""
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", text)
    if not match or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2])

"""Changes that would have made a run faster: its measured durations are simulated with and without each change."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ringtmp.analysis import Run, open_run
from ringtmp.analysis.steady import Steady, steady
from ringtmp.config.units import show_seconds
from ringtmp.errors import UserError
from ringtmp.nn.layer import pieces
from ringtmp.schedule.local_rule import default_most
from ringtmp.schedule.registry import SCHEDULES, build, plan_names, schedule_named
from ringtmp.simulate.pipeline import Outcome, Scene, simulate
from ringtmp.simulate.planner import ENGINE, RULE


@dataclass(frozen=True)
class Case:
    """One variant of the run.

    Attributes
    ----------
    what : str
        The change.
    outcome : Outcome
        Its simulated result.
    """

    what: str
    outcome: Outcome


def scene_of(run: Run) -> Scene:
    """The simulated ring of the run `run`: medians of its measured durations, its latency, and its jitter.

    The latency is the least time from the end of an action to the start of the action that its message allowed; jitter
    is that of a uniform factor with the measured deviation of F.
    """
    events, config = run.events(), run.config
    first = run.ranks().iloc[0]
    ranks, chunks, m = int(first["ranks"]), int(first["chunks"]), int(config["micro_batches"])
    training = events[events["kind"].isin(list("FIWU"))]
    last = training["step"].max()
    training = training[training["step"] > last // 4]
    span = (training["end"] - training["start"]) / 1e9
    # W of a micro-batch goes in pieces: their sum counts.
    each = span.groupby([training["stage"], training["kind"], training["step"], training["micro_batch"]]).sum()
    sizes = np.array(pieces(int(config["batch_size"]), m), float)
    sizes /= sizes[0]
    whole = each[each.index.get_level_values("micro_batch") < (sizes == 1.0).sum()]  # of the largest micro-batches
    table = whole.groupby(level=["stage", "kind"]).median().unstack("kind").reindex(columns=list("FIWU")).fillna(0.0)
    spread = whole.xs("F", level="kind").groupby(level="stage").agg(lambda x: x.std() / x.mean())
    jitter = float(min(0.95, np.sqrt(3) * np.nan_to_num(spread.median())))
    return Scene(
        ranks, chunks, sizes, table.to_numpy(), ((1.0,),) * (ranks * chunks), ENGINE, _latency(events), jitter=jitter
    )


def _latency(events: pd.DataFrame) -> float:
    """Least seconds from the end of F to the start of the next stage's F, over links between ranks."""
    f = events[events["kind"] == "F"].set_index(["step", "micro_batch", "stage"])[["rank", "start", "end"]]
    following = f.rename(index=lambda stage: stage - 1, level="stage").add_suffix("_next")
    both = f.join(following, how="inner")
    both = both[both["rank"] != both["rank_next"]]
    gaps = (both["start_next"] - both["end"]).clip(lower=0)
    return float(gaps.quantile(0.05)) / 1e9 if len(gaps) else 0.0


def cases(run: Run) -> tuple[Steady, list[Case]]:
    """The run as measured, and simulated variants of it: the run itself, every other schedule, and single changes.

    `run` is the run. Raises `UserError` if its schedule is asynchronous.
    """
    first = run.ranks().iloc[0]
    if not schedule_named(first["schedule"] or None).synchronous:
        raise UserError(f"trace: {run.path} was trained with {first['schedule']}: other schedules give other numbers")
    name = first["schedule"] or RULE
    measured = steady(run.events())
    scene = scene_of(run)
    ahead, group = float(run.config.get("ahead") or 0.0), int(run.config.get("w_group") or 1)
    most = int(run.config.get("in_flight") or default_most(scene.ranks, group))

    def under(scene: Scene, name: str) -> Outcome:
        plan = None if name == RULE else build(name, scene.ranks, scene.micro_batches, scene.chunks)
        return simulate(scene, plan, steps=16, most=most, ahead=ahead, w_group=group)

    found = [Case(f"{name}, as it was run", under(scene, name))]
    for other in [RULE, *plan_names()]:
        if other == name or (other == "interleaved" and scene.chunks == 1):  # that is 1f1b
            continue
        if other == RULE or scene.chunks == 1 or SCHEDULES[other].takes_chunks:
            found.append(Case(f"with {other}", under(scene, other)))
    even = replace(scene, seconds=np.tile(scene.seconds.mean(0), (len(scene.seconds), 1)))
    found.append(Case("if the work were dealt evenly", under(even, name)))
    found.append(Case("if messages took no time", under(replace(scene, latency=0.0), name)))
    found.append(Case("if actions always took as long", under(replace(scene, jitter=0.0), name)))
    return measured, found


def explain(path: str, out: str | None = None) -> list[Case]:
    """Print the variants that would have made a run faster.

    Parameters
    ----------
    path : str
        The run folder.
    out : str, optional
        File into which two steps of the run are drawn.

    Returns
    -------
    list of Case
        The variants.

    Raises
    ------
    UserError
        The run has no trace, its schedule is asynchronous, or `out` cannot be written.
    """
    from rich.console import Console
    from rich.table import Table

    run = open_run(path)
    measured, found = cases(run)
    own = found[0].outcome.step_seconds
    table = Table(title=f"{path}: as measured, and its own durations under the clock", title_justify="left")
    for column in ("case", "step", "idle", "times as fast"):
        table.add_column(column, justify="left" if column == "case" else "right")
    table.add_row("measured", show_seconds(measured.seconds), f"{measured.idle:.1%}", "")
    for case in found:
        seconds = case.outcome.step_seconds
        table.add_row(case.what, show_seconds(seconds), f"{case.outcome.steady_idle:.1%}", f"{own / seconds:.2f}")
    console = Console(width=100)
    console.print(table)
    best = min(found[1:], key=lambda case: case.outcome.step_seconds)
    gain = own / best.outcome.step_seconds
    console.print(
        f"most to be gained {best.what}: {gain:.2f} times as fast"
        if gain > 1.02
        else "nothing tried would have made it 2 % faster",
        highlight=False,
    )
    if abs(measured.seconds / own - 1) > 0.1:
        console.print(
            f"note: the clock says {show_seconds(own)} where {show_seconds(measured.seconds)} were measured: where "
            "ranks outnumber cores, or share memory, they wait for more than their neighbours",
            highlight=False,
        )
    if out:
        from ringtmp.analysis.picture import write

        write(run.events(), out, (measured.first, measured.first + 1))
    return found

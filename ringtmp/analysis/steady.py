"""The steady state of a run: the duration of a step once steps overlap, and the fraction of it that ranks wait."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ringtmp.errors import UserError


@dataclass(frozen=True)
class Steady:
    """Means over the steps from `first` on.

    Attributes
    ----------
    first : int
        First step that counts.
    seconds : float
        Seconds per step.
    idle, busy : float
        Fractions of the time that ranks waited and computed, averaged over the ranks.
    """

    first: int
    seconds: float
    idle: float
    busy: float


def steady(events: pd.DataFrame, skip: int | None = None) -> Steady:
    """Measure the steps after the first `skip`, from the end of one update to the end of the last.

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.
    skip : int, optional
        Steps left out at the beginning; default: a quarter.

    Raises
    ------
    UserError
        Fewer than two steps remain, or an evaluation lies among them.

    Notes
    -----
    The span of a rank lies between its own updates, so that filling and draining the pipeline do not count. Idle time
    is time blocked in a wait, as recorded; a simulation records no waits: there it is the time that is not busy.

    Only steps that every rank updated count. In a trace of `ps` a server updates key ranges, and a worker takes over
    their weights; `steady(events[events["rank"].isin(workers)])` measures the workers alone.
    """
    updates = events[events["kind"] == "U"].groupby(["rank", "step"])["end"].max().unstack("rank").dropna()
    skip = len(updates) // 4 if skip is None else skip
    if len(updates) - skip < 2:
        raise UserError(f"steady state: the trace holds {len(updates)} whole steps, expected at least {skip + 2}")
    begin, end = updates.iloc[max(skip - 1, 0)], updates.iloc[-1]
    count = updates.index[-1] - updates.index[max(skip - 1, 0)]
    lo, hi = begin.loc[events["rank"]].to_numpy(), end.loc[events["rank"]].to_numpy()
    within = np.minimum(events["end"], hi) - np.maximum(events["start"], lo)
    within = within.clip(lower=0).groupby([events["rank"], events["kind"]]).sum().unstack(fill_value=0)
    if "E" in within and within["E"].sum():
        raise UserError("steady state: an evaluation lies among the steps; train with --eval-every 0")
    span = end - begin
    busy = within.reindex(columns=list("FIWUB"), fill_value=0).sum(axis=1) / span
    idle = within["wait"] / span if "wait" in within else 1 - busy
    seconds = float((updates.max(axis=1).iloc[-1] - updates.max(axis=1).iloc[max(skip - 1, 0)]) / count) / 1e9
    return Steady(int(updates.index[max(skip - 1, 0)]) + 1, seconds, float(idle.mean()), float(busy.mean()))

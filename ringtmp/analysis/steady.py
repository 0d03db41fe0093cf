"""The steady state of a run: how long a step takes once steps chain, and how much of it ranks wait."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ringtmp.errors import UserError


@dataclass(frozen=True)
class Steady:
    """Seconds of a step, and what share of it the ranks waited and were busy (compute), over the steps `first`...."""

    first: int
    seconds: float
    idle: float
    busy: float


def steady(events: pd.DataFrame, skip: int | None = None) -> Steady:
    """The steps after the first `skip` (default: a quarter), from the end of one update to that of the last.

    Parameters
    ----------
    events : DataFrame
        As `Run.events` or a simulation gives it.
    skip : int, optional
        Steps left out at the beginning.

    Raises
    ------
    UserError
        Fewer than two steps remain, or an evaluation lies among them.

    Notes
    -----
    A rank's span lies between its own updates, so that fill and drain of a chained run count for nobody. Idle is time
    blocked in a wait, as recorded; a simulation records no waits: there it is what is not busy.

    Only whole steps count, those of which every rank has an update. In a trace of `ps` a server updates chunks, and a
    worker takes up their weights; `steady(events[events["rank"].isin(workers)])` is that of workers alone.
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

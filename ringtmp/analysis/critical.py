"""The critical path: the chain of actions that a run could not have been shorter than."""

import numpy as np
import pandas as pd

from ringtmp.analysis.perfetto import arrows
from ringtmp.errors import UserError

_ACTIONS = ("F", "I", "W", "U", "E", "B")


def critical_path(events: pd.DataFrame, steps: tuple[int, int] | None = None) -> pd.DataFrame:
    """Walk back from the last action: each time to the one whose end it had to wait for.

    That is the action before it on its own rank, or the one on another rank whose message it took, whichever ended
    later.

    Parameters
    ----------
    events : DataFrame
        As `Run.events` or `Outcome.events` give it.
    steps : (int, int), optional
        First and last step to look at.

    Returns
    -------
    DataFrame
        The actions of the path, first to last: the columns of `events`, and `gap` (nanoseconds between the end of the
        one before and its start) and `by` (`rank` or `message`: what it waited for; empty for the first one). What the
        path consists of says what would make the run shorter: actions on it, messages (`gap` where `by` is `message`),
        or one rank alone.

    Raises
    ------
    UserError
        There are no actions (of these steps).
    """
    actions = events[events["kind"].isin(_ACTIONS)]
    if steps:
        actions = actions[actions["step"].between(*steps)]
    if actions.empty:
        of = f" of steps {steps[0]} to {steps[1]}" if steps else ""
        raise UserError(f"critical path: there are no actions{of}")
    actions = actions.sort_values(["start", "end"], kind="stable").reset_index(drop=True)
    before = np.full(len(actions), -1)
    for places in actions.groupby("rank").indices.values():
        before[places[1:]] = places[:-1]
    pairs = arrows(actions)
    sender = np.full(len(actions), -1)
    sender[pairs["target"]] = pairs["source"]
    start, end = (actions[name].to_numpy() for name in ("start", "end"))
    here = int(end.argmax())
    path, gaps, reasons = [], [], []
    while here >= 0:
        own, other = int(before[here]), int(sender[here])
        if other >= 0 and (own < 0 or end[other] > end[own]):
            last, by = other, "message"
        else:
            last, by = own, "rank"
        path.append(here)
        gaps.append(max(0, int(start[here] - end[last])) if last >= 0 else 0)
        reasons.append(by if last >= 0 else "")
        # Clocks of two hosts agree to some microseconds only; the path goes back all the same.
        here = last if last >= 0 and (start[last] < start[here] or last < here) else -1
    found = actions.iloc[path[::-1]].reset_index(drop=True)
    return found.assign(gap=gaps[::-1], by=reasons[::-1])

"""The critical path: the chain of dependent actions that sets the length of a run."""

import numpy as np
import pandas as pd

from ringtmp.analysis.perfetto import arrows
from ringtmp.errors import UserError

_ACTIONS = ("F", "I", "W", "U", "E", "B")


def critical_path(events: pd.DataFrame, steps: tuple[int, int] | None = None) -> pd.DataFrame:
    """Find the critical path by walking back from the last action to the action that each one had to wait for.

    That is the previous action on its own rank or the action on another rank whose message it used, whichever ended
    later.

    Parameters
    ----------
    events : DataFrame
        From `Run.events` or `Outcome.events`.
    steps : (int, int), optional
        First and last step to include.

    Returns
    -------
    DataFrame
        The actions of the path, first to last: the columns of `events`, `gap` (nanoseconds between the end of the
        previous action and its start) and `by` (`rank` or `message`: the cause of its wait; empty for the first one).
        Only faster actions on the path, or faster messages (`gap` if `by` is `message`), make the run shorter.

    Raises
    ------
    UserError
        `events` holds no actions, or none of `steps`.
    """
    actions = events[events["kind"].isin(_ACTIONS)]
    if steps:
        actions = actions[actions["step"].between(*steps)]
    if actions.empty:
        of = f" of steps {steps[0]} to {steps[1]}" if steps else ""
        raise UserError(f"critical path: there are no actions{of}")
    # Find each action's predecessor on its own rank and the sender of its message.
    actions = actions.sort_values(["start", "end"], kind="stable").reset_index(drop=True)
    before = np.full(len(actions), -1)
    for places in actions.groupby("rank").indices.values():
        before[places[1:]] = places[:-1]
    pairs = arrows(actions)
    sender = np.full(len(actions), -1)
    sender[pairs["target"]] = pairs["source"]
    start, end = (actions[name].to_numpy() for name in ("start", "end"))
    # Walk back from the action that ended last.
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
        # Clocks of two hosts agree to a few microseconds only; stop rather than walk forward.
        here = last if last >= 0 and (start[last] < start[here] or last < here) else -1
    found = actions.iloc[path[::-1]].reset_index(drop=True)
    return found.assign(gap=gaps[::-1], by=reasons[::-1])

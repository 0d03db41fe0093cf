"""The critical path by hand, and that its pieces fill the time of a simulated step."""

import pandas as pd
import pytest

from ringtmp.analysis import critical_path
from ringtmp.errors import UserError
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate

COLUMNS = ["rank", "kind", "start", "end", "step", "micro_batch", "stage"]


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_by_hand():
    """Two ranks: the second one waits for a message, then the first one for the gradient."""
    events = table(
        (0, "F", 0, 10, 0, 0, 0),
        (0, "wait", 10, 50, 0, -1, -1),
        (1, "F", 15, 30, 0, 0, 1),
        (1, "I", 30, 42, 0, 0, 1),
        (1, "W", 42, 45, 0, 0, 1),
        (0, "I", 50, 60, 0, 0, 0),
        (0, "W", 60, 70, 0, 0, 0),
    )
    path = critical_path(events)
    assert path[["rank", "kind", "gap", "by"]].to_numpy().tolist() == [
        [0, "F", 0, ""],
        [1, "F", 5, "message"],
        [1, "I", 0, "rank"],
        [0, "I", 8, "message"],
        [0, "W", 0, "rank"],
    ]


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h2"])
def test_it_fills_the_time(name):
    events = simulate(Scene.even(4, 8, latency=0.1), build(name, 4, 8, 1), steps=2, log=True).events()
    path = critical_path(events)
    whole = path["end"].iloc[-1] - path["start"].iloc[0]
    assert (path["end"] - path["start"]).sum() + path["gap"].sum() == pytest.approx(whole, rel=1e-6)
    assert path["start"].iloc[0] == events["start"].min() and path["end"].iloc[-1] == events["end"].max()
    assert set(path["by"]) == {"", "rank", "message"}


def test_nothing_to_walk():
    with pytest.raises(UserError, match="critical path: there are no actions"):
        critical_path(table((0, "wait", 0, 1, 0, -1, -1)))
    with pytest.raises(UserError, match="of steps 3 to 4"):
        critical_path(table((0, "F", 0, 1, 0, 0, 0)), steps=(3, 4))

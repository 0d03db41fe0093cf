"""Perfetto traces of plans, simulations and runs: every event once, every message one arrow."""

import gzip
import json

import pytest
from events import events_of

import ringtmp
from ringtmp.analysis import write_perfetto
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate


def written(events, path):
    write_perfetto(events, path)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text()
    entries = json.loads(text)["traceEvents"]
    return {phase: [each for each in entries if each["ph"] == phase] for phase in "MXsf"}


@pytest.mark.parametrize(
    ("ranks", "chunks", "name"), [(4, 1, None), (4, 2, None), (3, 2, "interleaved"), (2, 1, "1f1b"), (1, 2, None)]
)
def test_an_arrow_for_every_message(tmp_path, ranks, chunks, name):
    """From the bar of the action that made it to the bar of the action that takes it, on another rank."""
    m, steps, stages = 5, 2, ranks * chunks
    plan = build(name, ranks, m, chunks) if name else None
    events = simulate(Scene.even(ranks, m, chunks=chunks, layers=2, jitter=0.2), plan, steps=steps, log=True).events()
    entries = written(events, tmp_path / "a.json")
    assert len(entries["X"]) == len(events)
    hops = (stages - 1) * m * steps if ranks > 1 else 0
    assert [start["id"] for start in entries["s"]] == [end["id"] for end in entries["f"]] == list(range(2 * hops))
    seen = set()
    for start, end in zip(entries["s"], entries["f"], strict=True):
        maker, taker = bar_at(entries, start), bar_at(entries, end)
        a, b = maker["args"], taker["args"]
        assert (a["step"], a["micro_batch"]) == (b["step"], b["micro_batch"])
        hop, kinds = {"activation": (1, "F"), "gradient": (-1, "IB")}[start["name"]]
        assert b["stage"] - a["stage"] == hop
        assert maker["name"][0] in kinds
        assert taker["name"][0] in kinds
        assert start["name"] == end["name"]
        assert end["bp"] == "e"
        assert start["ts"] <= end["ts"]
        assert maker["pid"] == a["stage"] % ranks != taker["pid"] == b["stage"] % ranks
        seen.add((start["name"], a["step"], a["micro_batch"], a["stage"]))
    assert len(seen) == 2 * hops


def bar_at(entries, point):
    """The one bar that holds one end of an arrow, in whole nanoseconds as Perfetto cuts them."""
    at = int(point["ts"] * 1000)
    (bar,) = [
        bar
        for bar in entries["X"]
        if (bar["pid"], bar["tid"]) == (point["pid"], point["tid"])
        and int(bar["ts"] * 1000) <= at < int(bar["ts"] * 1000) + int(bar["dur"] * 1000)
    ]
    return bar


def test_perfetto_of_a_run(run, tmp_path):
    """Nanoseconds survive the cut to whole ones; compute is on one thread, all else on the other."""
    events = run.events()
    entries = written(events, tmp_path / "a.json.gz")
    got = sorted(
        (int(bar["ts"] * 1000), int(bar["dur"] * 1000), bar["name"].rstrip("0123456789")) for bar in entries["X"]
    )
    lasts = events["end"] - events["start"]
    assert got == sorted(zip(events["start"].tolist(), lasts.tolist(), events["kind"], strict=True))
    names = {(each["pid"], each.get("tid")): each["args"]["name"] for each in entries["M"] if "name" in each["args"]}
    assert sorted(names.values()) == ["compute", "rank 0", "waits, transfers, files"]
    for bar in entries["X"]:
        computes = bar["name"][0] in "FIWUE"
        assert names[bar["pid"], bar["tid"]] == ("compute" if computes else "waits, transfers, files")
    forward = next(bar for bar in entries["X"] if bar["name"] == "F2" and bar["args"]["step"] == 3)
    assert forward["args"] == {"step": 3, "micro_batch": 2, "stage": 0, "version": 3}
    assert entries["s"] == entries["f"] == []


def test_arrows_of_a_trace(tmp_path):
    """Messages are joined by what they carry, sends hold their bytes, evaluations too have arrows, waits have none."""
    rows = [
        (0, "E", 0, 10, 4, 1, 0, 4),
        (0, "send", 10, 12, 4, 1, 0, -1),
        (0, "F", 12, 20, 4, 1, 0, 4),
        (0, "wait", 20, 90, 4, -1, 0, -1),
        (0, "I", 90, 95, 4, 1, 0, 4),
        (1, "E", 11, 15, 4, 1, 1, 4),
        (1, "F", 30, 40, 4, 1, 1, 4),
        (1, "I", 40, 45, 4, 1, 1, 4),
        (1, "F", 50, 60, 5, 1, 1, 5),  # whose sender is not in the selection
    ]
    events = events_of(rows)
    events.loc[1, ["peer", "bytes"]] = 1, 640
    entries = written(events, tmp_path / "a.json")
    arrows = [
        (bar_at(entries, start)["name"], start["pid"], bar_at(entries, end)["name"], end["pid"])
        for start, end in zip(entries["s"], entries["f"], strict=True)
    ]
    assert sorted(arrows) == [("E1", 0, "E1", 1), ("F1", 0, "F1", 1), ("I1", 1, "I1", 0)]
    send = next(bar for bar in entries["X"] if bar["name"] == "send1")
    assert send["args"] == {"step": 4, "micro_batch": 1, "stage": 0, "peer": 1, "bytes": 640}
    waiting = next(bar for bar in entries["X"] if bar["name"] == "wait")
    assert waiting["args"] == {"step": 4, "stage": 0}


@pytest.mark.parametrize("taken", [(180, 250), (120, 150)])
def test_arrows_survive_clocks_that_differ(tmp_path, taken):
    """An arrow that seems to go back in time would be dropped by Perfetto."""
    rows = [(0, "F", 100, 200, 0, 0, 0, 0), (1, "F", *taken, 0, 0, 1, 0)]
    entries = written(events_of(rows), tmp_path / "a.json")
    ((start,), (end,)) = entries["s"], entries["f"]
    assert bar_at(entries, start)["pid"] == 0
    assert bar_at(entries, end)["pid"] == 1
    assert start["ts"] <= end["ts"]


def test_perfetto_of_nothing_or_to_nowhere(run, tmp_path):
    events = run.events()
    with pytest.raises(ringtmp.UserError, match="expected a name that ends in .json or .json.gz"):
        write_perfetto(events, tmp_path / "a.txt")
    with pytest.raises(ringtmp.UserError, match=r"nowhere/a.json: cannot be written: No such file"):
        write_perfetto(events, tmp_path / "nowhere" / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ringtmp.UserError, match=r"file/a.json: cannot be written: Not a directory"):
        write_perfetto(events, tmp_path / "file" / "a.json")
    with pytest.raises(ringtmp.UserError, match="no events"):
        write_perfetto(events.iloc[:0], tmp_path / "a.json")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(ringtmp.UserError, match="taken.json: cannot be written"):
        write_perfetto(events, tmp_path / "taken.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.json"]  # nothing half written

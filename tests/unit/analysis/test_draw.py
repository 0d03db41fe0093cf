"""Pictures and Perfetto traces of plans, simulations and runs: every event once, every message one arrow."""

import gzip
import json
import subprocess
import sys

import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import ringtmp
from ringtmp.analysis import draw_gantt, open_run, peak_in_flight, staleness, write_perfetto
from ringtmp.analysis.draw import COLOURS
from ringtmp.commands.draw import _arguments, draw
from ringtmp.schedule.plan import build
from ringtmp.simulate.pipeline import Scene, simulate
from ringtmp.trace.events import KINDS

mpl.use("agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    ringtmp.train(
        data="digits",
        model="mlp:64-16x2-10",
        steps=10,
        micro_batches=4,
        batch_size=32,
        out=str(out),
        name="a",
        progress=False,
    )
    return open_run(out / "a")


def events_of(rows):
    """A frame of hand-made events: (rank, kind, start, end, step, micro_batch, stage, version)."""
    names = ["rank", "kind", "start", "end", "step", "micro_batch", "stage", "version"]
    return pd.DataFrame(rows, columns=names).assign(peer=-1, bytes=0)


# ---- Gantt ----------------------------------------------------------------------------------------------------------


def bars_of(ax):
    """(rank, left, right in nanoseconds) of every rectangle, in order."""
    corners = [path.vertices for collection in ax.collections for path in collection.get_paths()]
    assert all(len(set(map(tuple, each[:4]))) in (2, 4) for each in corners)
    boxes = [(each[:, 1].mean(where=np.arange(len(each)) < 4), each[:, 0].min(), each[:, 0].max()) for each in corners]
    return sorted((round(y), round(left * 1e6), round(right * 1e6)) for y, left, right in boxes)


def want_bars(events):
    zero = events["start"].min()
    rows = zip(events["rank"], events["start"] - zero, events["end"] - zero, strict=True)
    return sorted((int(rank), int(start), int(end)) for rank, start, end in rows)


@pytest.mark.parametrize(("name", "chunks"), [(None, 1), (None, 2), ("interleaved", 2), ("zb-h1", 1)])
def test_every_bar_of_a_simulation_is_drawn_once(name, chunks):
    plan = build(name, 4, 6, chunks) if name else None
    events = simulate(Scene.even(4, 6, chunks=chunks, layers=4, jitter=0.3), plan, steps=2, log=True).events()
    ax = draw_gantt(events)
    assert bars_of(ax) == want_bars(events)
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"rank {rank}" for rank in range(4)]
    assert ax.yaxis_inverted()


def test_every_bar_of_a_run_is_drawn_once(run, tmp_path):
    events = run.events()
    assert set(COLOURS) == {*KINDS, "B"}  # no kind of a trace is left out
    shown = events[events["step"].between(3, 4)]
    ax = draw_gantt(events, steps=(3, 4))
    assert bars_of(ax) == want_bars(shown)
    ax.figure.savefig(tmp_path / "gantt.svg")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["F forward", "I input gradient"]


def test_chunks_are_told_apart():
    """One collection for each kind and chunk; later chunks are lighter, and the legend names each kind once."""
    events = simulate(Scene.even(2, 4, chunks=3), steps=1, log=True).events()
    ax = draw_gantt(events)
    base = mpl.colors.to_rgb(COLOURS["F"])
    forward = [each for each in ax.collections if np.allclose(_hue(each.get_facecolor()[0][:3]), _hue(base))]
    assert len(forward) == 3
    brightness = [each.get_facecolor()[0][:3].sum() for each in forward]
    assert brightness == sorted(brightness)
    assert min(np.diff(brightness)) > 0.2
    for chunk, each in enumerate(forward):
        mine = events[(events["kind"] == "F") & (events["stage"] // 2 == chunk)]
        assert len(each.get_paths()) == len(mine)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["F forward", "I input gradient", "W weight gradient", "U update", "chunks 0 to 2"]
    assert ax.get_legend_handles_labels()[1] == labels[:-1]


def of_workers(micro_batches=1):
    """A server (rank 0) and two workers of three layers whose weights come one by one."""
    rows = [(0, "wait", 0, 5, 0, -1, -1, -1)]
    for rank in (1, 2):
        now = rank
        for layer in range(3):
            rows += [(rank, "wait", now, now + 1, 0, -1, layer, -1), (rank, "U", now + 1, now + 2, 0, -1, layer, -1)]
            rows += [(rank, "F", now + 2 + n, now + 3 + n, 1, n, layer, -1) for n in range(micro_batches)]
            now += 2 + micro_batches
        for layer in (2, 1, 0):
            for n in range(micro_batches):
                rows += [(rank, "I", now, now + 1, 1, n, layer, -1), (rank, "W", now + 1, now + 2, 1, n, layer, -1)]
                now += 2
            rows += [(rank, "send", now, now + 1, 1, -1, layer, -1), (0, "receive", now + 2, now + 3, 1, -1, layer, 1)]
            rows += [(0, "U", now + 3, now + 4, 1, -1, layer, 2), (0, "send", now + 4, now + 5, 1, -1, layer, 2)]
            now += 1
    return events_of([(rank, kind, start * 10**6, end * 10**6, *rest) for rank, kind, start, end, *rest in rows])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_servers_and_workers(micro_batches):
    """A row for each; workers' layers are told apart by shade, and a single micro-batch needs no numbers."""
    events = of_workers(micro_batches)
    ax = draw_gantt(events)
    assert bars_of(ax) == want_bars(events)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rank 0", "rank 1", "rank 2"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "F forward",
        "I input gradient",
        "W weight gradient",
        "U update",
        "send",
        "receive",
        "wait",
        "layers 0 to 2",
    ]
    assert {text.get_text() for text in ax.texts} == (set() if micro_batches == 1 else {"0", "1", "2"})
    shades = [each.get_facecolor()[0][:3].sum() for each in ax.collections]
    for kind in range(3):  # F, I, W, and of each the layers
        assert shades[3 * kind] < shades[3 * kind + 1] < shades[3 * kind + 2]


def test_one_worker_is_drawn_as_a_rank_of_a_ring():
    """Nothing tells its layers from chunks."""
    events = of_workers()
    ax = draw_gantt(events[events["rank"] < 2])
    assert ax.get_legend().get_texts()[-1].get_text() == "chunks 0 to 2"
    assert {text.get_text() for text in ax.texts} == {"0"}


def _hue(colour):
    """What is left of a colour when the white in it is taken out."""
    distance = 1 - np.asarray(colour)
    return distance / distance.max()


def test_numbers_stand_where_there_is_room():
    """Pieces of one W that follow each other carry one number; bars that are too narrow carry none."""
    long, short = 10_000_000, 1000
    rows = [(0, "F", 0, long, 0, 7, 0, 0), (0, "I", long, 2 * long, 0, 7, 0, 0)]
    rows += [(0, "W", (2 + n) * long, (3 + n) * long, 0, 7, 0, -1) for n in range(4)]
    rows += [(0, "W", 6 * long, 7 * long, 0, 8, 0, -1), (0, "B", 7 * long, 8 * long, 0, 11, 0, -1)]
    rows += [(0, "F", 8 * long, 8 * long + short, 0, 9, 0, 0), (0, "wait", 8 * long + short, 9 * long, 0, -1, 0, -1)]
    ax = draw_gantt(events_of(rows))
    assert [text.get_text() for text in ax.texts] == ["7", "7", "7", "8", "11"]
    assert [text.get_position()[0] for text in ax.texts] == pytest.approx([5, 15, 40, 65, 75])
    assert len(draw_gantt(events_of(rows), numbers=False).texts) == 0


def test_an_update_without_duration_is_seen():
    """It gets an edge of its own colour; a narrow F gets none, which would hide it."""
    ax = draw_gantt(
        events_of([(0, "U", 10, 10, 0, -1, 0, 1), (0, "F", 0, 10, 0, 0, 0, 0), (0, "F", 9, 10**9, 0, 1, 0, 0)])
    )
    forward, update = ax.collections
    assert update.get_linewidth()[0] == 1.0
    assert np.allclose(update.get_edgecolor()[0][:3], mpl.colors.to_rgb(COLOURS["U"]))
    assert [width > 0 for width in forward.get_linewidth()] == [False, True]


def test_many_bars_are_few_artists():
    events = simulate(Scene.even(8, 16, chunks=2, layers=8, jitter=0.2), steps=16, log=True).events()
    assert len(events) > 20_000
    ax = draw_gantt(events)
    assert len(ax.collections) == 7  # F, I and W of two chunks, and U
    assert len(ax.texts) < 2000
    assert sum(len(each.get_paths()) for each in ax.collections) == len(events)


def test_given_axes_are_used(run):
    _, (above, below) = mpl.pyplot.subplots(2)
    assert draw_gantt(run.events(), below, steps=(2, 2)) is below
    assert below.collections
    assert not above.collections


def test_nothing_to_draw(run):
    with pytest.raises(ringtmp.UserError, match="no events"):
        draw_gantt(run.events().iloc[:0])
    with pytest.raises(ringtmp.UserError, match="steps 30 to 31: the trace holds steps 0 to 10"):
        draw_gantt(run.events(), steps=(30, 31))


# ---- Perfetto -------------------------------------------------------------------------------------------------------


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


# ---- what events tell -----------------------------------------------------------------------------------------------


def test_staleness_by_hand():
    """The oldest weights that an F of the update's step used count; evaluations and other stages do not."""
    rows = [
        (0, "F", 0, 1, 5, 0, 0, 5),
        (0, "F", 1, 2, 5, 1, 0, 4),
        (0, "U", 2, 3, 5, -1, 0, 6),
        (0, "F", 3, 4, 6, 0, 0, 3),
        (0, "U", 4, 5, 6, -1, 0, 7),
        (0, "E", 6, 7, 6, 0, 0, 0),
        (1, "F", 0, 1, 5, 0, 1, 5),
        (1, "I", 1, 2, 5, 0, 1, 0),
        (1, "U", 2, 3, 5, -1, 1, 6),
        (1, "wait", 3, 4, 6, -1, 1, -1),
        (1, "U", 4, 5, 6, -1, 1, 7),  # whose forwards are not there
    ]
    got = staleness(events_of(rows))
    assert got.to_dict("list") == {"rank": [0, 0, 1], "stage": [0, 0, 1], "step": [5, 6, 5], "staleness": [1, 3, 0]}
    assert (got.dtypes == np.int64).all()


def test_staleness_of_a_run(run):
    """Synchronous training uses the newest weights."""
    got = run.staleness()
    assert got["step"].tolist() == list(range(10))
    assert (got["staleness"] == 0).all()


def test_staleness_of_what_does_not_say():
    events = events_of([(0, "F", 0, 1, 0, 0, 0, -1)])
    for each in (events, events.drop(columns="version")):
        with pytest.raises(ringtmp.UserError, match="no weight versions"):
            staleness(each)
    assert staleness(events.iloc[:0]).empty


def test_peak_in_flight_by_hand():
    """A micro-batch goes with the end of its last piece of W, and what begins at that moment has its place."""
    rows = [
        (0, "F", 0, 10, 0, 0, 0, 0),
        (0, "F", 10, 20, 0, 1, 0, 0),
        (0, "W", 20, 30, 0, 0, 0, -1),
        (0, "F", 30, 40, 0, 2, 0, 0),  # 0 is not done: 3
        (0, "W", 40, 50, 0, 0, 0, -1),
        (0, "F", 50, 60, 0, 3, 0, 0),  # 0 is: 3
        (0, "E", 60, 70, 1, 0, 0, 0),
        (0, "E", 70, 80, 1, 1, 0, 0),
        (0, "E", 80, 90, 1, 2, 0, 0),
        (1, "F", 0, 10, 0, 0, 1, 0),
        (1, "B", 10, 20, 0, 0, 1, 0),
        (1, "F", 20, 30, 0, 1, 1, 0),  # 1
        (2, "W", 0, 10, 0, 0, 2, 0),
        (2, "F", 10, 20, 1, 0, 2, 0),
        (2, "F", 20, 30, 1, 0, 5, 0),  # two stages: 2
        (3, "wait", 0, 10, 0, -1, 3, -1),
    ]
    got = peak_in_flight(events_of(rows).sample(frac=1, random_state=1))
    assert got.to_dict() == {0: 3, 1: 1, 2: 2, 3: 0}
    assert got.dtype == np.int64


@pytest.mark.parametrize(("name", "chunks"), [(None, 1), (None, 2), ("interleaved", 2), ("gpipe", 1), ("zb-h2", 1)])
def test_peak_in_flight_is_the_simulators(name, chunks):
    plan = build(name, 4, 9, chunks) if name else None
    outcome = simulate(Scene.even(4, 9, chunks=chunks, layers=4, jitter=0.4), plan, steps=3, log=True)
    assert peak_in_flight(outcome.events()).tolist() == outcome.held.tolist()


def test_peak_in_flight_of_a_run(run):
    assert run.peak_in_flight().index.tolist() == [0]
    assert 1 <= run.peak_in_flight()[0] <= 4


def copied(run, tmp_path):
    """Another run folder with the same trace, to be spoilt."""
    import shutil

    return shutil.copytree(run.path, tmp_path / "copy") / "traces" / "000" / "rank-0000.h5"


def test_a_trace_of_another_format_is_named(run, tmp_path):
    path = copied(run, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "ringtmp-trace-1"
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: expected format ringtmp-trace-2, got ringtmp-trace-1"):
        open_run(tmp_path / "copy").events()


def test_a_damaged_trace_is_named(run, tmp_path):
    path = copied(run, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: cannot be read"):
        open_run(tmp_path / "copy").events()


def test_a_trace_before_its_first_event(run, tmp_path):
    path = copied(run, tmp_path)
    with h5py.File(path, "r+") as file:
        del file.attrs["began"]
    with pytest.raises(ringtmp.UserError, match=r"rank-0000.h5: no event has been written"):
        open_run(tmp_path / "copy").events()


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of each `draw_gantt` of the command: events and steps."""
    calls = []

    def note(events, **settings):
        calls.append((events, settings["steps"]))
        return draw_gantt(events, **settings)

    monkeypatch.setattr("ringtmp.analysis.picture.draw_gantt", note)
    return calls


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_command_draws(tmp_path, drawn, ending, magic):
    path = tmp_path / f"a.{ending}"
    words = "rule --ranks 3 --micro-batches 4 --chunks 2 --latency 0.5 --jitter 0.1 --steps 2 --out"
    draw(_arguments([*words.split(), str(path)]))
    assert path.read_bytes().startswith(magic)
    ((events, steps),) = drawn
    assert steps == (0, 1)
    assert len(events[events["kind"] == "F"]) == 3 * 2 * 4 * 2
    first = events[(events["stage"] == 0) & (events["kind"] == "F")].iloc[0]
    assert 0.45e6 <= first["end"] - first["start"] <= 0.55e6  # half an action, drawn as half a millisecond
    arrived = events[(events["stage"] == 1) & (events["kind"] == "F")].iloc[0]
    assert arrived["start"] - first["end"] == 0.5e6


def test_the_command_draws_a_plan(tmp_path, drawn):
    draw(_arguments(["plan:1f1b", "--ranks", "2", "--micro-batches", "3", "--out", str(tmp_path / "a.png")]))
    ((events, steps),) = drawn
    assert steps == (0, 0)
    order = {
        rank: " ".join(f"{e.stage}{e.kind}{e.micro_batch}" for e in mine.itertuples() if e.kind != "U")
        for rank, mine in events.groupby("rank")
    }
    assert order == {0: "0F0 0F1 0B0 0F2 0B1 0B2", 1: "1F0 1B0 1F1 1B1 1F2 1B2"}


def test_the_command_takes_the_middle_of_a_trace(run, tmp_path, drawn):
    for words in ([], ["--steps", "2-7"], ["--steps", "all", "--launch", "0"]):
        draw(_arguments([str(run.path), "--out", str(tmp_path / "a.png"), *words]))
    assert [steps for _, steps in drawn] == [(4, 5), (2, 7), None]


def test_the_command_writes_perfetto(run, tmp_path):
    for words, steps in (([], {4, 5}), (["--steps", "2-2"], {2}), (["--steps", "all"], set(range(11)))):
        path = tmp_path / "a.json.gz"
        draw(_arguments([str(run.path), "--out", str(path), *words]))
        entries = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert {each["args"]["step"] for each in entries if each["ph"] == "X"} >= steps
        assert {each["args"]["step"] for each in entries if each["ph"] == "X" and each["name"] == "U"} == steps - {10}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rule"], "required: --out"),
        (
            ["rule", "--out", "a.gif"],
            "out: expected a file that ends in .png, .svg, .pdf, .json, .json.gz, got 'a.gif'",
        ),
        (["rule", "--out", "nowhere/a.png"], "out: nowhere/a.png cannot be written: No such file or directory"),
        (["rule", "--out", "nowhere/a.json"], "nowhere/a.json: cannot be written: No such file or directory"),
        (["nothing", "--out", "a.png"], "what: expected a run folder, plan:NAME or rule, got 'nothing'"),
        (["folder", "--out", "a.png"], "folder is not a run folder"),
        (["plan:fast", "--out", "a.png"], "schedule: expected one of naive"),
        (["plan:1f1b", "--chunks", "2", "--out", "a.png"], "chunks: schedule 1f1b takes 1, got 2"),
        (["rule", "--ranks", "0", "--out", "a.png"], "ranks: expected at least 1, got 0"),
        (["rule", "--micro-batches", "x", "--out", "a.png"], "--micro-batches: invalid int value: 'x'"),
        (["rule", "--latency", "nan", "--out", "a.png"], "latency: expected a number from 0, got nan"),
        (["rule", "--latency", "inf", "--out", "a.png"], "latency: expected a number from 0, got inf"),
        (["rule", "--jitter", "1", "--out", "a.png"], "jitter: expected a number from 0 and below 1, got 1.0"),
        (["rule", "--steps", "0", "--out", "a.png"], "steps: expected how many, or A-B such as 4-5, got '0'"),
        (["rule", "--steps", "3-2", "--out", "a.png"], "steps: expected how many"),
        (["rule", "--steps", "99999", "--out", "a.png"], "steps: 99999 of them are 9,599,904 actions"),
        (["rule", "--launch", "0", "--out", "a.png"], "launch: goes with a run folder, not with rule"),
        (["RUN", "--chunks", "2", "--out", "a.png"], "chunks: goes with plan:NAME and rule, not with RUN"),
        (["RUN", "--steps", "x", "--out", "a.png"], "steps: expected A-B such as 40-41, or all, got 'x'"),
        (["RUN", "--steps", "90-91", "--out", "a.json"], "steps: RUN holds steps 0 to 10, got 90-91"),
        (["RUN", "--launch", "3", "--out", "a.png"], "launch 3 has no trace"),
    ],
)
def test_bad_input_of_the_command(run, tmp_path, monkeypatch, words, message):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ringtmp.UserError) as error:
        draw(_arguments([word.replace("RUN", str(run.path)) for word in words]))
    assert message.replace("RUN", str(run.path)) in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_command_as_a_process(tmp_path):
    def call(*words):
        return subprocess.run(
            [sys.executable, "-m", "ringtmp", "draw", *words], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )

    done = call("rule", "--ranks", "2", "--out", "a.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "written to a.json\n", "")
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    done = call("plan:fast", "--out", "b.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ringtmp: schedule: expected one of")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "b.png").exists()
    assert "--micro-batches" in call("--help").stdout

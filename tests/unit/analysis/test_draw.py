"""Pictures of plans, simulations and runs: every event once."""

import matplotlib as mpl
import numpy as np
import pytest
from events import events_of

import ringtmp
from ringtmp.analysis import draw_gantt
from ringtmp.analysis.draw import COLOURS
from ringtmp.schedule.registry import build
from ringtmp.simulate.pipeline import Scene, simulate
from ringtmp.trace.events import KINDS

mpl.use("agg")


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

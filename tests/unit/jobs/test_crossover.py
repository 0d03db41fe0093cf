"""The experiment on where server and ring cost the same: what it makes of predictions and runs."""

from dataclasses import replace
from io import StringIO
from math import sqrt

import pytest
from rich.console import Console

from ringtmp.jobs.experiments.crossover import WAYS, Setting, crossing, curves, equal, predict, same_bytes, tabulate
from ringtmp.jobs.experiments.crossover_figure import show
from ringtmp.simulate.data_parallel import Exchange, cut_bytes, exchange_bytes

SETTING = Setting(4, 8, 32, 96, 8, "32KiB", 10.0, "100mbit", 11.8e6, 1e-4)


def test_equal():
    assert equal([1, 4], [0.5, 2]) == pytest.approx(2)
    assert equal([1, 2, 4, 8], [4, 2, 0.5, 0.25]) == pytest.approx(sqrt(8))
    assert equal([1, 2, 4, 8], [0.5, 2, 0.5, 2]) == pytest.approx(sqrt(8))  # the middle one of three
    assert equal([1, 2], [1.5, 2]) is None
    assert equal([], []) is None


def test_points_are_shared_evenly():
    assert SETTING.at("batch", 100) == (96, 32)
    assert SETTING.at("batch", 1) == (24, 32)
    assert SETTING.at("width", 47.6) == (96, 48)
    assert replace(SETTING, micro_batches=16).at("batch", 100)[0] % 48 == 0


def test_same_bytes_by_the_formulas():
    """2 W M = 8 B d over a cut, and twice as much over the link of a host between two."""
    for sweep, at in (("batch", 0), ("width", 1)):
        for place, cuts in (("cut", 1), ("link", 2)):
            here = [SETTING.batch, SETTING.width]
            here[at] = same_bytes(replace(SETTING, batch=24 * 24), sweep)[place]
            batch, width = here if sweep == "batch" else (24 * 24, here[1])
            size = 4 * 8 * (width**2 + width)
            assert exchange_bytes(Exchange(), 3, size) == pytest.approx(cuts * cut_bytes(batch, width))


def test_predictions():
    """The server's step does not depend on the batch, the ring's grows with it; shared links are slower."""
    server = [predict(SETTING, "server bsp", batch, 32) for batch in (96, 960)]
    ring = [predict(SETTING, "ring", batch, 32) for batch in (96, 960)]
    assert server[1] < 1.3 * server[0]
    assert 6 < ring[1] / ring[0] < 10
    assert ring[1] > 1.5 * predict(SETTING, "ring", 960, 32, 1)
    assert [row["batch"] for row in curves(SETTING, "batch")] == sorted(
        {row["batch"] for row in curves(SETTING, "batch")}
    )


def test_tables():
    points = [(48, 32), (96, 32), (192, 32)]
    rounds = [
        [
            {"way": way, "batch": batch, "width": 32, "late": 0.0, "seconds": scale * (batch if way == "ring" else 96)}
            for batch, _ in points
            for way in ("ring", "server bsp")
        ]
        for scale in (1.0, 1.1, 3.0)
    ]
    rows = tabulate(SETTING, "batch", points, rounds, ["ring", "server bsp"])
    assert rows[0]["ring"]["predicted"] == predict(SETTING, "ring", 48, 32)
    assert [rows[0]["ring"][key] for key in ("low", "measured", "high")] == pytest.approx([48, 52.8, 144])
    assert [row["ratio"]["measured"] for row in rows] == pytest.approx([2, 1, 0.5])
    curve = [{"batch": batch, "ring": batch, "server bsp": 120} for batch in (60, 240)]
    found = crossing("batch", "server bsp", curve, rows, rounds)
    assert found["predicted"] == pytest.approx(120)
    assert [found["measured"], *found["rounds"]] == pytest.approx([96] * 4)
    assert (
        crossing("batch", "colocated servers", [row | {"colocated servers": 1} for row in curve], rows, rounds)[
            "measured"
        ]
        is None
    )
    table = {
        "provenance": {"rounds": 3},
        "setting": {"width": 32, "batch": 96},
        "caveats": ["one"],
        "rows": rows,
        "crossings": [found],
        "same_bytes": {"batch": same_bytes(SETTING, "batch")},
        "runs": [run for some in rounds for run in some],
    }
    said = Console(file=StringIO(), width=150)
    show(table, said)
    assert (
        "120 (predicted), 96 (measured; in single rounds 96 to 96): the prediction is +25% off" in said.file.getvalue()
    )
    assert set(WAYS) == {"ring", "server bsp", "colocated servers", "all-reduce"}

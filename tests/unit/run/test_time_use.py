"""The time of a launch divided as its newest events are, and the table that shows it."""

import io

import numpy as np
import pytest
from rich.console import Console

from ringtmp.run.output.time_table import mean_shares, time_table
from ringtmp.run.time_use import extrapolate, time_given_cores
from ringtmp.trace.core_time import CORE_PARTS
from ringtmp.trace.recorder import Recorder

PARTS = {"compute": 400, "transfer": 100, "wait": 400, "checkpoint": 60, "other": 40}


class OneRank:
    rank = 0

    def allgather(self, mine):
        return [mine]


def array(**seconds):
    return np.array([seconds.get(part, 0.0) for part in CORE_PARTS])


def test_a_window_divides_the_whole_launch():
    """Half of computing and a quarter of waiting was for want of a core; a part that the window lacks: as the mean."""
    given = array(compute=2.0, transfer=1.0, neighbour=3.0, core=4.0)
    alone = array(compute=4.0, transfer=2.0, neighbour=4.0)
    divided = extrapolate({part: value * 10**9 for part, value in PARTS.items()}, given, alone)
    assert divided == {
        "compute": 200,
        "transfer": 50,
        "neighbour": 300,
        "core": 400,
        "checkpoint": 30,
        "other": 20,
    }
    assert sum(divided.values()) == sum(PARTS.values())


def test_without_other_ranks_there_is_no_wait_for_a_core():
    recorder = Recorder(None, {}, keep=True)
    recorder.record("F", recorder.began + 10, recorder.began + 30, 0)
    recorder.record("wait", recorder.began + 30, recorder.began + 40, 0)
    recorder.ended = recorder.began + 50
    found = time_given_cores(OneRank(), recorder, 1)
    assert {part: round(seconds * 1e9) for part, seconds in found.items()} == {
        "compute": 20,
        "transfer": 0,
        "neighbour": 10,
        "core": 0,
        "checkpoint": 0,
        "other": 20,
    }


@pytest.mark.parametrize("keep", [False, True])
def test_without_events_nothing_is_known(keep):
    assert time_given_cores(OneRank(), Recorder(None, {}, keep=keep), 1) is None


# ---- the table ------------------------------------------------------------------------------------------------------


def row(rank, given=True, role=None, shown="0", scale=1):
    parts = {part: value * scale for part, value in PARTS.items()}
    cores = {"compute": 3e-7, "transfer": 1e-7, "neighbour": 1e-7, "core": 4e-7, "checkpoint": 6e-8, "other": 4e-8}
    cores = {part: value * scale for part, value in cores.items()} if given else None
    known = {"rank": rank, "shown": shown, "parameters": 1000 + rank, "parts": parts, "memory": (5 + rank) << 20}
    return known | {"given_cores": cores} | ({"role": role} if role else {})


def drawn(rows, width=120, ring=True):
    output = io.StringIO()
    Console(file=output, width=width).print(time_table(rows, "layers" if ring else "role", ring, width))
    return output.getvalue().splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]


def test_table():
    lines = drawn([row(0), row(1, shown="1-3")])
    assert cells(lines[1]) == ["", "", "", "", "", "wait for", "wait for", "", "", ""]
    assert cells(lines[2]) == [
        "rank",
        "layers",
        "parameters",
        "compute",
        "transfer",
        "neighbour",
        "a core",
        "checkpoint",
        "other",
        "peak memory",
    ]
    shares = ["30.0%", "10.0%", "10.0%", "40.0%", "6.0%", "4.0%"]
    assert cells(lines[4]) == ["0", "0", "1,000", *shares, "5 MiB"]
    assert cells(lines[5]) == ["1", "1-3", "1,001", *shares, "6 MiB"]
    assert cells(lines[7]) == ["all", "", "2,001", *shares, "6 MiB"]


def test_one_rank_has_no_mean():
    assert not any("all" in line for line in drawn([row(0)]))


def test_unknown_waits_for_a_core_stay_together():
    lines = drawn([row(0), row(1, given=False)])
    assert cells(lines[1])[3:8] == ["compute", "transfer", "wait", "checkpoint", "other"]
    assert cells(lines[-4])[3:8] == ["40.0%", "10.0%", "40.0%", "6.0%", "4.0%"]


def test_servers_stand_apart():
    """The mean of all is that of the workers: servers do not train."""
    rows = [row(0, role="server", shown="server"), row(1, role="worker", shown="worker", scale=3)]
    rows += [row(2, role="worker", shown="worker"), row(3, role="server", shown="server")]
    lines = [cells(line)[:2] for line in drawn(rows, ring=False) if line.startswith("│")]
    assert lines == [
        ["1", "worker"],
        ["2", "worker"],
        ["workers", ""],
        ["0", "server"],
        ["3", "server"],
        ["servers", ""],
    ]
    assert cells(drawn(rows, ring=False)[1]).count("wait for") == 2


def test_means_weigh_by_time():
    long, short = row(0, given=False, scale=3), row(1, given=False)
    short["parts"] = dict.fromkeys(PARTS, 0) | {"wait": 1000}
    assert mean_shares([long, short], False)["wait"] == pytest.approx((3 * 400 + 1000) / 4000)
    assert mean_shares([row(0, given=False, scale=0)], False) == {}
    assert "0.0%" in "".join(drawn([row(0, given=False, scale=0)]))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("count", [1, 12])
def test_table_fits(width, count):
    """Columns are left out as a whole; what they held is not lost where it is time."""
    lines = drawn([row(rank, shown="10-11") for rank in range(count)], width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    found = [cell for cell in cells(lines[4]) if "%" in cell]
    assert sum(float(cell.strip("%")) for cell in found) == pytest.approx(100)
    assert ("MiB" in lines[4]) == (width >= 100)
    assert ("1,000" in lines[4]) == (width >= 120)

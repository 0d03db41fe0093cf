"""Traces of real runs: neighbours only, parts that sum to the wall time, and every action once."""

import json

import numpy as np
import pytest
from raw_trace import shares

import ringtmp
from ringtmp import ps
from ringtmp.analysis import open_run
from ringtmp.comm.point_to_point import ControlChannel
from ringtmp.run.listener import RunListener
from ringtmp.trace.recorder import Recorder

pytestmark = pytest.mark.mpi

SETTINGS = {
    "model": "mlp:64-24x7-10",
    "data": "digits",
    "batch_size": 32,
    "micro_batches": 5,
    "steps": 12,
    "eval_every": 6,
    "checkpoint_every": 5,
    "progress": False,
}


_traced: list[ringtmp.Result] = []


@pytest.fixture
def run(comm, shared_path):
    """One traced run for all tests, opened anew for each: they only read it."""
    if not _traced:
        _traced.append(ringtmp.train(comm=comm, **SETTINGS, out=str(shared_path), name="traced"))
        comm.Barrier()
    return open_run(_traced[0].folder)


def test_neighbours_only(comm, run):
    """Neighbours only: entries of the communication matrix lie beside its diagonal and in its corners."""
    matrix, n = run.communication().to_numpy(), comm.size
    allowed = {(r, (r + s) % n) for r in range(n) for s in (1, -1)} if n > 1 else set()
    assert {(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True)} <= allowed
    if n > 1:
        samples = 12 * 32 + 2 * json.loads((run.path / "data.json").read_text())["n_test"]
        for _, row in run.ranks().iterrows():  # rank 0 to the last but one send activations; rank 0 sends labels
            rank, last = row["rank"], row["rank"] == n - 1
            sent = 0 if last else 4 * 24 * samples
            sent += ControlChannel.BYTES * (
                12 + 2 * last
            )  # a token a step; the last rank sends the results of tests as well
            if n == 2:  # the right neighbour is the left one too
                sent += 4 * 24 * 12 * 32 if last else 8 * samples
            assert matrix[rank, (rank + 1) % n] == sent


def test_every_action_once(comm, run):
    events = run.events()
    for rank in range(comm.size):
        mine = events[events["rank"] == rank]
        for kind in "FIW":
            got = list(mine[mine["kind"] == kind][["step", "micro_batch"]].itertuples(index=False, name=None))
            if kind == "W":  # it goes layer by layer, and what is more urgent may come in between
                got = list(dict.fromkeys(got))
            assert got == [(step, number) for step in range(12) for number in range(5)]
        assert list(mine[mine["kind"] == "U"]["step"]) == list(range(12))


def test_parts_sum_to_the_wall_time(comm, run):
    """No two events of a rank overlap, and none lies outside its wall time: so the parts can be added up."""
    events, ranks = run.events(), run.ranks().set_index("rank")
    for rank in range(comm.size):
        mine = events[events["rank"] == rank]
        start, end = mine["start"].to_numpy(), mine["end"].to_numpy()
        assert (end >= start).all()
        assert (start[1:] >= end[:-1]).all()
        wall = ranks.loc[rank, "ended"] - ranks.loc[rank, "began"]
        assert (end - start).sum() <= wall
    table = run.breakdown()
    parts = table[["compute", "transfer", "wait", "checkpoint", "other"]]
    assert np.allclose(parts.sum(axis=1), table["wall"], rtol=0.01)
    assert (parts >= 0).all().all()
    assert (table["compute"] > 0).all()


def test_shares_from_the_raw_file(comm, run):
    """The file's bytes, the data frame and the table at the end of the run say the same of each rank."""
    table = run.breakdown()
    for rank in range(comm.size):
        covered, waited = shares(run.path, rank)
        row = table.loc[rank]
        assert waited == pytest.approx(row["wait"] / row["wall"], abs=0.001)
        assert 1 - row["other"] / row["wall"] - 0.01 <= covered <= 1.001  # some events are of `other`
        if comm.rank == 0:
            parts = _traced[0].ranks[rank]["parts"]
            assert waited == pytest.approx(parts["wait"] / sum(parts.values()), abs=0.01)
            assert sum(parts.values()) / 1e9 == pytest.approx(row["wall"], rel=0.01)


@pytest.mark.parametrize("trainer", ["ring", "rings", "server"])
def test_rows_share_out_what_ranks_waited(comm, monkeypatch, trainer):
    """Each nanosecond that a rank notes as waited or elapsed comes home with one step, on any trainer."""
    if (trainer == "rings" and comm.size % 2) or (trainer == "server" and comm.size < 2):
        return
    noted, rows = np.zeros(2), []
    lap, done = Recorder.lap, RunListener.step_done

    def noting_lap(recorder):
        found = lap(recorder)
        noted[:] += found
        return found

    def noting_step(listener, step, loss, correct, waited, elapsed):
        rows.append((waited, elapsed))
        done(listener, step, loss, correct, waited, elapsed)

    monkeypatch.setattr(Recorder, "lap", noting_lap)
    monkeypatch.setattr(RunListener, "step_done", noting_step)
    train = ps.train if trainer == "server" else ringtmp.train
    result = train(comm=comm, **SETTINGS | {"rings": 2 if trainer == "rings" else 1})
    total = comm.allreduce(noted)
    if comm.rank == 0:
        assert np.sum(rows, axis=0).tolist() == total.tolist()
        assert all(0 <= waited <= elapsed for waited, elapsed in rows)
        steps = [row for row in result.rows if row["kind"] == "train"]
        assert [row["idle"] for row in steps] == [waited / elapsed for waited, elapsed in rows]
        assert len(rows) == 12


def test_time_given_the_cores(comm, run):
    """Of every rank, and the parts sum to its wall time."""
    for row in _traced[0].ranks:
        assert sum(row["given_cores"].values()) == pytest.approx(sum(row["parts"].values()) / 1e9, rel=1e-9)
        assert row["given_cores"]["compute"] > 0
        own = sum(value for part, value in row["given_cores"].items() if part not in ("neighbour", "core"))
        assert own <= (sum(row["parts"].values()) - row["parts"]["wait"]) / 1e9 * (1 + 1e-9)
        assert row["given_cores"]["neighbour"] <= row["parts"]["wait"] / 1e9 * (1 + 1e-9)


def test_clocks(comm, run):
    """Ranks on one host read one clock: the measured offset must be within what is said of it."""
    for _, row in run.ranks().iterrows():
        for key in ("clock_first", "clock_last"):
            assert abs(row[key]["offset"]) <= row[key]["uncertainty"] + 1
    first = run.ranks().iloc[0]
    if comm.size > 1 and len(set(run.ranks()["environment"].map(lambda e: e["host"]))) == 1:
        assert abs(first["clock_first"]["closure"]) <= 5e6


def test_attributes_say_what_was_run(comm, run):
    for _, row in run.ranks().iterrows():
        assert row["ranks"] == comm.size
        assert row["config"]["batch_size"] == 32
        assert row["simd"]["vector_bits"]
        assert row["environment"]["versions"]["ringtmp"] == ringtmp.__version__


def test_trace_off(comm, shared_path):
    result = ringtmp.train(comm=comm, **SETTINGS, out=str(shared_path), name="untraced", trace="off")
    with pytest.raises(ringtmp.UserError, match="has no trace"):
        open_run(result.folder).events()

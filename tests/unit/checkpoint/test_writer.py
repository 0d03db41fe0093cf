"""Checkpoints beside the training: copies, the writer's thread, what due and failed sets come to, and their cadence."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.interval import FIRST_SECONDS, FIRST_STEPS, CheckpointInterval, interval
from ringtmp.checkpoint.manager import CheckpointManager, Part
from ringtmp.checkpoint.writer import LayerArrays, Snapshot, Writer
from ringtmp.nn.model import build_model
from ringtmp.storage.run_folder import RunFolder
from ringtmp.trace.recorder import Recorder

# ---- the thread ------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer():
    made = Writer()
    yield made
    made.close(5)


def test_in_order_and_beside(writer):
    """Work is done in another thread, one piece after the other, and told of in order."""
    go, threads = threading.Event(), []

    def work(number):
        def run():
            assert go.wait(5)
            threads.append(threading.current_thread())
            return number

        return run

    for number in (3, 1, 2):
        writer.put("part", number, work(number))
    assert writer.busy
    assert writer.finished() == []
    go.set()
    writer.wait()
    assert not writer.busy
    assert [(each.kind, each.step, each.value) for each in writer.finished()] == [("part", n, n) for n in (3, 1, 2)]
    assert writer.finished() == []
    assert {*threads} == {threads[0]}
    assert threads[0] is not threading.current_thread()


def test_a_full_disk_is_an_outcome(writer):
    def full():
        raise OSError(28, "No space left on device")

    writer.put("part", 1, full)
    writer.put("part", 2, lambda: "written")
    writer.wait()
    first, second = writer.finished()
    assert (first.step, first.error.errno) == (1, 28)
    assert (second.value, second.error) == ("written", None)


def test_an_exception_is_raised_by_the_next_poll(writer):
    """... after what was done before it; what was to follow is not done."""
    done = []
    go = threading.Event()
    writer.put("part", 1, lambda: go.wait(5))
    writer.put("part", 2, lambda: 1 / 0)
    writer.put("part", 3, lambda: done.append(3))
    go.set()
    writer.wait()
    with pytest.raises(ZeroDivisionError):
        writer.finished()
    assert (done, writer.busy) == ([], False)


def test_close(writer):
    """Without patience for it work is finished; else what has been begun is left behind, and nothing else begun."""
    done, go = [], threading.Event()
    writer.close()  # there is no thread yet
    writer.put("part", 1, lambda: done.append(1))
    writer.close()
    assert done == [1]
    hanging = Writer()
    hanging.put("part", 1, lambda: go.wait(5))
    hanging.put("part", 2, lambda: done.append(2))
    hanging.close(0.01)
    go.set()
    assert done == [1]


def test_snapshot_is_a_copy_in_the_same_memory():
    model = build_model("mlp:5-4-3", "auto", (5,), "classes", 3)
    counts = [layer.count for layer in model.layers]
    flats = [np.arange(count, dtype=np.float32) for count in counts]
    slots = [{"m": flat + 0.5} for flat in flats]
    held = [LayerArrays(*each) for each in zip(range(len(counts)), flats, slots, strict=True)]
    snapshot = Snapshot(model)
    snapshot.take(held)
    where = [copy.ctypes.data for _, copy, _ in snapshot._copies]
    want = [checkpoint.LayerRecord.of(model, n, flat.copy(), {"m": s["m"].copy()}) for n, flat, s in held]
    flats[0][:] = -1
    slots[1]["m"][:] = -1
    for record, other in zip(snapshot.records(), want, strict=True):
        assert (record.name, record.table) == (other.name, other.table)
        for mine, theirs in ((record.parameters, other.parameters), (record.slots["m"], other.slots["m"])):
            assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)
    snapshot.take(held)
    assert [copy.ctypes.data for _, copy, _ in snapshot._copies] == where
    assert next(iter(snapshot.records())).parameters["bias"].tolist() == [-1] * 4


# ---- sets of one rank ------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """As much of a job as sets ask for, of 100 steps with a set after every 10."""
    model = build_model("mlp:5-4-3", "auto", (5,), "classes", 3)
    config = SimpleNamespace(checkpoint_every=10, mtbf=None)
    return SimpleNamespace(config=config, model=model, folder=RunFolder(tmp_path))


def held(job, value):
    counts = [layer.count for layer in job.model.layers]
    return [LayerArrays(n, np.full(count, value, np.float32), {}) for n, count in enumerate(counts)]


def make(job, ranks=1):
    config = job.config
    return CheckpointManager(
        job.folder,
        job.model,
        {"config": {}},
        0,
        range(ranks),
        100,
        Recorder(None, {}),
        every=config.checkpoint_every,
        mtbf=config.mtbf,
    )


def test_when_sets_are_due(job):
    sets = make(job)
    assert [step for step in range(1, 101) if sets.due(step)] == list(range(10, 100, 10))
    assert [sets.following(step, 3) for step in (0, 11, 12, 20, 89, 90)] == [12, 21, 21, 30, 90, -1]
    assert not any(make(SimpleNamespace(**vars(job) | {"folder": None})).due(step) for step in range(101))
    job.config.checkpoint_every = 0
    assert not any(make(job).due(step) for step in range(101))


def test_a_set_waits_for_the_one_before(job, monkeypatch):
    """Never two at once; what is written is what was there when the set was due."""
    sets, whole = make(job), checkpoint.write_part
    go, begun = threading.Event(), []

    def slow(root, step, rank, records):
        begun.append(step)
        assert go.wait(5)
        whole(root, step, rank, records)

    monkeypatch.setattr(checkpoint, "write_part", slow)
    sets.save(10, held(job, 1.0))
    assert sets.poll() == []
    threading.Timer(0.2, lambda: (begun.append("free"), go.set())).start()
    sets.save(20, held(job, 2.0))
    sets.writer.wait()
    assert begun == [10, "free", 20]
    assert [(part.step, part.whole) for part in sets.poll()] == [(10, True), (20, True)]
    assert sets.cost < sets.recorder.totals["checkpoint"] / 1e9
    assert sets.recorder.totals["checkpoint"] > 0.15e9
    sets.settle_up_to(sets.newest, 0.0)
    sets.writer.wait()
    assert sets.poll() == []
    assert (sets.committed, checkpoint.committed(job.folder.checkpoints)) == (20, [10, 20])
    for step, value in ((10, 1.0), (20, 2.0)):
        marker = checkpoint.read_marker(job.folder.checkpoints, step)
        checkpoint.verify(job.folder.checkpoints, marker)
        for record in checkpoint.read_layers(job.folder.checkpoints, marker, ["000-dense", "001-dense"]):
            assert (record.parameters["weight"] == value).all()
    sets.close()


def test_a_part_that_failed_does_not_count(job, capfd):
    """Not even where the note of an earlier launch would make the set whole."""
    sets, root = make(job, ranks=2), job.folder.checkpoints
    for rank in (0, 1):
        checkpoint.write_part(root, 10, rank, [])
    sets.fail(10, "on purpose")
    sets.writer.wait()
    assert sets.poll() == [Part(10, False, 0.0)]
    assert "could not write its checkpoint of step 10: on purpose; the one before it is kept" in capfd.readouterr().err
    sets.settle_up_to(10, 0.0)
    sets.writer.wait()
    sets.poll()
    assert (sets.committed, checkpoint.steps(root)) == (-1, [])
    sets.close()


def test_orders(job):
    """A set by the clock is due where it was ordered; an order for a step that is past is a part that failed."""
    job.config.mtbf = 3600.0
    sets = make(job)
    assert not any(sets.due(step) for step in range(101))
    sets.ordered(17, 15)
    assert [step for step in range(101) if sets.due(step)] == [17]
    assert sets.following(3) == 17
    sets.save(17, held(job, 1.0))
    sets.ordered(30, 30)
    sets.writer.wait()
    assert [(part.step, part.whole) for part in sets.poll()] == [(17, True), (30, False)]
    assert not any(sets.due(step) for step in range(101))
    sets.close()


# ---- Young and Daly --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost", "mtbf"), [(0.01, 3600.0), (5.0, 86400.0), (60.0, 600.0)])
def test_interval_loses_least(cost, mtbf):
    """Beside the exact expectation for failures that come at random (Daly, eq. 20 without restart), within 2 %."""

    def expected(tau):  # seconds for a second of work
        return mtbf * (np.exp((tau + cost) / mtbf) - 1) / tau

    taus = np.geomspace(cost / 10, mtbf, 4000)
    assert expected(interval(cost, mtbf)) <= 1.02 * expected(taus).min()


def test_interval_at_the_ends():
    assert interval(2.0, 100.0) == 18.0
    assert interval(0.0, 100.0) == 0.0
    assert interval(50.0, 100.0) == interval(1e6, 100.0) == 50.0


def test_cadence():
    """A first set soon; then by its cost; none while one is on its way; each set counts anew."""
    now = [0.0]
    cadence = CheckpointInterval(200.0, lambda: now[0])
    assert [cadence.step() for _ in range(FIRST_STEPS)] == [False] * (FIRST_STEPS - 1) + [True]
    cadence.ordered()
    now[0] = 1000.0
    assert not cadence.step()  # still being written
    cadence.settled(1.0)  # sqrt(2 x 1 x 200) - 1 = 19 seconds of training after 1 second
    assert cadence.step()
    cadence.ordered()
    cadence.settled(1.0)
    now[0] = 1019.9
    assert not cadence.step()
    now[0] = 1020.0
    assert cadence.step()
    cadence.ordered()
    cadence.settled(4.0)  # 40 - 4, after 4
    now[0] = 1059.9
    assert not cadence.step()
    now[0] = 1060.0
    assert cadence.step()


def test_first_set_of_slow_steps():
    now = [5.0]
    cadence = CheckpointInterval(200.0, lambda: now[0])
    assert not cadence.step()
    now[0] += FIRST_SECONDS
    assert cadence.step()

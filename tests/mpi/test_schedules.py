"""The same bits with every schedule: any p (the suites run on 1, 2, 3, 4, 5 and 8 ranks), m and number of chunks."""

import pytest
from conftest import chessboard
from reference import alone

import ringtmp
from ringtmp.schedule.registry import SCHEDULES, plan_names

pytestmark = pytest.mark.mpi

# 24 layers: enough for 8 ranks with 3 chunks each. Odd widths and a batch of 17: the last micro-batches are short.
DEEP = {
    "model": "mlp:11-9-7x11-5x11-3,activation=tanh",
    "data": "synthetic:samples=90,features=11,classes=3,seed=4",
    "batch_size": 17,
    "steps": 4,
    "eval_every": 3,
    "lr": 0.01,
    "lr_schedule": "constant",
    "progress": False,
}
MICRO_BATCHES = (1, 3, 8, 16)
WAYS = [{"mode": "ready", "chunks": v} for v in (1, 2, 3)]
WAYS += [
    {"schedule": name, "chunks": v}
    for name in plan_names()
    for v in ((1, 2, 3) if SCHEDULES[name].takes_chunks else (1,))
]


def name(way: dict) -> str | None:
    return f"{way.get('schedule') or way['mode']}-v{way['chunks']}" if isinstance(way, dict) else None


@pytest.mark.parametrize(("way", "m"), chessboard(WAYS, MICRO_BATCHES), ids=name)
def test_same_numbers(comm, way, m):
    """On more than 3 ranks each way meets 1 and 8 micro-batches or 3 and 16: fewer than ranks, and not fewer."""
    result = ringtmp.train(comm=comm, **DEEP, **way, micro_batches=m)
    assert (result.step, result.sha256) == (4, alone(**DEEP, micro_batches=1).sha256)
    if comm.rank == 0:
        want = {(row["kind"], row["step"]): row["loss"] for row in alone(**DEEP, micro_batches=1).rows}
        assert {(row["kind"], row["step"]): row["loss"] for row in result.rows} == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("way", "sends"), chessboard(WAYS, ("standard", "synchronous")), ids=name)
def test_under_random_delays(comm, way, sends):
    """A random delay before every action, also with sends that block until received; fewer micro-batches than ranks."""
    for m in (3, 8) if way.get("mode") else (3,):
        result = ringtmp.train(
            comm=comm, **DEEP, **way, micro_batches=m, sends=sends, delay=0.0004 if comm.size < 4 else 0.0001
        )
        assert result.sha256 == alone(**DEEP, micro_batches=1).sha256


@pytest.mark.parametrize(("in_flight", "chunks"), chessboard((1, 2, 5), (1, 2)))
def test_few_in_flight(comm, in_flight, chunks):
    result = ringtmp.train(comm=comm, **DEEP, micro_batches=8, in_flight=in_flight, chunks=chunks)
    assert result.sha256 == alone(**DEEP, micro_batches=1).sha256


HOW = [{"recompute": True}, {"threads": 2}, {"clip_norm": 0.05}]


@pytest.mark.parametrize(
    ("how", "way"),
    chessboard(HOW, [WAYS[1], {"schedule": "interleaved", "chunks": 2}, {"schedule": "zb-h2", "chunks": 1}]),
    ids=str,
)
def test_with_recomputation_threads_and_norm(comm, way, how):
    one = alone(**DEEP, **how, micro_batches=1)
    assert ringtmp.train(comm=comm, **DEEP, **way, **how, micro_batches=8).sha256 == one.sha256
    assert (one.sha256 == alone(**DEEP, micro_batches=1).sha256) == ("clip_norm" not in how)


def test_paced(comm):
    """Emulated nodes of unequal speed whose actions vary: another timing, the same numbers."""
    speeds = ",".join(str(0.02 * (1 + r % 3)) for r in range(comm.size))
    result = ringtmp.train(comm=comm, **DEEP, micro_batches=8, node_speed=speeds, jitter=0.3)
    assert result.sha256 == alone(**DEEP, micro_batches=1).sha256

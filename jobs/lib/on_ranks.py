"""The program of the ranks of a launch: train run after run, or measure a link. Rank 0 prints one line of JSON.

Usage: python -m ringtmp.jobs.lib.on_ranks '{"runs": [{"trainer": "ring", "train": {...}, "skip": 5}, ...]}', alone or
under mpirun; or '{"link": true}' on 2 ranks or more. `ringtmp.jobs.lib.launch` starts it.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from ringtmp import Result


def steady_rate(result: "Result", batch_size: int, skip: int) -> float:
    """Samples a second from the end of step `skip` to that of the last step (rank 0); 0 if too few steps were made.

    Parameters
    ----------
    result : Result
        Result of a run.
    batch_size : int
        Samples of a step.
    skip : int
        Steps left out at the beginning, at least 1.
    """
    seconds = [row["seconds"] for row in result.rows if row["kind"] == "train"]
    if len(seconds) <= skip or not skip:
        return 0.0
    return (len(seconds) - skip) * batch_size / (seconds[-1] - seconds[skip - 1])


def train(asked: dict[str, Any]) -> dict[str, Any]:
    """Train one run; its rate, losses and times (rank 0; empty elsewhere). Collective over the world.

    Parameters
    ----------
    asked : dict
        `trainer` ("ring" or "ps"), `train` (settings of the run), `skip` (steps left out of the rate; default 0).

    Returns
    -------
    dict
        `samples_per_s`; `seconds`, at the end of each step; `losses`; and by rank `parts` (seconds by part of the wall
        time), `roles`, `late` (share by which emulated computing took too long), `memory`, `expected` (bytes);
        `moves`, the steps at which layers moved between ranks.
    """
    from mpi4py import MPI

    import ringtmp
    from ringtmp import ps

    trainer = ps.train if asked.get("trainer") == "ps" else ringtmp.train
    with noted_moves() as moves:
        result = trainer(progress=False, **asked["train"])
    if MPI.COMM_WORLD.rank:
        return {}
    rows = [row for row in result.rows if row["kind"] == "train"]
    return {
        "samples_per_s": steady_rate(result, asked["train"].get("batch_size", 0), asked.get("skip", 0)),
        "seconds": [row["seconds"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "parts": [{key: part / 1e9 for key, part in row["parts"].items()} for row in result.ranks],
        "roles": [row.get("role", "ring") for row in result.ranks],
        "late": [row.get("late", 0.0) for row in result.ranks],
        "memory": [row["memory"] for row in result.ranks],
        "expected": [row.get("expected", 0) for row in result.ranks],
        "moves": moves,
    }


def waited(result: dict[str, Any]) -> float:
    """Share of their wall time that workers (ranks that do not only serve) wait; `result` is an answer of `train`."""
    parts = [part for part, role in zip(result["parts"], result["roles"], strict=True) if role != "server"]
    return sum(part["wait"] for part in parts) / sum(sum(part.values()) for part in parts)


@contextmanager
def noted_moves() -> Iterator[list[int]]:
    """List of the steps at which this rank's layers move within the block.

    Traces do not hold this: a `balance` event stands for every order, also for one that moves no layer.
    """
    from unittest.mock import patch

    from ringtmp.ring.rebalance import Rebalancer

    move, steps = Rebalancer._move, []

    def note(rebalancer: Rebalancer, before: Any, after: Any, step: int) -> None:
        steps.append(step)
        move(rebalancer, before, after, step)

    with patch.object(Rebalancer, "_move", note):
        yield steps


def measure_link(comm: "Intracomm") -> dict[str, float]:
    """Seconds of half a median round trip of 1 KB, and bytes a second each way while both directions are busy.

    Parameters
    ----------
    comm : Intracomm
        At least 2 ranks, of which 0 and 1 exchange messages. Collective; empty except on rank 0.
    """
    trips: list[float] = []
    streams: list[float] = []
    for size, times, spans in ((1 << 22, 6, streams), (1 << 10, 300, trips)):  # first what opens TCP's window
        out, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        for _ in range(times if comm.rank < 2 else 0):
            began = time.perf_counter()
            if spans is streams:
                comm.Sendrecv(out, 1 - comm.rank, recvbuf=back, source=1 - comm.rank)
            elif comm.rank == 0:
                comm.Send(out, 1)
                comm.Recv(back, 1)
            else:
                comm.Recv(back, 0)
                comm.Send(out, 0)
            spans.append(time.perf_counter() - began)
    if comm.rank:
        return {}
    return {"latency": float(np.median(trips)) / 2, "bandwidth": (1 << 22) / float(np.median(streams[1:]))}


def main(asked: dict[str, Any]) -> int:
    """Train or measure as `asked` says, and print the answer; return the exit status. Collective over the world."""
    if asked.get("memory_limit"):  # before anything large is loaded
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (asked["memory_limit"], asked["memory_limit"]))
    from mpi4py import MPI

    from ringtmp import UserError

    try:
        found: Any = measure_link(MPI.COMM_WORLD) if asked.get("link") else [train(each) for each in asked["runs"]]
    except UserError as error:
        if MPI.COMM_WORLD.rank == 0:
            print(f"REFUSED {error}", flush=True)
        return 2
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

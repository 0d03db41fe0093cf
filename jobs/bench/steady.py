"""One training run of ours in steady state: prints samples/s and where the time went, as JSON.

Usage: python -m jobs.bench.steady '{"train": {...}, "skip": 5}', alone or under mpirun.
"""

import json
import sys
from typing import Any

from mpi4py import MPI

import ringtmp


def steady_rate(result: "ringtmp.Result", batch_size: int, skip: int) -> float:
    """Samples/s between the end of step `skip` and that of the last step (rank 0)."""
    seconds = [row["seconds"] for row in result.rows if row["kind"] == "train"]
    return (len(seconds) - skip) * batch_size / (seconds[-1] - seconds[skip - 1])


def main(settings: dict[str, Any]) -> None:
    """Train and print. Collective over the world."""
    train = settings["train"]
    result = ringtmp.train(progress=False, **train)
    if MPI.COMM_WORLD.rank == 0:
        rate = steady_rate(result, train["batch_size"], settings["skip"])
        parts = [{key: part / 1e9 for key, part in row["parts"].items()} for row in result.ranks]
        print(json.dumps({"samples_per_s": rate, "parts": parts}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

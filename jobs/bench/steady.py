"""Training runs of ours in steady state: prints samples/s and where the time went, as JSON.

Usage: python -m jobs.bench.steady '{"train": {...}, "skip": 5}', alone or under mpirun; or `"runs": [{...}, ...]`,
several such one after the other in one launch. `"trainer": "ps"` trains with the parameter server instead of the ring.
"""

import json
import sys
from typing import Any

from mpi4py import MPI

import ps
import ringtmp


def steady_rate(result: "ringtmp.Result", batch_size: int, skip: int) -> float:
    """Samples/s between the end of step `skip` and that of the last step (rank 0)."""
    seconds = [row["seconds"] for row in result.rows if row["kind"] == "train"]
    return (len(seconds) - skip) * batch_size / (seconds[-1] - seconds[skip - 1])


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """One run: samples/s, and seconds of each rank by part (rank 0). Collective over the world."""
    train = settings["train"]
    trainer = ps.train if settings.get("trainer") == "ps" else ringtmp.train
    result = trainer(progress=False, **train)
    if MPI.COMM_WORLD.rank:
        return {}
    parts = [{key: part / 1e9 for key, part in row["parts"].items()} for row in result.ranks]
    roles = [row.get("role", "ring") for row in result.ranks]
    rate = steady_rate(result, train["batch_size"], settings["skip"])
    return {"samples_per_s": rate, "parts": parts, "roles": roles}


def main(settings: dict[str, Any]) -> None:
    """Train and print. Collective over the world."""
    several = "runs" in settings
    results = [run(each) for each in (settings["runs"] if several else [settings])]
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(results if several else results[0]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""The same run with the trace on and off by turns, in one job: prints both lists of samples/s as JSON.

Usage: python -m ringtmp.jobs.bench.tracing '{"train": {...}, "skip": 5, "pairs": 15}', alone or under mpirun.
"""

import json
import shutil
import sys
import tempfile
from typing import Any

from mpi4py import MPI

import ringtmp
from ringtmp.jobs.lib.compare import alternate
from ringtmp.jobs.lib.on_ranks import steady_rate


def main(settings: dict[str, Any]) -> None:
    """Train with and without traces as `settings` says, and print the rates."""
    comm, train = MPI.COMM_WORLD, settings["train"]
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)

    def rate(trace: str) -> float:
        result = ringtmp.train(comm=comm, progress=False, out=folder, trace=trace, checkpoint_every=0, **train)
        return steady_rate(result, train["batch_size"], settings["skip"]) if comm.rank == 0 else 0.0

    rate("on")
    on, off = alternate(lambda: rate("on"), lambda: rate("off"), settings["pairs"])
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder)
        print(json.dumps({"on": on, "off": off}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

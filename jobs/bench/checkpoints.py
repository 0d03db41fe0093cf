"""Cost of checkpoints: the same run with a set about every second and with none, by turns, in one job.

Usage: python -m ringtmp.jobs.bench.checkpoints [--pairs 5]. About 20 MB of weights and moments on each rank. On 2 ranks
of 2 cores there is no core for the thread that writes; on 1 rank there is. The window that is timed begins half a
second before the first set and ends half a second after the last one, so that it contains their whole cost; for
comparison also with each set awaited when it is due, like without a thread.
"""

import argparse
import json
import shutil
import sys
import tempfile
from typing import Any

from mpi4py import MPI

import ringtmp
from ringtmp.checkpoint.manager import CheckpointManager
from ringtmp.jobs.lib.compare import alternate, compared
from ringtmp.jobs.lib.launch import run_json
from ringtmp.jobs.lib.on_ranks import steady_rate
from ringtmp.jobs.lib.store import publish_benchmark

AIM = 0.965
SETS, SECONDS = 6, 1.0  # sets in a run, and between two of them
TRAIN = {
    "data": "synthetic:samples=4096,features=64,classes=10",
    "batch_size": 128,
    "micro_batches": 8,
    "optimizer": "adamw",
    "eval_every": 0,
}
CASES = {
    "1 rank, 6 layers of 512, 19 MB": (1, "mlp:64-512x7-10"),
    "2 ranks, 12 layers of 512, 2 x 19 MB": (2, "mlp:64-512x13-10"),
}
WAYS = ("beside", "awaited")


def measure(settings: dict[str, Any]) -> None:
    """Train with and without checkpoints as `settings` says, and print all rates as JSON. Collective over the world."""
    comm, train = MPI.COMM_WORLD, settings["train"]
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    costs: list[float] = []

    def rate(every: int, steps: int, skip: int) -> float:
        result = ringtmp.train(comm=comm, progress=False, out=folder, steps=steps, checkpoint_every=every, **train)
        if comm.rank:
            return 0.0
        shutil.rmtree(result.folder or folder)
        costs.append(max(row["parts"]["checkpoint"] for row in result.ranks) / 1e6)
        return steady_rate(result, train["batch_size"], skip)

    rate(0, 20, 5)
    every = round(SECONDS * comm.bcast(rate(0, 60, 20)) / train["batch_size"])
    skip, steps = every // 2, SETS * every + every // 2
    whole, found = CheckpointManager.hand_over, {}

    def awaited(self: CheckpointManager, *arguments: Any) -> None:
        whole(self, *arguments)
        self.writer.wait()

    for way in WAYS:
        CheckpointManager.hand_over = awaited if way == "awaited" else whole  # type: ignore[method-assign,assignment]
        on, off = alternate(lambda: rate(every, steps, skip), lambda: rate(0, steps, skip), settings["pairs"])
        found[way] = {"on": on, "off": off}
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"every": every, "ways": found}))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs with sets, and without")
    arguments = parser.parse_args()
    rows, every = [], {}
    for case, (ranks, model) in CASES.items():
        found = run_json(
            "ringtmp.jobs.bench.checkpoints", {"train": TRAIN | {"model": model}, "pairs": arguments.pairs}, ranks
        )
        every[case] = found["every"]
        for way in WAYS:
            rates, aim = found["ways"][way], AIM if way == "beside" else None
            rows.append(compared(f"{case}: a set a second, {way}", rates["on"], rates["off"], "samples/s", aim))
    publish_benchmark(
        "checkpoints",
        rows,
        "Training with checkpoints beside training without",
        pairs=arguments.pairs,
        steps_between_sets=every,
        peer="the same run without checkpoints",
    )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        measure(json.loads(sys.argv[1]))
    else:
        main()

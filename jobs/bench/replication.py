"""Cost of replication while nothing fails: the same run with copies of each update and without, by turns.

Usage: python -m ringtmp.jobs.bench.replication [--pairs 9] [--seconds 4] [--quick]. Steps a second with `--state-copies
1` beside `off`, for a batch that is small and one that is large beside the weights: on one node, where no copy travels
and a rank only writes its new state beside the old one; on nodes with separate memory, where each rank's state goes to
its neighbour after every update; and on emulated nodes, which compute by sleeping, so that a core is free for copying.
On 2 cores 2 ranks that compute leave none.

Memory: bytes of the nodes' memory beside the state (weights and moments) of their ranks, taken while it trains. The
state that a rank trains lies there itself, so a ratio of 1 is without replication. And the most resident
memory of a rank, with and without.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI

import ringtmp
from ringtmp.jobs.lib.compare import alternate, compared, measured
from ringtmp.jobs.lib.launch import run_json
from ringtmp.jobs.lib.on_ranks import steady_rate
from ringtmp.jobs.lib.store import publish_benchmark

AIM, AIM_MEMORY = 0.965, 2.0
MODEL = "mlp:64-512x7-10"  # 1.6 million parameters, 20 MB with the moments of AdamW
TRAIN = {
    "data": "synthetic:samples=4096,features=64,classes=10",
    "model": MODEL,
    "optimizer": "adamw",
    "eval_every": 0,
    "checkpoint_every": 0,
}
STATE = 12  # bytes of a parameter and its two moments
PLACES = {
    "2 ranks on one node": (2, "", None),
    "2 ranks on 2 nodes": (2, "a,b", None),
    "4 emulated nodes": (4, "a,b,c,d", "3"),
}
BATCHES = {"batch 32": (32, 8), "batch 512": (512, 8)}
QUICK = ("2 ranks on 2 nodes", "batch 32")


class Weighed:
    """Measures the most bytes below the node memory `root` during a run (rank 0)."""

    def __init__(self, root: Path) -> None:
        self.root, self.bytes, self._over = root, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Weighed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            with suppress(OSError):  # files come and go
                self.bytes = max(self.bytes, sum(path.stat().st_size for path in self.root.glob("*/*/*.[ab]")))


def measure(settings: dict[str, Any]) -> None:
    """Train with and without copies as `settings` says; print rates and sizes as JSON. Collective over the world."""
    comm, train = MPI.COMM_WORLD, settings["train"]
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)

    def run(replicate: int, steps: int, skip: int) -> tuple[float, float]:
        """Steps a second, and the most bytes that a rank has had."""
        result = ringtmp.train(comm=comm, progress=False, out=folder, steps=steps, state_copies=replicate, **train)
        if comm.rank:
            return 0.0, 0.0
        shutil.rmtree(result.folder or folder)
        return steady_rate(result, 1, skip), float(max(row["memory"] for row in result.ranks))

    # Peaks never fall again, so the run without copies is weighed first.
    first, bare = run(0, 40, 20)
    with Weighed(Path(os.environ["RINGTMP_NODE_MEMORY"])) as weighed:
        _, copied = run(1, 40, 20)
    skip = 20
    steps = skip + max(20, round(settings["seconds"] * comm.bcast(first)))
    on, off = alternate(lambda: run(1, steps, skip)[0], lambda: run(0, steps, skip)[0], settings["pairs"])
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"on": on, "off": off, "bytes": weighed.bytes, "peak": [copied, bare], "steps": steps}))


@contextmanager
def surroundings(nodes: str) -> Iterator[None]:
    """Set the node memory for this benchmark, and the names `nodes` of the ranks' nodes, separated by commas."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="replication-", dir=shared) as root:
        os.environ.update(RINGTMP_NODE_MEMORY=f"{root}/memory", RINGTMP_NODES=nodes)
        yield


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="runs with copies, and without [9]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run [4]")
    parser.add_argument("--quick", action="store_true", help="one case, two pairs; prints, writes nothing")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    pairs, seconds = (2, 1.0) if options.quick else (options.pairs, options.seconds)
    for place, (ranks, nodes, pace) in PLACES.items():
        if options.quick and place != QUICK[0]:
            continue
        for size, (batch, pieces) in BATCHES.items():
            if options.quick and size != QUICK[1]:
                continue
            train = TRAIN | {"batch_size": batch, "micro_batches": pieces} | ({"node_speed": pace} if pace else {})
            with surroundings(nodes):
                settings = {"train": train, "pairs": pairs, "seconds": seconds}
                found = run_json("ringtmp.jobs.bench.replication", settings, ranks)
            rows.append(compared(f"{place}, {size}", found["on"], found["off"], "steps/s", AIM))
            print(f"{place}, {size}: {rows[-1]['ratio']:.1%} of the rate without", flush=True)
        of_state = found["bytes"] / (STATE * parameters())
        copied, bare = ([peak / 2**20] for peak in found["peak"])
        rows.append(measured(f"{place}: nodes' memory", [of_state], "x state", AIM_MEMORY, less_is_better=True))
        rows.append(compared(f"{place}: peak memory of a rank", copied, bare, "MiB", None, less_is_better=True))
    if options.quick:
        print(json.dumps(rows, indent=1))
        return
    publish_benchmark(
        "replication",
        rows,
        "Training with copies of every update beside training without",
        pairs=pairs,
        seconds_of_a_run=seconds,
        state_bytes=STATE * parameters(),
        peer="the same run with --state-copies off",
        emulated="4 emulated nodes: computing is slept, copies are real",
    )


def parameters() -> int:
    """Of the model."""
    from ringtmp.nn.model import build_model

    return sum(layer.count for layer in build_model(MODEL, "auto", (64,), "classes", 10).layers)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        measure(json.loads(sys.argv[1]))
    else:
        main()

"""Samples/s beside PyTorch: one process on one thread, and two ranks against its 1F1B pipelining over Gloo.

Usage: make bench-torch [ARGS="--pairs 9"]. Both sides train the same dense networks on random numbers in memory, in
float32, eager, with fused optimizers; a run of each by turns, in separate processes, the first steps left out.
"""

import argparse
from typing import Any

from ringtmp.jobs.lib.compare import alternate, compared
from ringtmp.jobs.lib.launch import launch, run_json
from ringtmp.jobs.lib.store import publish_benchmark

# name: widths, batch, micro-batches, optimizer, ranks, steps, aim
CASES: dict[str, tuple[list[int], int, int, str, int, int, float | None]] = {
    "1 rank, 8 x 1024, batch 256 in 1": ([1024] * 9 + [10], 256, 1, "momentum", 1, 40, 1.8),
    "1 rank, 8 x 1024, batch 256 in 8": ([1024] * 9 + [10], 256, 8, "momentum", 1, 40, 1.8),
    "1 rank, default job (8 x 256, batch 64 in 8)": ([64] + [256] * 8 + [10], 64, 8, "adamw", 1, 400, 1.8),
    "1 rank, 8 x 256, batch 64 in 1": ([64] + [256] * 8 + [10], 64, 1, "adamw", 1, 400, 1.8),
    "2 ranks, 8 x 1024, batch 512 in 8": ([1024] * 9 + [10], 512, 8, "momentum", 2, 40, 2.0),
    "2 ranks, default job": ([64] + [256] * 8 + [10], 64, 8, "adamw", 2, 400, 2.0),
}


def main() -> None:
    """Measure all cases and publish them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=7, help="alternating pairs of runs for each case [7]")
    arguments.add_argument("--only", default="", help="cases whose name holds this text")
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for case, (widths, batch, m, optimizer, ranks, steps, aim) in CASES.items():
        if options.only not in case:
            continue
        model = "mlp:" + "-".join(map(str, widths))
        data = f"synthetic:samples={10 * batch},features={widths[0]},classes={widths[-1]}"
        train = {
            "model": model,
            "data": data,
            "batch_size": batch,
            "micro_batches": m,
            "optimizer": optimizer,
            "steps": steps,
            "eval_every": 0,
            "lr": 1e-3,
            "trace": "off",
        }
        skip = steps // 8
        peer = {
            "widths": widths,
            "batch_size": batch,
            "micro_batches": m,
            "optimizer": optimizer,
            "steps": steps,
            "skip": skip,
            "ranks": ranks,
        }

        def ours(train: dict[str, Any] = train, skip: int = skip, ranks: int = ranks) -> float:
            [found] = launch(ranks, [{"trainer": "ring", "train": train, "skip": skip}])
            return found["samples_per_s"]

        def theirs(peer: dict[str, Any] = peer) -> float:
            return run_json("ringtmp.jobs.bench.torch_job", peer)["samples_per_s"]

        mine, others = alternate(ours, theirs, options.pairs)
        rows.append(compared(case, mine, others, "samples/s", aim))
        print(f"{case}: {rows[-1]['ratio']:.2f}", flush=True)
    publish_benchmark(
        "torch_peer", rows, "RingTMP beside PyTorch", peer="torch==2.13.0 (CPU build, MKL), eager, fused optimizers"
    )


if __name__ == "__main__":
    main()

"""At least 200 SIGKILLs: every rank in every phase on 3, 4 and 5 ranks, on one node and on nodes of their own.

Usage: make soak, or python tests/soak/kills.py [--seeds 1] [--ranks 3,4,5] [--most 3]. About 20 kills follow each other
in each supervised run. After each run: no hang (time limits), at most one step repeated each time, and the weights of
the undisturbed run to the bit. Prints a line for each kill, and writes jobs/experiments/results/soak.h5.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ringtmp.jobs.lib.launch import MPIRUN, ROOT
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.jobs.lib.store import places, write
from ringtmp.jobs.lib.strikes import Case, Strike, cases, kills

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from launching import job_flags

RESULT, _ = places("soak")
PER_RUN, EVERY = 20, 8  # kills of a run, and steps from one to the next
STEPS = PER_RUN * EVERY + 40
FLAGS = job_flags(STEPS, "--micro-batches", "4")


def undisturbed() -> str:
    """SHA-256 of the weights of a run to which nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        words = [MPIRUN, "-n", "2", sys.executable, "-m", "ringtmp.train", *FLAGS]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    found = re.search("weights sha256 ([0-9a-f]{64})", done.stdout)
    if not found:
        raise SystemExit(done.stdout + done.stderr)
    return found[1]


def parts(which: list[Case]) -> list[list[Case]]:
    """The cases in runs of about 20 kills."""
    runs = max(1, round(len(which) / PER_RUN))
    return [which[at::runs] for at in range(runs)]


def soak(ranks: int, apart: bool, seed: int, which: list[Case], sha256: str) -> tuple[list[Strike], str]:
    """One supervised run; its kills, and what is wrong with it (nothing: an empty text)."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["RINGTMP_NODE_MEMORY"] = str(folder / "memory")
    struck: list[Strike] = []

    def tell(one: Strike) -> None:
        struck.append(one)
        took = f"{one.seconds:6.2f} s" if one.seconds else "   then"
        where = "nodes of their own" if apart else "one node"
        print(f"{ranks} ranks, {where}: rank {one.rank} {one.phase:<10} step {one.step:3d} {took}", flush=True)

    try:
        kills(folder, FLAGS, STEPS, sha256, ranks, apart, which, tell)
    except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        text = f"{type(error).__name__}: {error}"
        print(f"FAILED with seed {seed}, in {folder}: {text}", flush=True)
        return struck, text.partition("\n")[0]
    shutil.rmtree(folder)
    return struck, ""


def main() -> int:
    """All of them; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="of the order: every case again with each [1]")
    parser.add_argument("--ranks", default="3,4,5", help="numbers of ranks [3,4,5]")
    parser.add_argument("--most", type=int, help="cases of each number of ranks; nothing is written")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    began, sha256, rows = time.time(), undisturbed(), []
    for seed in range(options.seeds):
        for ranks in map(int, options.ranks.split(",")):
            for apart in (True, False):
                for which in parts(cases(ranks, apart, 100 * seed + ranks, options.most)):
                    struck, wrong = soak(ranks, apart, seed, which, sha256)
                    rows.append(
                        {
                            "ranks": ranks,
                            "nodes": ranks if apart else 1,
                            "seed": seed,
                            "kills": len(struck),
                            "wrong": wrong,
                            "each": [[one.rank, one.phase, one.step, round(one.seconds, 3)] for one in struck],
                        }
                    )
    every = [seconds for row in rows for *_, seconds in row["each"] if seconds]
    quartiles = [float(value) for value in np.percentile(every, [25, 50, 75, 100])] if every else []
    total, wrong = sum(row["kills"] for row in rows), [row for row in rows if row["wrong"]]
    summary = {
        "kills": total,
        "runs": len(rows),
        "failed": len(wrong),
        "made_again_at_most": 1,
        "seconds_quartiles": quartiles,
    }
    print(
        f"{total} kills in {len(rows)} runs, {time.time() - began:.0f} s: {len(wrong)} runs failed; until the first "
        f"step after a kill (quartiles, most) {', '.join(f'{value:.2f}' for value in quartiles)} s"
    )
    for row in wrong:
        print(f"  {row['ranks']} ranks on {row['nodes']} nodes, seed {row['seed']}: {row['wrong']}")
    if options.most is None:
        write({"provenance": provenance(seconds=round(time.time() - began)), "summary": summary, "rows": rows}, RESULT)
        print(f"written to {RESULT.relative_to(ROOT)}")
    print(json.dumps(summary))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

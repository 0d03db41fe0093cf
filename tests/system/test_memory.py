"""Memory for real: what ranks were expected to take beside what they took, and a cap that the system enforces."""

import json
import re

import pytest

SCRIPT = """
import json, resource, sys
cap = int(sys.argv[1])
if cap:
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
import ringtmp
from mpi4py import MPI
try:
    result = ringtmp.train(**json.loads(sys.argv[2]), progress=False)
except ringtmp.UserError as error:
    if MPI.COMM_WORLD.rank == 0:
        print("REFUSED", error, flush=True)
    sys.exit(2)
if MPI.COMM_WORLD.rank == 0:
    print("RANKS", json.dumps([[rank["memory"], rank["expected"]] for rank in result.ranks]), flush=True)
"""
SETTINGS = {
    "model": "mlp:64-1536x9-10",
    "batch_size": 32,
    "micro_batches": 4,
    "steps": 3,
    "eval_every": 0,
    "out": "runs",
}


def run(launch, ranks, cap=0, **more):
    return launch(ranks, "-c", SCRIPT, str(cap), json.dumps(SETTINGS | more))


@pytest.mark.parametrize(
    ("ranks", "more"), [(1, {}), (2, {"recompute": True}), (2, {"checkpoint_every": 0, "optimizer": "momentum"})]
)
def test_expected_and_taken(launch, ranks, more):
    """Within 5 %, on the safe side or not."""
    done = run(launch, ranks, **more)
    assert done.returncode == 0, done.stderr
    for taken, expected in json.loads(re.search(r"RANKS (.*)", done.stdout)[1]):
        assert abs(expected / taken - 1) < 0.05, (taken, expected)


def test_a_cap_of_the_system(launch, tmp_path):
    """Two ranks fit where one is refused, at once and with the numbers; nothing is left behind."""
    cap = 640 << 20
    done = run(launch, 1, cap)
    assert done.returncode == 2, done.stdout + done.stderr
    words = r"REFUSED memory_limit: rank 0 would take .* \(RLIMIT_DATA \(ulimit -d\)\); what would fit: 2 ranks"
    assert re.search(words, done.stdout), done.stdout
    assert not (tmp_path / "runs").exists()
    done = run(launch, 2, cap)
    assert done.returncode == 0, done.stdout + done.stderr

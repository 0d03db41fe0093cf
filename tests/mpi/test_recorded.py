"""The weights of recorded configurations: no refactoring may change a bit of them.

`RINGTMP_RECORD=1 mpirun -n 3 python -m mpi4py -m pytest --with-mpi tests/mpi/test_recorded.py` records anew, for one
number of ranks, what a deliberate change of the results requires.
"""

import json
import os
from pathlib import Path

import pytest
from mpi4py import MPI
from recorded_configurations import COMMON, CONFIGURATIONS, Configuration

import ringtmp
from ringtmp import ps

pytestmark = pytest.mark.mpi

SIZE = MPI.COMM_WORLD.size
DIGESTS = Path(__file__).parent.parent / "support" / "recorded_digests.json"
RECORD = "RINGTMP_RECORD" in os.environ
HERE = [each for each in CONFIGURATIONS if SIZE in each.ranks]
if SIZE >= 5 and not RECORD:  # where a run costs most, each half on one number of ranks
    HERE = HERE[SIZE == 5 :: 2]


def key_of(each: Configuration) -> str:
    """Its name, and the number of ranks if the weights depend on that."""
    return each.name if each.invariant else f"{each.name} on {SIZE}"


@pytest.mark.parametrize("each", HERE, ids=lambda each: each.name)
def test_weights_are_as_recorded(comm, shared_path, each):
    text = shared_path / "text.txt"
    if comm.rank == 0:
        text.write_text("the quick brown fox jumps over the lazy dog. " * 12)
    comm.Barrier()
    settings = COMMON | each.settings
    settings["data"] = settings["data"].format(text=text)
    train = ps.train if each.program == "ps" else ringtmp.train
    sha256 = train(comm=comm, **settings).sha256
    assert len(set(comm.allgather(sha256))) == 1
    if RECORD:
        if comm.rank == 0:
            known = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
            known[key_of(each)] = sha256
            DIGESTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        comm.Barrier()
    assert json.loads(DIGESTS.read_text())[key_of(each)] == sha256

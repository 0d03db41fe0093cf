"""Each stored format states its version; another one gets a line that names the file, and both versions."""

import hashlib
import json
import re

import h5py
import pytest

import ringtmp
from ringtmp.analysis.reader import open_run
from ringtmp.resilience.node_memory import NodeMemory
from ringtmp.run.inference import TrainedNetwork

SMALL = {"model": "mlp:6-3", "data": "synthetic:samples=60,features=6,classes=3", "batch_size": 8, "micro_batches": 2}


@pytest.fixture
def run(tmp_path):
    """The folder of a run of 4 steps."""
    ringtmp.train(**SMALL, steps=4, out=str(tmp_path), name="run", progress=False)
    return tmp_path / "run"


def refused(use, path, expected, got):
    """`use` raises the one line about `path`."""
    with pytest.raises(ringtmp.UserError) as error:
        use()
    assert re.search(
        rf"^(resume: |checkpoint: )?{re.escape(str(path))}: expected format {expected}, got {got}$", str(error.value)
    )


USES = {
    "resume": lambda run: ringtmp.train(resume=str(run), steps=8, progress=False),
    "inference": lambda run: TrainedNetwork(str(run)),
    "analysis": open_run,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("found", ["ringtmp-run-0", None])
def test_run_folder(run, use, found):
    path = run / "format"
    assert path.read_text() == "ringtmp-run-1\n"
    path.write_text(found) if found else path.unlink()
    refused(lambda: USES[use](run), path, "ringtmp-run-1", found or "none")


@pytest.mark.parametrize("use", ["resume", "inference"])
@pytest.mark.parametrize("found", ["ringtmp-checkpoint-2", None])
def test_checkpoint(run, use, found):
    """A marker that is whole, of another version: not taken for a damaged one, which would be passed over."""
    path = run / "checkpoints" / "step-00000004" / "COMMIT.json"
    body = json.loads(path.read_text())["body"]
    assert body.pop("format") == "ringtmp-checkpoint-1"
    with h5py.File(path.parent / "index.h5") as file:
        assert file.attrs["format"] == "ringtmp-checkpoint-1"
    body |= {"format": found} if found else {}
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": sha256, "body": body}))
    refused(lambda: USES[use](run), path, "ringtmp-checkpoint-1", found or "none")


@pytest.mark.parametrize("found", ["ringtmp-trace-9", None])
def test_trace(run, found):
    path = run / "traces" / "000" / "rank-0000.h5"
    with h5py.File(path, "r+") as file:
        del file.attrs["format"]
        if found:
            file.attrs["format"] = found
    refused(lambda: open_run(run).events(), path, r"ringtmp-trace-\d", found or "none")


def test_node_memory(tmp_path, monkeypatch):
    """Copies of another version are a note, since the run can go on from a checkpoint."""
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path))
    memory = NodeMemory("run", "here")
    memory.make()
    path = memory.folder / "0000000000.0000.0000.a"
    path.write_bytes(b"RINGTMP0" + bytes(100))
    assert memory.inventory() == ([], [f"{path}: expected format RINGTMP1, got RINGTMP0"])
    path.write_bytes(b"WHATEVER" + bytes(100))
    assert memory.inventory() == ([], [f"{path}: not a replica of a stage"])

"""Checkpoint sets: round trip, two kept, and no damaged file ever loads."""

import json
import shutil

import h5py
import numpy as np
import pytest

import ringtmp
from ringtmp.checkpoint import format as checkpoint
from ringtmp.checkpoint.format import LayerRecord
from ringtmp.errors import UserError


def records(rank, step):
    rng = np.random.default_rng([rank, step])
    for place in (2 * rank, 2 * rank + 1):
        arrays = {"weight": rng.standard_normal((300, 7)).astype(np.float32), "bias": rng.standard_normal(7)}
        yield LayerRecord(f"{place:03d}-dense", {"type": "dense", "units": 7}, arrays, {"m": arrays, "v": arrays})


def write_set(root, step, ranks=2):
    for rank in range(ranks):
        checkpoint.write_part(root, step, rank, records(rank, step))
    checkpoint.commit(root, step, range(ranks), {"config": {}})


def loaded(root, step, names):
    marker = checkpoint.read_marker(root, step)
    checkpoint.verify(root, marker)
    return list(checkpoint.read_layers(root, marker, names))


def test_round_trip(tmp_path):
    """Layers are found by name, in any order, whichever rank wrote them."""
    write_set(tmp_path, 5, ranks=3)
    want = {record.name: record for rank in range(3) for record in records(rank, 5)}
    got = loaded(tmp_path, 5, ["004-dense", "001-dense"])
    assert [record.name for record in got] == ["004-dense", "001-dense"]
    for record in got:
        other = want[record.name]
        assert record.table == other.table
        for mine, theirs in [(record.parameters, other.parameters), *((record.slots[s], other.slots[s]) for s in "mv")]:
            assert set(mine) == {"weight", "bias"}
            for key in mine:
                np.testing.assert_array_equal(mine[key], theirs[key])
                assert mine[key].dtype == theirs[key].dtype


def test_index_joins_the_files(tmp_path):
    """One file opens them all, also after the folder was moved."""
    write_set(tmp_path / "a", 5)
    shutil.move(tmp_path / "a", tmp_path / "b")
    with h5py.File(tmp_path / "b" / "step-00000005" / "index.h5") as file:
        assert list(file["layers"]) == [f"{n:03d}-dense" for n in range(4)]
        assert file["layers/003-dense/slots/m/weight"].shape == (300, 7)


def test_two_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        write_set(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [3, 4]
    checkpoint.write_part(tmp_path, 5, 0, records(0, 5))  # not committed: nothing is dropped for it
    assert checkpoint.steps(tmp_path) == [3, 4, 5]


def test_leftovers_are_cleared_away(tmp_path):
    """What was never committed goes with the next set that is; newer ones (passed over by a resume) do not count."""
    write_set(tmp_path, 9)
    write_set(tmp_path, 1)
    checkpoint.write_part(tmp_path, 2, 0, records(0, 2))
    for step in (3, 4):
        write_set(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [3, 4, 9]


def test_unfinished_set_does_not_count(tmp_path):
    checkpoint.write_part(tmp_path, 5, 0, records(0, 5))
    with pytest.raises(checkpoint.DamagedError, match="never completed"):
        checkpoint.read_marker(tmp_path, 5)


def test_unknown_layer(tmp_path):
    write_set(tmp_path, 5)
    with pytest.raises(UserError, match="no layer '009-dense'; it holds 000-dense"):
        loaded(tmp_path, 5, ["009-dense"])


def test_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield from records(0, 5)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write_part(tmp_path, 5, 0, broken())
    assert list((tmp_path / "step-00000005").iterdir()) == []


# ---- damage ----------------------------------------------------------------------------------------------------------

SMALL = {
    "model": "mlp:6-5-3",
    "data": "synthetic:samples=60,features=6,classes=3",
    "batch_size": 8,
    "micro_batches": 2,
    "lr_schedule": "constant",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with sets at steps 4 and 6."""
    out = tmp_path_factory.mktemp("runs")
    result = ringtmp.train(**SMALL, steps=6, checkpoint_every=4, out=str(out), name="run", progress=False)
    return checkpoint.set_folder(out / "run" / "checkpoints", 6), result


FILES = ("rank-0000.h5", "index.h5", "COMMIT.json")
DAMAGE = {
    "cut to nothing": lambda b: b"",
    "cut in the middle": lambda b: b[: len(b) // 2],
    "cut by a byte": lambda b: b[:-1],
    "missing": None,
    "first byte flipped": lambda b: bytes([b[0] ^ 1]) + b[1:],
    "middle byte flipped": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 0x40]) + b[len(b) // 2 + 1 :],
    "a byte more": lambda b: b + b"{",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_set_before_is_used_and_says_so(trained, tmp_path, capsys, name, damage):
    newest, _ = trained
    run = tmp_path / "copy"
    shutil.copytree(newest.parents[1], run)
    path = run / "checkpoints" / newest.name / name
    content = path.read_bytes()
    if DAMAGE[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](content))
    whole = ringtmp.train(**SMALL, steps=8, progress=False)
    more = ringtmp.train(resume=str(run), steps=8)
    said = capsys.readouterr().out
    assert "warning: checkpoint of step 6 is not used" in said
    assert name in said
    assert "resumed at step 4" in said
    assert more.step == 8
    assert more.sha256 == whole.sha256


def test_every_byte_of_a_small_set(tmp_path):
    """Each byte of each file flipped in turn: found, or (white space of the marker) without meaning."""
    checkpoint.write_part(tmp_path, 1, 0, [LayerRecord("000-dense", {}, {"w": np.arange(3.0)}, {})])
    checkpoint.commit(tmp_path, 1, [0], {})
    folder = checkpoint.set_folder(tmp_path, 1)
    body = checkpoint.read_marker(tmp_path, 1)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if path.name == "rank-0000.json":
            continue  # read by `commit` alone; the marker holds what it said
        # HDF5 files are mostly empty, and their SHA-256 does not care which byte it was: every 7th will do.
        for place in range(0, len(content), 1 if path.suffix == ".json" else 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x04]) + content[place + 1 :])
            try:
                marker = checkpoint.read_marker(tmp_path, 1)
                checkpoint.verify(tmp_path, marker)
            except checkpoint.DamagedError as error:
                assert path.name in str(error)
            else:
                assert path.name == "COMMIT.json"
                assert marker == body
        path.write_bytes(content)
    assert loaded(tmp_path, 1, ["000-dense"])[0].parameters["w"].tolist() == [0, 1, 2]


def test_no_set_left(trained, tmp_path):
    newest, _ = trained
    run = tmp_path / "copy"
    shutil.copytree(newest.parents[1], run)
    for path in (run / "checkpoints").glob("*/rank-0000.h5"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint that can be used: checkpoint of step 6 .*rank-0000\.h5: has 0"):
        ringtmp.train(resume=str(run), steps=8, progress=False)


@pytest.mark.parametrize("change", ["values", "features", "samples", "labels"])
def test_other_data_under_the_same_name(tmp_path, change):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 6)), np.arange(60) % 3
    path = tmp_path / "d.npz"
    np.savez(path, x=x, y=y)
    settings = SMALL | {"data": str(path)}
    ringtmp.train(**settings, steps=4, out=str(tmp_path), name="a", progress=False)
    x2, y2 = x.copy(), y.copy()
    if change == "values":
        x2[7, 3] += 1e-9
    y2 = y[::-1].copy() if change == "labels" else y2
    x2 = x2[:, :5] if change == "features" else x2
    x2, y2 = (x2[:50], y2[:50]) if change == "samples" else (x2, y2)
    np.savez(path, x=x2, y=y2)
    words = {"features": "sample_shape", "samples": "n_train"}.get(change, "digest")
    with pytest.raises(UserError, match=f"is not the data of the checkpoint: its {words} was"):
        ringtmp.train(resume=str(tmp_path / "a"), steps=9, progress=False)
    np.savez(path, x=x, y=y)
    assert ringtmp.train(resume=str(tmp_path / "a"), steps=9, progress=False).step == 9


def test_an_edited_config_does_not_pass(trained, tmp_path):
    """The checkpoint's own configuration counts, which is under its checksum."""
    newest, _ = trained
    run = tmp_path / "copy"
    shutil.copytree(newest.parents[1], run)
    path = run / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 7"))
    with pytest.raises(UserError, match="seed was 0 in the checkpoint's run and cannot become 7"):
        ringtmp.train(resume=str(run), steps=9, progress=False)


def test_resumed_config_is_stored(trained, tmp_path):
    newest, _ = trained
    run = tmp_path / "copy"
    shutil.copytree(newest.parents[1], run)
    ringtmp.train(resume=str(run), steps=9, lr=0.5, progress=False)
    marker = json.loads((run / "checkpoints" / "step-00000009" / "COMMIT.json").read_text())["body"]
    assert (marker["facts"]["config"]["lr"], marker["facts"]["config"]["steps"]) == (0.5, 9)

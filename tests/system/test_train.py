"""The main job as a user starts it."""

import gzip
import json
import re

import h5py
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ringtmp.analysis import open_run
from ringtmp.trace.machine import core_limit, usable_cpus

QUICK = ("--model", "mlp:64-32x7-10", "--epochs", "2")


def accuracy(text: str) -> float:
    return float(re.findall(r"test accuracy ([\d.]+)%", text)[-1])


def digest(text: str) -> str:
    return re.search(r"weights sha256 ([0-9a-f]{64})", text)[1]


@pytest.mark.parametrize("ranks", [1, 3])  # on 8: `make train` in test_readme.py
def test_default_job(train, tmp_path, ranks):
    done = train(ranks, "--name", "first")
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) >= 96
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert len(lines) >= 20
    assert re.search(r"loss +\d.*train +\d.*test +\d.*samples/s.*0:00 left", lines[-1])
    crowded = ranks > (core_limit() or len(usable_cpus()))
    assert done.stdout.startswith(f"{ranks} ranks share " if crowded else "digits: 1,438 training")
    assert re.search(
        r"did it learn +loss 2.* in step 1 -> \d\.\d+.*guessing the most frequent class: 11.7%", done.stdout
    )
    assert re.search(r"how fast +[\d,]+ samples/s from step 166 to 660", done.stdout)
    assert ("wait for" in done.stdout) and done.stdout.splitlines()[-2].startswith("try next: ")
    for rank in range(ranks):
        assert re.search(rf"│ +{rank} │", done.stdout)
    run = open_run(tmp_path / "runs" / "first")
    assert run.status["state"] == "finished"
    assert run.status["sha256"] == digest(done.stdout)
    assert len(list((run.path / "traces" / "000").glob("*.h5"))) == ranks
    sets = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert len(sets) == 2
    assert sets[-1] == f"step-{run.status['step']:08d}"
    with h5py.File(run.path / "checkpoints" / sets[-1] / "index.h5") as index:
        assert index["layers/000-dense/weight"].shape[0] == 64
        assert len(index["layers"]) == len(index["layers"].keys()) >= 8


def test_same_digest_on_any_ranks(train):
    """7 included, and as many ranks as layers; tests/mpi and the resumes below have the other numbers."""
    digests = {digest(train(ranks, *QUICK).stdout) for ranks in (1, 7, 8)}
    assert len(digests) == 1


def test_config_file_and_flags(train, tmp_path):
    """A run's own config.toml repeats it; flags override a file."""
    first = train(2, *QUICK, "--lr", "0.001", "--schedule", "gpipe", "--name", "one")
    again = train(3, "--config", "runs/one/config.toml", "--name", "two")
    other = train(2, "--config", "runs/one/config.toml", "--lr", "0.002", "--name", "three")
    assert digest(first.stdout) == digest(again.stdout) != digest(other.stdout)
    assert "strict gpipe" in again.stdout


def test_layers_from_toml(train, tmp_path):
    layer = '[[layers]]\ntype = "dense"\nunits = {units}\nactivation = "{activation}"\n'
    text = layer.format(units=20, activation="tanh") + layer.format(units=10, activation="linear")
    (tmp_path / "net.toml").write_text(text)
    done = train(2, "--model", "net.toml", "--epochs", "1", "--name", "toml")
    assert done.returncode == 0, done.stderr
    assert "2 layers" in done.stdout
    short = train(1, "--model", "mlp:64-20-10,activation=tanh", "--epochs", "1")
    assert digest(done.stdout) == digest(short.stdout)


@pytest.mark.parametrize(
    ("data", "model", "metric"),
    [
        ("breast-cancer", "mlp:30-20-20-2", "accuracy"),
        ("diabetes", "mlp:10-20-20-1", "R2"),
        ("synthetic:samples=500,features=12,classes=4", "mlp:12-20-20-4", "accuracy"),
    ],
)
def test_other_data(train, data, model, metric):
    done = train(3, "--data", data, "--model", model, "--epochs", "20", "--micro-batches", "4", "--lr", "0.01")
    assert done.returncode == 0, done.stderr
    value = float(re.findall(rf"test {metric} ([-\d.]+)", done.stdout)[-1])
    assert value > (85 if metric == "accuracy" else 0.3)


def test_idx_folder(train, tmp_path):
    """The bundled digits as the four files in which MNIST comes, gzipped or not."""
    images, labels = load_digits(return_X_y=True)
    images = np.clip(images * 16, 0, 255).astype(np.uint8)
    for name, part in (("train", slice(1500)), ("t10k", slice(1500, None))):
        write = gzip.open if name == "train" else open
        for kind, code, array in (
            ("images-idx3", 0x803, images[part].reshape(-1, 8, 8)),
            ("labels-idx1", 0x801, labels[part]),
        ):
            header = np.array([code, *array.shape], ">i4").tobytes()
            with write(tmp_path / f"{name}-{kind}-ubyte{'.gz' if name == 'train' else ''}", "wb") as file:
                file.write(header + array.astype(np.uint8).tobytes())
    done = train(2, "--data", str(tmp_path), "--model", "mlp:64-64-64-10", "--epochs", "8")
    assert done.returncode == 0, done.stderr
    assert "1,500 training and 297 test samples" in done.stdout
    assert accuracy(done.stdout) > 80


@pytest.mark.parametrize("ranks", [1, 3])
def test_help(train, ranks):
    done = train(ranks, "--help")
    assert done.returncode == 0
    assert done.stdout.count("Usage:") == 1
    flags = (
        "data model config epochs steps batch-size micro-batches schedule mode optimizer lr seed dtype out name resume "
        "checkpoint-every threads trace"
    )
    for flag in flags.split():
        assert f"--{flag} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_resume_in_place(train, tmp_path):
    settings = (*QUICK[:2], "--lr-schedule", "constant")
    whole = train(2, *settings, "--steps", "30", "--name", "whole")
    train(3, *settings, "--steps", "12", "--name", "parts")
    more = train(5, "--resume", "parts", "--steps", "30")
    assert more.returncode == 0, more.stderr
    assert "resumed at step 12" in more.stdout
    assert digest(more.stdout) == digest(whole.stdout)
    run = open_run(tmp_path / "runs" / "parts")
    assert run.launch == 1
    history = run.history()
    assert list(history[history["kind"] == "train"]["step"]) == list(range(1, 31))
    assert json.loads((run.path / "status.json").read_text())["step"] == 30

"""Bad input: one clear line, exit status 2, no traceback, nothing written, on one rank and on several."""

import gzip
import json
import os
import subprocess
from itertools import product

import numpy as np
import pytest
from forking import Forks
from launching import command

MODEL = ("--model", "mlp:64-16x3-10")

# name: (flags, words that the one line must hold)
CASES = {
    "unknown flag": (["--batchsize", "8"], ["--batchsize"]),
    "unknown key in the file": (["--config", "key.toml"], ["key.toml", "batch_szie", "batch_size"]),
    "wrong type": (["--batch-size", "many"], ["batch_size", "integer", "many"]),
    "wrong type in the file": (["--config", "type.toml"], ["type.toml", "lr"]),
    "not TOML": (["--config", "broken.toml"], ["broken.toml", "TOML"]),
    "no such config": (["--config", "none.toml"], ["none.toml"]),
    "out of range": (["--lr", "-1"], ["lr", "greater than 0", "-1"]),
    "not finite": (["--lr", "nan"], ["lr", "finite"]),
    "unknown choice": (["--schedule", "zigzag"], ["schedule", "naive", "gpipe", "1f1b", "zigzag"]),
    "batch smaller than micro-batches": (
        ["--batch-size", "4", "--micro-batches", "8"],
        ["batch_size 4", "micro_batches 8"],
    ),
    "batch larger than the data": (["--batch-size", "5000"], ["batch_size", "5000", "training samples"]),
    "epochs and steps": (["--epochs", "3", "--steps", "4"], ["epochs", "steps"]),
    "no such data": (["--data", "digitz"], ["digitz", "digits"]),
    "missing data file": (["--data", "none.npz"], ["none.npz"]),
    "truncated npz": (["--data", "cut.npz"], ["cut.npz"]),
    "truncated idx": (["--data", "idx"], ["idx"]),
    "NaN in the data": (["--data", "nan.npz"], ["nan.npz", "NaN"]),
    "labels below zero": (["--data", "negative.npz"], ["negative.npz", "label"]),
    "labels beyond the model": (["--data", "labels.npz", "--model", "mlp:64-16-3"], ["3 outputs", "labels 0 to"]),
    "input does not fit": (["--model", "mlp:63-16x3-10"], ["63", "64 features"]),
    "unknown model": (["--model", "vgg"], ["vgg", "mlp:"]),
    "bad model size": (["--model", "mlp:64-0x3-10"], ["0x3"]),
    "bad activation": (["--model", "mlp:64-10,activation=swish"], ["swish", "relu"]),
    "bad layer table": (["--model", "layers.toml"], ["layer 0", "units"]),
    "loss does not fit": (["--loss", "mse"], ["loss", "cross-entropy"]),
    "unwritable output": (["--out", "/proc/runs"], ["/proc/runs"]),
    "output is a file": (["--out", "key.toml"], ["key.toml"]),
    "existing run": (["--name", "taken"], ["taken", "not overwritten"]),
    "bad name": (["--name", "a/b"], ["name"]),
    "no such run": (["--resume", "nowhere"], ["nowhere", "run folder"]),
    "bad split": (["--layer-split", "a,b"], ["layer_split", "a,b"]),
    "split does not fit": (["--layer-split", "9"], ["layer_split"]),
    "chunks on a schedule that takes none": (["--schedule", "zb-h1", "--chunks", "2"], ["chunks", "zb-h1", "2"]),
    "more stages than layers": (["--chunks", "9"], ["chunks: 9", "model has 4"]),
    "pace is no speed": (["--node-speed", "fast"], ["node_speed", "GFLOP/s", "fast"]),
    "pace for other ranks": (["--node-speed", "1,1,1,1,1"], ["node_speed", "5 ranks"]),
    "jitter without pace": (["--jitter", "0.3"], ["jitter", "--node-speed"]),
    "asynchronous in ready mode": (["--schedule", "pipedream", "--mode", "ready"], ["mode", "pipedream"]),
    "2bw in strict mode": (["--schedule", "2bw", "--mode", "strict"], ["mode", "2bw"]),
    "activation memory is no size": (["--activation-memory", "lots"], ["activation_memory", "512MiB", "lots"]),
    "too little activation memory": (["--activation-memory", "100"], ["activation_memory", "needs"]),
    "a plan beyond the activation memory": (
        ["--schedule", "gpipe", "--activation-memory", "10kB"],
        ["activation_memory", "gpipe", "10kB"],
    ),
    "idle ranks without their speeds": (["--allow-idle-ranks", "on"], ["allow_idle_ranks", "measured", "flops"]),
    "a pace that changes at no step": (["--node-speed", "2@soon:1"], ["node_speed", "2@50:1", "2@soon:1"]),
    "memory is no size": (["--memory-limit", "lots"], ["memory_limit", "512MiB", "lots"]),
    "too little memory": (["--memory-limit", "1MiB"], ["memory_limit", "alone takes", "--memory-limit"]),
    "no columns": (["--slices", "0"], ["slices", "greater than or equal to 1"]),
    "balance of an unknown kind": (["--balance", "maybe"], ["balance", "off", "auto", "maybe"]),
    "layers with many versions in balance": (["--balance", "auto", "--schedule", "2bw"], ["balance", "2bw", "off"]),
    "recompute of an unknown kind": (["--recompute", "perhaps"], ["recompute", "perhaps"]),
    "rings that do not divide the ranks": (["--rings", "7"], ["rings: 7", "ranks"]),
    "rings and replicas": (["--rings", "2", "--state-copies", "1"], ["state_copies", "rings"]),
    "nothing in flight": (["--in-flight", "0"], ["in_flight", "greater than or equal to 1"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every kind of broken file."""
    path = tmp_path_factory.mktemp("bad")
    (path / "key.toml").write_text("batch_szie = 8\n")
    (path / "type.toml").write_text('lr = "fast"\n')
    (path / "broken.toml").write_text("lr = = 1\n")
    (path / "layers.toml").write_text('[[layers]]\ntype = "dense"\nunits = "ten"\n')
    x, y = np.random.default_rng(0).standard_normal((100, 64)), np.arange(100) % 10
    np.savez(path / "whole.npz", x=x, y=y)
    (path / "cut.npz").write_bytes((path / "whole.npz").read_bytes()[:20000])
    np.savez(path / "negative.npz", x=x, y=y - 1)
    np.savez(path / "labels.npz", x=x, y=y)
    x[17, 3] = np.nan
    np.savez(path / "nan.npz", x=x, y=y)
    (path / "idx").mkdir()
    header = (2051).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (100, 8, 8))
    with gzip.open(path / "idx" / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + bytes(6000))
    with gzip.open(path / "idx" / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write((2049).to_bytes(4, "big") + (100).to_bytes(4, "big") + bytes(100))
    (path / "runs" / "taken").mkdir(parents=True)
    (path / "runs" / "taken" / "precious").write_text("old results")
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


@pytest.fixture(scope="module")
def fork():
    """What `python -m ringtmp.train FLAGS` ends with, without a launcher, in a process forked off a warm one."""
    with Forks(["ringtmp.ring.trainer", "ringtmp.config.command_line", "ringtmp.data.dataset"]) as forks:
        yield lambda folder, *flags: forks.run("ringtmp.train", *flags, cwd=folder)


def launched(ranks):
    """The same under the launcher, on so many ranks."""
    return lambda folder, *flags: subprocess.run(
        command(ranks, "-m", "ringtmp.train", *flags),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(folder, run, flags, words):
    before = contents(folder)
    done = run(folder, *flags)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ringtmp: ")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in done.stderr
    assert contents(folder) == before
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_refused(folder, fork, case):
    flags, words = CASES[case]
    given = [] if any(flag == "--model" for flag in flags) else MODEL
    print(refused(folder, fork, [*flags, *given], words))


# While flags are parsed, while data are read, once both are known, when the folder is made. On 8 ranks two of them.
LAUNCHED = ["unknown flag", "wrong type", "truncated idx", "input does not fit", "existing run"]


@pytest.mark.parametrize(
    ("ranks", "case"),
    [
        *product((1, 3), LAUNCHED),
        *(pytest.param(8, each, marks=pytest.mark.long) for each in ("wrong type", "truncated idx")),
    ],
)
def test_refused_under_the_launcher(folder, case, ranks):
    flags, words = CASES[case]
    model = [] if "--model" in flags else ["--model", "mlp:64-16x7-10"]
    refused(folder, launched(ranks), [*flags, *model], words)


def test_more_ranks_than_layers(folder):
    refused(folder, launched(8), MODEL, ["4 layers", "8 stages (ranks x chunks)", "at most 4"])


def test_checkpoint_of_another_model(train, fork, tmp_path):
    assert train(2, *MODEL, "--steps", "4", "--name", "first").returncode == 0
    cases = {
        "--model mlp:64-16x4-10": ["resume", "4 layers", "5"],
        "--model mlp:64-17x3-10": ["resume", "layer 0", "16", "17"],
        "--model mlp:64-16x3-10,activation=tanh": ["resume", "layer 0", "relu", "tanh"],
        "--optimizer sgd": ["resume", "optimizer", "adamw", "sgd"],
        "--dtype float64": ["resume", "dtype", "float32"],
        "--steps 4": ["resume", "4 steps already"],
    }
    for flags, words in cases.items():
        refused(tmp_path, fork, ["--resume", "first", "--steps", "9", *flags.split()], words)


def test_folder_without_write_permission(tmp_path):
    """Root too is refused, once it has laid down the right to write anywhere."""
    (tmp_path / "locked").mkdir(mode=0o555)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, *command(2, "-m", "ringtmp.train", *MODEL, "--out", "locked/runs")],
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "locked/runs" in done.stderr
    assert "Permission denied" in done.stderr


def test_status_file_is_json_whatever_was_there(train, tmp_path):
    """A marker cut short by a full disk does not stop a resume."""
    assert train(1, *MODEL, "--steps", "3", "--name", "run").returncode == 0
    path = tmp_path / "runs/run/status.json"
    for step, keep in ((5, 0), (7, 0.3), (9, 0.99)):
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        assert train(1, "--resume", "run", "--steps", str(step)).returncode == 0
        assert json.loads(path.read_text())["step"] == step

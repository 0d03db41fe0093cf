"""Text from a checkpoint: a model that has learnt a short text by heart writes it."""

import subprocess
import sys

import numpy as np
import pytest
from forking import Forks

import ringtmp
from ringtmp.commands.sample import Sampler

TEXT = "round goes the ring, and home again. "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text").write_text(TEXT * 60)
    model = "gpt:layers=1,width=32,heads=2,context=16"
    ringtmp.train(
        data=f"text:{folder / 'text'}",
        model=model,
        batch_size=16,
        micro_batches=2,
        steps=150,
        lr=0.01,
        weight_decay=0.0,
        out=str(folder),
        name="run",
        progress=False,
    )
    return folder / "run"


@pytest.fixture(scope="module")
def sample():
    """What `python -m ringtmp sample ARGUMENTS` ends with."""
    with Forks(["ringtmp.run.inference", "ringtmp.data.dataset", "ringtmp.nn.stage"]) as forks:
        yield lambda *words: forks.run("ringtmp", "sample", *words)


def test_it_writes_what_it_learnt(run):
    sampler = Sampler(str(run))
    assert "".join(sampler.write("round goes", 27, temperature=0)) == TEXT[10:]
    likely = list(sampler.write("round goes", 60, temperature=1.0, seed=1))
    assert likely == list(sampler.write("round goes", 60, temperature=1.0, seed=1))
    wild = ["".join(sampler.write("round goes", 60, temperature=30.0, seed=seed)) for seed in (1, 2)]
    assert wild[0] != wild[1]


def test_what_comes_later_is_not_seen(run):
    """The logits after some tokens are those that a longer text has there."""
    sampler = Sampler(str(run))
    tokens = sampler.tokens("the ring, and ho")
    for length in (1, 5, 16):
        work = sampler.stage.work(0, 1)
        want = sampler.logits(tokens[:length]).copy()
        work.x[0] = tokens
        sampler.stage.forward(work)
        np.testing.assert_array_equal(work.y.reshape(16, -1)[length - 1], want)


def test_the_command(run, sample):
    done = sample(run, "--length", 27, "--prompt", "round goes", "--temperature", 0)
    assert (done.returncode, done.stdout) == (0, TEXT + "\n")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert sample(newest, "--length", 27, "--prompt", "round goes", "--temperature", 0).stdout == done.stdout
    assert len(sample(run, "--length", 30).stdout) == 31
    assert "--temperature" in sample("--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "checkpoint: nowhere is not a run folder"),
        (["RUN", "--prompt", "Ω"], "prompt: 'Ω' does not occur"),
        (["RUN", "--length", "0"], "length: expected at least 1, got 0"),
        (["RUN", "--temperature", "-1"], "temperature: expected a number from 0"),
        (["RUN", "--temperature", "nan"], "temperature: expected a number from 0"),
        (["RUN", "--seed", "x"], "seed: 'x' is not a valid integer"),
        (["RUN/checkpoints/step-00000007"], "checkpoint: RUN/checkpoints/step-00000007 is not"),
        ([], "checkpoint: is missing"),
    ],
)
def test_bad_input(run, sample, words, message):
    done = sample(*(word.replace("RUN", str(run)) for word in words))
    assert done.returncode == 2
    assert message.replace("RUN", str(run)) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_writes_no_text(sample, tmp_path):
    ringtmp.train(data="digits", model="mlp:64-10", steps=1, out=str(tmp_path), name="digits", progress=False)
    done = sample(tmp_path / "digits")
    assert (done.returncode, "expected a model of text" in done.stderr) == (2, True)


def test_a_reader_that_has_had_enough(run):
    line = f"{sys.executable} -m ringtmp sample {run} --length 3000 | head -c 20"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert (len(done.stdout), done.stderr) == (20, "")


def test_a_damaged_set(run, sample, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    with (newest / "rank-0000.h5").open("r+b") as file:
        file.seek(3000)
        file.write(b"damage")
    done = sample(newest)
    assert (done.returncode, "SHA-256" in done.stderr) == (2, True)

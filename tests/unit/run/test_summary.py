"""What a run on one rank says at its end."""

import re

import numpy as np
import pytest

import ringtmp
from ringtmp.data.dataset import open_data

SMALL = {"data": "digits", "model": "mlp:64-16x2-10", "batch_size": 100, "micro_batches": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def said(capfd, **settings):
    ringtmp.train(progress=True, **SMALL | settings)
    return capfd.readouterr().out.splitlines()


def test_a_run_and_its_continuation(folder, capfd):
    """The page is named where there is one; a continuation does not judge the learning by its own first step."""
    lines = said(capfd, steps=28, out=str(folder), name="a")
    at = next(n for n, line in enumerate(lines) if line.startswith("finished"))
    assert re.match(r"finished at step 28 after \d+\.\d s$", lines[at])
    learned = (
        r"  did it learn  loss 2\.\d+ in step 1 -> \d\.\d+ in the last epoch; train accuracy \d+\.\d% -> \d+\.\d%; "
    )
    assert re.match(learned + r"test accuracy \d+\.\d\d% \(guessing the most frequent class: 11\.7%\)$", lines[at + 1])
    assert re.match(r"  how fast      [\d,]+ samples/s from step 8 to 28, evaluations included$", lines[at + 2])
    assert "wait for" in lines[at + 4]
    assert lines[-2].startswith("try next: ")
    assert lines[-1].startswith("weights sha256 ")

    (folder / "a" / "report.html").touch()
    lines = said(capfd, steps=29, resume=str(folder / "a"))
    assert any("in step 29 -> " in line for line in lines)
    assert not any("how fast" in line for line in lines)
    assert lines[-3].startswith("try next: ")
    assert lines[-2] == f"page: {folder / 'a' / 'report.html'}"


def test_values(capfd):
    lines = said(capfd, data="diabetes", model="mlp:10-8-1", steps=6)
    (learned,) = (line for line in lines if "did it learn" in line)
    assert "train" not in learned
    assert re.search(r"test R2 -?\d\.\d{4} \(guessing the mean: 0\)$", learned)


def test_a_rate_that_is_too_high_is_named(capfd):
    lines = said(capfd, steps=12, optimizer="sgd", lr=50.0, lr_schedule="constant", clip_value=1.0)
    assert lines[-2] == "try next: --lr 5: the loss did not fall with 50"


def test_without_a_trace_waits_stay_together(capfd):
    lines = said(capfd, steps=4, trace=False)
    assert not any("wait for" in line for line in lines)
    assert sum("│" in line and "%" in line for line in lines) == 1


@pytest.mark.parametrize("separate", [False, True])
def test_the_most_frequent_class(separate):
    """Of the split that is asked for, held out or with arrays of its own."""
    y = np.array([0] * 60 + [1] * 30 + [2] * 10)
    x = np.random.default_rng(0).normal(size=(100, 3))
    more = (x[:10], np.array([2] * 7 + [0] * 3)) if separate else ()
    data = open_data((x, y, *more), dtype=np.dtype("float32"))
    labels = np.empty((data.info.n_test, 1), np.int64)
    data.read("test", np.arange(data.info.n_test), np.empty((data.info.n_test, 3), np.float32), labels)
    assert data.most_frequent("test") == np.bincount(labels[:, 0]).max() / len(labels)
    assert data.most_frequent("test") == 0.7 or not separate
    values = open_data((x, x[:, :1]), dtype=np.dtype("float32"))
    assert np.isnan(values.most_frequent("test"))

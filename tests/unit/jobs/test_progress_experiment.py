"""The experiment on progress per iteration: tuning, targets and spread by hand, and what it makes of runs."""

import json
import subprocess
from dataclasses import asdict
from io import StringIO
from math import inf, isnan, nan
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from ringtmp.jobs.experiments import progress
from ringtmp.jobs.experiments.progress import (
    WAYS,
    Setting,
    ages,
    best_rate,
    beyond,
    steps_to,
    tabulate,
    train_each,
)
from ringtmp.jobs.experiments.progress_figure import draw, show
from ringtmp.jobs.lib import store
from ringtmp.jobs.lib.compare import quartiles
from ringtmp.jobs.lib.launch import LaunchFailed
from ringtmp.storage.run_folder import FORMAT


def setting(**changes):
    values = {
        "ranks": 3,
        "data": "digits",
        "model": "mlp:64-8x2-10",
        "batch": 16,
        "optimizer": "momentum",
        "epochs": 1,
        "tail": 1,
        "test_every": 1,
        "milliseconds": 10.0,
        "jitter": 0.3,
        "rates": [0.1, 0.2, 0.4],
        "tuning_seeds": [7, 8],
        "seeds": [0, 1, 2],
        "targets": [1.0, 0.01],
        "window": 2,
    }
    return Setting(**(values | changes))


def trial(lr, loss):
    return {"lr": lr, "train_loss": loss}


def test_best_rate():
    trials = [trial(0.1, 0.5), trial(0.1, 0.7), trial(0.2, 0.4), trial(0.2, 0.6), trial(0.4, 0.1), trial(0.4, inf)]
    assert best_rate(trials) == 0.2  # of the best run's rate the other run has diverged
    with pytest.raises(SystemExit, match="nan with every learning rate"):
        best_rate([trial(0.1, inf), trial(0.2, inf)])


@pytest.mark.parametrize(
    ("losses", "steps"),
    [([3, 1, 1, 0], 3), ([1, 1], 2), ([1], inf), ([], inf), ([3, 0, 3, 2], inf), ([2, 1, inf], inf)],
)
def test_steps_to(losses, steps):
    assert steps_to(losses, 1.0, window=2) == steps


def test_beyond_the_spread():
    assert quartiles([5, 1, 4, 2, inf]) == [4, 2, 5]
    assert beyond([2, 3, 4, 5, 6], [0, 1, 1.5, 1.6, 1.7]) == 1
    assert beyond([0, 1, 1.5, 1.6, 1.7], [2, 3, 4, 5, 6]) == -1
    assert beyond([2, 3, 4, 5, 6], [2, 1, 1.5, 1.6, 1.7]) == 0  # the first seed says no
    assert beyond([2, 3, 4, 5, inf], [1, 2, 3, 4, 5]) == 0  # quartiles overlap
    assert beyond([inf] * 5, [inf] * 5) == 0


def test_ages():
    """Micro-batches of a ring count one by one, those of a server's trace as the servers saw them."""
    columns = ["rank", "kind", "start", "end", "step", "micro_batch", "stage", "peer", "bytes", "version"]
    ring = [(0, "F", 0, 1, 2, 0, 0, -1, 0, 0), (0, "F", 1, 2, 2, 1, 0, -1, 0, 2), (0, "U", 3, 4, 2, -1, 0, -1, 0, 3)]
    assert ages(pd.DataFrame(ring, columns=columns)).tolist() == [2, 0]
    server = [
        (0, "receive", 0, 1, 2, -1, 0, 1, 8, 0),
        (0, "U", 3, 4, 2, -1, 0, -1, 0, 3),
        (1, "F", 0, 1, 2, 0, 0, -1, 0, -1),
    ]
    assert ages(pd.DataFrame(server, columns=columns)).tolist() == [2]


def test_a_node_s_speed():
    """A worker's step takes as long as asked: 6 operations a weight and row."""
    some = setting()
    assert some.steps_per_epoch == 1437 // 16
    assert some.pace == pytest.approx(6 * (64 * 8 + 8 * 8 + 8 * 10) * 8 / 0.010 / 1e9, rel=0.01)


def test_a_run_that_diverges_costs_no_other(monkeypatch):
    """It ends the launch; those before it are read, those after it launched again."""
    launches = []

    def launch(ranks, asked):
        runs = [each["train"] for each in asked]
        launches.append([each["lr"] for each in runs])
        for each in runs:
            folder = Path(each["out"]) / each["name"]
            folder.mkdir()
            (folder / "config.toml").touch()
            (folder / "format").write_text(FORMAT)
            bad = each["lr"] == 0.2
            state = "failed" if bad else "finished"
            status = {"state": state, "error": "RunFailure: the loss became nan in step 3"}
            (folder / "status.json").write_text(json.dumps(status))
            (folder / "history.csv").write_text(
                "" if bad else f"kind,step,loss,score,seconds\ntrain,1,{each['lr']},0.5,1\ntest,1,2,0.75,2\n"
            )
            if bad:
                raise LaunchFailed(["mpirun"], subprocess.CompletedProcess([], 1, "the job has failed", ""))
        return []

    monkeypatch.setattr(progress, "launch", launch)
    found = list(train_each(setting(), [(WAYS["server bsp"], rate, 7) for rate in (0.1, 0.2, 0.4)], trace=False))
    assert launches == [[0.1, 0.2, 0.4], [0.4]]
    assert [each["train_loss"] for each in found] == [0.1, inf, 0.4]
    assert found[2]["tests"] == [[1, 2, 0.75]]
    assert best_rate(found) == 0.1


def test_table_and_picture_of_a_file(tmp_path):
    facts = asdict(setting())
    rates = {"server bsp": 0.2, "server asp": 0.1}
    runs = [
        {
            "way": way,
            "lr": rate,
            "seed": seed,
            "train_loss": loss + seed / 10,
            "loss": [3, 2, loss, loss - seed / 100],
            "tests": [[2, 1.5, 0.5], [4, loss, 0.9]],
            "updates": 2.0,
            "staleness": 0.9,
            "oldest": 3,
        }
        for way, rate, loss in (("server bsp", 0.2, 0.5), ("server asp", 0.1, 1.5))
        for seed in range(3)
    ]
    runs[5] |= {"loss": [], "tests": [], "train_loss": inf}
    tuning = [
        {"way": way, "lr": rate, "seed": 7, "train_loss": nan if rate > 0.3 else rate}
        for way in rates
        for rate in facts["rates"]
    ]
    rows = tabulate(facts, rates, runs)
    assert rows[1]["train_loss: more than"] == ["server bsp"] and rows[0]["train_loss: more than"] == []
    assert rows[0]["samples to 1"] == [4 * 16] * 3 and rows[1]["samples to 1"] == [inf] * 3
    assert rows[1]["edge"] and not rows[0]["edge"]
    table = {"provenance": {}, "setting": facts, "rows": rows, "tuning": tuning, "runs": runs}
    store.write(table, tmp_path / "progress.h5")
    read = store.read(tmp_path / "progress.h5")
    assert read["tuning"][-1]["train_loss"] is None and isnan(tuning[-1]["train_loss"])
    console = Console(width=150, file=StringIO())
    show(read, console)
    text = console.file.getvalue()
    assert "training loss beside server bsp: more in server asp; less in none" in text and "never" in text
    draw(read, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 10_000

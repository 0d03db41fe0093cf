"""``ringtmp plan``: the table, what is recommended, what does not fit, bad input."""

import subprocess
import sys

import pytest

from ringtmp.__main__ import call
from ringtmp.config.command_line import parse
from ringtmp.config.schema import make_config
from ringtmp.schedule.registry import plan_names
from ringtmp.simulate.planner import RULE

SMALL = ["--model", "mlp:64-64x3-10", "--ranks", "2", "--speed", "1", "--batch-size", "16"]


def table_of(out):
    """The printed table: a dictionary for each line."""
    names = [cell.strip() for cell in next(line for line in out.splitlines() if line.startswith("┃")).split("┃")[1:-1]]
    rows = [line for line in out.splitlines() if line.startswith("│")]
    return [dict(zip(names, (cell.strip() for cell in row.split("│")[1:-1]), strict=True)) for row in rows]


def test_table(capsys):
    """A line for each way up to --top and for the fastest of each schedule, one marked, and how to ask for it."""
    assert call(["plan", *SMALL, "--micro-batches", "4,8", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "mlp:64-64x3-10 over 2 ranks, 16 samples a step; simulated" in out
    rows = table_of(out)
    assert {row["schedule"].removesuffix(" <--") for row in rows} == {RULE, *plan_names()}
    assert len(rows) <= 3 + len(plan_names()) + 1
    (best,) = (row for row in rows if row["schedule"].endswith(" <--"))
    name = best["schedule"].removesuffix(" <--")
    how = "--mode ready" if name == RULE else f"--schedule {name}"
    assert f": {how} --micro-batches {best['micro-batches']} --chunks {best['chunks']}" in out
    assert all(row["step"].endswith((" us", " ms")) and row["idle"].endswith("%") for row in rows)
    rates = [float(row["samples/s"].replace(",", "")) for row in rows]
    assert rates == sorted(rates, reverse=True)


def test_what_is_recommended_can_be_trained(capsys):
    """The flags that are printed are flags of the trainer."""
    assert call(["plan", *SMALL, "--micro-batches", "4", "--schedule", "ready", "--memory", "400KiB"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("recommended of "))
    config = make_config(parse(line.split(": ")[1].split(), "ringtmp.train", "")[1])
    assert (config.mode, config.micro_batches) == ("ready", 4)
    assert config.in_flight in range(1, 5)


def test_what_does_not_fit_is_marked(capsys):
    few = ["--schedule", "gpipe,1f1b", "--micro-batches", "16", "--chunks", "1"]
    assert call(["plan", *SMALL, *few]) == 0
    assert not any(row["bytes"].endswith("!") for row in table_of(capsys.readouterr().out))
    assert call(["plan", *SMALL, *few, "--memory", "170KiB"]) == 0
    out = capsys.readouterr().out
    rows = {row["schedule"]: row for row in table_of(out)}
    assert rows["gpipe"]["bytes"].endswith("!")
    assert not rows["1f1b <--"]["bytes"].endswith("!")
    assert "!: more than --memory" in out


@pytest.mark.parametrize("schedule", ["ready", "1f1b"])
def test_picture(tmp_path, capsys, schedule):
    path = tmp_path / "plan.svg"
    assert call(["plan", *SMALL, "--schedule", schedule, "--micro-batches", "4", "--out", str(path)]) == 0
    assert "<svg" in path.read_text()
    assert f"written to {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--schedule", "zigzag"], ["schedule: expected some of ready, naive", "'zigzag'"]),
        (["--schedule", "1f1b,"], ["schedule: expected some of", "''"]),
        (["--schedule", "2bw"], ["schedule: expected some of", "'2bw'"]),
        (["--micro-batches", "4,many"], ["micro_batches: expected whole numbers above 0, as in 1,2, got '4,many'"]),
        (["--micro-batches", "0"], ["micro_batches", "'0'"]),
        (["--micro-batches", "32"], ["micro_batches: 32", "batch_size is 16"]),
        (["--chunks", "1.5"], ["chunks", "'1.5'"]),
        (["--chunks", "-1"], ["chunks"]),
        (["--chunks", "3"], ["chunks", "2 layers"]),
        (["--ranks", "0"], ["ranks: expected a whole number above 0, got 0"]),
        (["--ranks", "two"], ["ranks: 'two' is not a valid integer"]),
        (["--ranks", "5"], ["ranks: 5 ranks need a layer each, mlp:64-64x3-10 has 4"]),
        (["--batch-size", "-3"], ["batch_size", "-3"]),
        (["--top", "0"], ["top"]),
        (["--jitter", "1"], ["jitter: expected a number from 0 to below 1, got 1.0"]),
        (["--jitter", "nan"], ["jitter"]),
        (["--speed", "fast"], ["node_speed: expected GFLOP/s", "'fast'"]),
        (["--speed", "1,2,3"], ["node_speed: 1,2,3 names 3 ranks"]),
        (["--memory", "lots"], ["memory: expected a size such as 512MiB", "'lots'"]),
        (["--memory", "1e999"], ["memory", "'1e999'"]),
        (["--memory", "0.5"], ["memory", "'0.5'"]),
        (["--memory", "1kB"], ["memory: the leanest way"]),
        (["--link-latency", "20uhr"], ["link_latency: expected a time", "'20uhr'"]),
        (["--link-bandwidth", "0"], ["link_bandwidth: expected a rate", "'0'"]),
        (["--model", "vgg"], ["model: expected mlp:", "'vgg'"]),
        (["--model", "mlp:64-64x3-1"], ["model: gives 1 outputs"]),
        (["--out", "plan.xyz"], ["out: expected a file that ends in .png", "'plan.xyz'"]),
        (["--dtype", "float16"], ["dtype: 'float16' is not one of"]),
        (["--rank", "2"], ["--rank"]),
        (["--trace", "nowhere"], ["nowhere", "run folder"]),
    ],
)
def test_bad_input(flags, words, capsys):
    """One line, and exit status 2."""
    assert call(["plan", *SMALL, "--micro-batches", "4", *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ringtmp: ")
    assert told.count("\n") == 1
    for word in words:
        assert word in told


def test_no_model(capsys):
    assert call(["plan"]) == 2
    assert capsys.readouterr().err == "ringtmp: model: expected a network such as mlp:1024-1024x15-10, or --trace RUN\n"


def test_as_a_command(tmp_path):
    """Its status is the process's, and it starts no MPI."""
    command = [sys.executable, "-X", "importtime", "-m", "ringtmp", "plan", *SMALL, "--schedule"]
    done = subprocess.run([*command, "zigzag"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "mpi4py.MPI" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ringtmp: schedule: ") or "ringtmp: schedule: " in done.stderr

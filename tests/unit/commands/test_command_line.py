"""The command `ringtmp`: start-up, help, messages, and how ranks are started."""

import shutil
import subprocess
import sys

import click
import pytest

from ringtmp.__main__ import call, cli
from ringtmp.comm.launcher import rank_command, started_by_launcher
from ringtmp.commands._ranks import without_start

NAMES = cli.list_commands(click.Context(cli))


def test_help_imports_neither_mpi_nor_what_computes_or_draws():
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from ringtmp.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "heavy = {'mpi4py', 'numba', 'matplotlib', 'numpy', 'pandas', 'h5py', 'pydantic', 'rich', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert f"\n  {name} " in done.stdout
    assert "Exit status:" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help_page_without_docstrings(name):
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "ringtmp", name, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: ringtmp {name}")
    assert "Examples:\n" in done.stdout
    assert "Positional arguments" not in done.stdout  # Click's own section, from 8.5 on
    assert len(done.stdout.split("\n\n")[1].strip()) > 20  # says what it does
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trane"], "command: expected one of bench, draw,"),
        (["train", "--epocs", "3"], "--epocs: no such flag; did you mean --epochs?"),
        (["train", "-n", "0"], "ranks: 0 is not in the range x>=1."),
        (["train", "-n"], "Option '-n' requires an argument"),
        (["train", "--config", "absent.toml"], "config: cannot read absent.toml: No such file"),
        (["train", "-n", "2", "--launcher", "no-such-launcher"], "launcher: no-such-launcher does not exist"),
        (["draw", "rule"], "out: is missing"),
        (["evaluate"], "checkpoint: is missing"),
        (["bench", "mlp:4-4", "--dtype", "float16"], "dtype: 'float16' is not one of 'float32', 'float64'."),
        (["trace", "absent"], "absent is not a run folder"),
    ],
)
def test_bad_input_is_one_line(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"ringtmp: {line}") and said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_ranks_are_started_with_the_launcher_that_fits(monkeypatch):
    for name in ("SLURM_JOB_ID", "MPIRUN"):
        monkeypatch.delenv(name, raising=False)
    python = [sys.executable, "-m", "ringtmp.train", "--lr", "1"]
    shell = shutil.which("true")
    monkeypatch.setenv("MPIRUN", shell)
    assert rank_command("ringtmp.train", ["--lr", "1"], 3) == [shell, "-n", "3", *python]
    given = rank_command("ringtmp.train", ["--lr", "1"], 3, f"{shell} --x y")
    assert given == [shell, "--x", "y", "-n", "3", *python]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setenv("SLURM_MPI_TYPE", "pmix")
    assert rank_command("ringtmp.train", [], 2)[:2] == ["srun", "--mpi=pmix"]


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, False),
        ({"PMI_RANK": "0"}, True),
        ({"OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"SLURM_PROCID": "0"}, False),  # a batch script
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "1"}, True),
    ],
)
def test_a_process_knows_whether_it_is_a_rank(monkeypatch, variables, rank):
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_by_launcher() is rank


def test_flags_of_the_start_do_not_reach_the_ranks():
    words = ["-n", "8", "--lr", "1", "-n4", "--ranks=2", "--ranks", "3", "--launcher", "a b", "--name", "n"]
    assert without_start(words) == ["--lr", "1", "--name", "n"]


def test_words_are_completed(monkeypatch):
    env = {"_RINGTMP_COMPLETE": "bash_complete", "COMP_WORDS": "ringtmp train --optimizer ", "COMP_CWORD": "3"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-m", "ringtmp"], capture_output=True, text=True, timeout=60)
    assert "adamw" in done.stdout
    monkeypatch.setenv("COMP_WORDS", "ringtmp tr")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = subprocess.run([sys.executable, "-m", "ringtmp"], capture_output=True, text=True, timeout=60)
    assert "train" in done.stdout and "trace" in done.stdout

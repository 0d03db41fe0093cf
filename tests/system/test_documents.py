"""Every command and every Python block of the README and of docs/, run as it stands there, page by page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from documents import blocks, commands, pages
from launching import ROOT

from ringtmp.kernels._jit import CACHE

BIN = Path(sys.executable).parent

# A cluster's commands, stood in for by what shows that they were called rightly: srun starts real ranks.
STAND_INS = {
    "sbatch": "export SLURM_JOB_NAME=job SLURM_JOB_ID=1; "
    "while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && export SLURM_NTASKS=${1#*=}; "
    "[[ $1 == --array=1-2 ]] && export SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=2; "
    '[[ $1 == --export=* ]] && for v in ${1#*=}; do IFS=, read -ra set <<< "$v"; for s in "${set[@]}"; do '
    '[[ $s == *=* ]] && export "$s"; done; done; shift; done; script=$1; shift; exec bash "$script" "$@"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$REAL_MPIRUN" -n 2 "$@"',
    "conda": '[[ "$*" == "env create -f environment.yml" ]] && test -f environment.yml',
    "ringtmp": 'exec python -m ringtmp "$@"',  # this checkout's, whatever is installed
}

# What `make` would run; what takes minutes is not run, only asked for.
TARGETS = {
    "make train": ["-m ringtmp"],
    "make test": ["-m pytest"],
    "make test-long": ["-m pytest"],
    "make check": ["-m pytest"],
    "make setup": [],
    "make setup MPI=site": [],
    "make lint": ["ruff check", "ruff format --check", "lint-imports", "sizes.py", "mypy"],
    "make bench": ["-m jobs.bench.ours"],
    "make bench-torch": ["[bench]", "-m jobs.bench.torch_peer"],
    "make bench-kernels": ["[bench]", "-m jobs.bench.kernels_peer"],
    "make bench-idle": ["-m jobs.bench.idle"],
    "make bench-pipelines": ["[bench]", "-m jobs.bench.pipelines"],
    "make bench-link": ["-m jobs.bench.link"],
    "make bench-checkpoints": ["-m jobs.bench.checkpoints"],
    "make bench-replication": ["-m jobs.bench.replication"],
    "make bench-ps": ["[bench]", "-m jobs.bench.exchange", "-m jobs.bench.servers", "-m jobs.bench.hidden"],
    "make soak": ["tests/soak/kills.py"],
    "make docs": ["[docs]", "-m sphinx"],
    "make test-mpis": ["tests/system/test_mpi_suites.py"],
    "make experiment-resilience": ["-m jobs.experiments resilience"],
}

# What the output of some commands must hold, beside their exit status.
SAYS = {
    "--name first": "finished",
    "--resume runs/first": "resumed at step",
    "ringtmp evaluate": "test",
    "ringtmp top": "samples/s",
    "ringtmp bench": "GFLOP/s",
    "--name cluster": "2 ranks",
}

RUN = [page for page in pages() if any(block.language in ("sh", "python") for block in blocks(page))]


@pytest.fixture
def workplace(tmp_path):
    """The project's files in a folder of its own, with an environment that exists already: `make` sets up nothing."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in {Path(name).parts[0] for name in tracked} - {"runs"}:
        (tmp_path / name).symlink_to(ROOT / name)
    for venv in (".venv", ".venv-site"):
        (tmp_path / venv).symlink_to(BIN.parent)
    (tmp_path / "shims").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "shims" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "shims" / name).chmod(0o755)
    return tmp_path


def run(line, workplace, status=0):
    """Run a command line; it must end with `status`. What it has printed."""
    made = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "MPI", "RANKS", "MPIRUN")  # what this run was made with
    ours = {key: value for key, value in os.environ.items() if key not in made}
    env = ours | {
        "PATH": f"{workplace / 'shims'}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",  # modules come from there: Numba would compile anew what lies in another folder
        "REAL_MPIRUN": str(BIN / "mpirun"),
        "MPLBACKEND": "agg",
        "NUMBA_CACHE_DIR": str(CACHE.parent),
    }
    done = subprocess.run(["bash", "-euc", line], cwd=workplace, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr * bool(status)


def make(line, workplace):
    """Ask `make` what it would do, and run what takes no minutes; it finds the environment ready."""
    ready = workplace / ".venv" / ".ready"
    fresh = ready.exists() and ready.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime
    would = run(f"{line} --dry-run", workplace)
    for words in TARGETS[line]:
        assert words in would, would
    if fresh and line in ("make train", "make setup"):
        assert "pip install" not in would
        run(line, workplace)


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=str)
def test_page(workplace, page):
    """From the top to the end in one folder: later blocks use the runs and files of earlier ones."""
    for number, block in enumerate(blocks(page)):
        if block.file:
            (workplace / block.file).write_text(block.text)
        elif block.language == "python":
            (workplace / f"block{number}.py").write_text(block.text)
            run(f"python block{number}.py", workplace)
        elif block.language == "sh" and not block.left_out:
            for line in filter(None, block.text.splitlines()):
                if line.startswith("make"):
                    make(line, workplace)
                    continue
                said = run(line, workplace, block.status)
                for words, answer in SAYS.items():
                    assert words not in line or answer in said, f"{line}\n{said}"


@pytest.mark.parametrize("line", sorted({line for page in RUN for line in commands(page) if line.startswith("make")}))
def test_make(workplace, line):
    """The targets that the pages name exist and run what they say."""
    would = run(f"{line} --dry-run", workplace)
    for words in TARGETS[line.split(" ARGS=")[0]]:
        assert words in would, would


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs/notebooks").glob("*.ipynb")))
def test_notebook(tmp_path, monkeypatch, name):
    """Every cell of each notebook, in a fresh kernel."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "jobs" / "notebooks" / f"{name}.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) >= 5


@pytest.mark.long
def test_picture_of_a_real_run(workplace):
    """The experiment behind the README's picture."""
    run("mpirun -n 2 ringtmp experiment schedules new.png", workplace)
    assert (workplace / "new.png").stat().st_size > 20_000


def test_pages_name_what_is_left_out():
    """A block that is not run says why; nothing else is left out, and the pages have the commands of every chapter."""
    left_out = [block.note for page in RUN for block in blocks(page) if block.left_out]
    assert all(len(re.sub("not run: ", "", note)) > 20 for note in left_out) and len(left_out) <= 2
    lines = [line for page in RUN for line in commands(page)]
    for words in (
        "make train",
        "source .venv/bin/activate",
        "--resume",
        "sbatch",
        "make bench",
        "supervise",
        "--consistency allreduce",
    ):
        assert any(words in line for line in lines), words

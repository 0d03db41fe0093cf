"""Every command and every Python line of the README, run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from launching import ROOT

from ringtmp.kernels._jit import CACHE

pytestmark = pytest.mark.xdist_group("readme")  # they share a copy of the project

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line]

# A cluster's commands, stood in for by what shows that they were called rightly: srun starts real ranks.
STAND_INS = {
    "sbatch": "export SLURM_JOB_NAME=job SLURM_JOB_ID=1; "
    "while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && export SLURM_NTASKS=${1#*=}; "
    "[[ $1 == --array=1-2 ]] && export SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=2; "
    '[[ $1 == --export=* ]] && for v in ${1#*=}; do IFS=, read -ra set <<< "$v"; for s in "${set[@]}"; do '
    '[[ $s == *=* ]] && export "$s"; done; done; shift; done; script=$1; shift; exec bash "$script" "$@"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$REAL_MPIRUN" -n 2 "$@"',
    "conda": '[[ "$*" == "env create -f environment.yml" ]] && test -f environment.yml',
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A copy of the project's files with an environment that is there already, so that `make` sets up nothing anew."""
    path = tmp_path_factory.mktemp("readme")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in {Path(name).parts[0] for name in tracked} - {"runs"}:
        (path / name).symlink_to(ROOT / name)
    for venv in (".venv", ".venv-site"):
        (path / venv).symlink_to(BIN.parent)
    layers = blocks("toml")[0]
    (path / "net.toml").write_text(layers)
    shims = path / "shims"
    shims.mkdir()
    for name, text in STAND_INS.items():
        (shims / name).write_text(f"#!/bin/bash\n{text}\n")
        (shims / name).chmod(0o755)
    return path


def run(line, workplace):
    made = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "MPI", "RANKS", "MPIRUN")  # what this run was made with
    ours = {key: value for key, value in os.environ.items() if key not in made}
    env = ours | {
        "PATH": f"{workplace / 'shims'}:{BIN}:{os.environ['PATH']}",
        "REAL_MPIRUN": str(BIN / "mpirun"),
        "MPLBACKEND": "agg",
        "NUMBA_CACHE_DIR": str(CACHE.parent),
    }
    done = subprocess.run(["bash", "-euc", line], cwd=workplace, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_nothing_is_forgotten():
    for words in ("make train", "make test", "source .venv/bin/activate", "--resume", "sbatch", "make bench"):
        assert any(words in line for line in COMMANDS), words


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=[pytest.mark.long] * line.startswith("make train"))
        for line in COMMANDS
        if line.startswith("make")
    ],
)
def test_make(workplace, line):
    """`make` finds the environment ready and runs what it says; what takes minutes is only asked what it would run."""
    ready = workplace / ".venv" / ".ready"
    fresh = ready.exists() and ready.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime
    would = run(f"{line} --dry-run", workplace)
    expected = {
        "make train": ["mpirun -n 8", "-m ringtmp.train"],
        "make test": ["-m pytest"],
        "make setup": [],
        "make setup MPI=site": [],
        "make lint": ["ruff check", "ruff format --check", "lint-imports", "sizes.py", "mypy"],
        "make bench": ["-m ringtmp.jobs.bench.ours"],
        "make bench-torch": ["torch", "-m ringtmp.jobs.bench.torch_peer"],
        "make bench-kernels": ["torch", "-m ringtmp.jobs.bench.kernels_peer"],
        "make bench-idle": ["-m ringtmp.jobs.bench.idle"],
        "make bench-pipelines": ["torch", "-m ringtmp.jobs.bench.pipelines"],
        "make bench-link": ["-m ringtmp.jobs.bench.link"],
        "make bench-checkpoints": ["-m ringtmp.jobs.bench.checkpoints"],
        "make bench-replication": ["-m ringtmp.jobs.bench.replication"],
        "make soak": ["tests/soak/kills.py"],
        "make docs": ["-m sphinx"],
        "make test-mpis": ["tests/system/test_mpi_suites.py"],
        "make experiment-resilience": ["-m ringtmp.jobs.experiments resilience"],
        "make bench-ps": [
            "torch",
            "-m ringtmp.jobs.bench.exchange",
            "-m ringtmp.jobs.bench.servers",
            "-m ringtmp.jobs.bench.hidden",
        ],
    }
    words = ["[bench]" if word == "torch" else word for word in expected[line]]
    for word in words:
        assert word in would, would
    if fresh and line in ("make train", "make setup"):
        assert "pip install" not in would
        run(line, workplace)


@pytest.mark.long
def test_commands_in_their_order(workplace):
    """The commands below "Use it" and "On a cluster", one after another in one folder: later ones use earlier runs."""
    said = {line: run(line, workplace) for line in COMMANDS if not line.startswith("make")}
    first = next(text for line, text in said.items() if "--name first" in line)
    resumed = next(text for line, text in said.items() if "--resume" in line)
    assert "finished" in first
    assert "resumed at step" in resumed
    assert len(next(text for line, text in said.items() if "ringtmp sample" in line)) == 201
    cluster = next(text for line, text in said.items() if line.startswith("sbatch"))
    assert "2 ranks" in cluster
    assert "lr = 0.03" in (workplace / "runs" / "job-1-2" / "config.toml").read_text()
    python_lines(workplace)


def python_lines(workplace):
    """The Python of the README, as scripts in the same folder: the runs are there."""
    for number, block in enumerate(blocks("python")):
        script = workplace / f"block{number}.py"
        script.write_text(block)
        run(f"{sys.executable} {script}", workplace)
    assert (workplace / "gantt.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs/notebooks").glob("*.ipynb")))
def test_notebook(tmp_path, monkeypatch, name):
    """Every cell of each notebook, in a fresh kernel."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "jobs" / "notebooks" / f"{name}.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) >= 5


def _with_shims(path):
    (path / "shims").mkdir()
    return path


@pytest.mark.long
def test_picture_of_a_real_run(tmp_path):
    """The experiment behind the README's picture, and that the picture is there."""
    _with_shims(tmp_path)
    run(f"PYTHONPATH={ROOT} mpirun -n 2 python -m ringtmp.jobs.experiments schedules {tmp_path}/new.png", tmp_path)
    assert (tmp_path / "new.png").stat().st_size > 20_000
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file()


def test_links_lead_somewhere():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:jobs|tests|ringtmp|kernels|ps)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_dependency_has_its_reason():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## What it stands on")[1]
    listed = (
        project["dependencies"] + project["optional-dependencies"]["test"] + project["optional-dependencies"]["lint"]
    )
    for text in listed:
        assert re.match(r"[A-Za-z0-9-]+", text)[0] in table, text

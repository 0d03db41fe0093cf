"""README and pages of docs/: their size, links, and lists that must be as long as what they list."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from documents import pages
from launching import ROOT

from ringtmp.run.history import COLUMNS
from ringtmp.trace.events import EVENT, KINDS

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"


def test_the_readme_is_short():
    assert README.count("\n") <= 150


def test_the_ten_results_are_those_of_the_files():
    """No number of the README's table is typed; `python docs/_ext/headlines.py --write` renews it."""
    spec = importlib.util.spec_from_file_location("headlines", DOCS / "_ext" / "headlines.py")
    headlines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headlines)
    assert headlines.written(README) == README
    assert headlines.table().count("\n") == 12


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page):
    """Links to files, and paths in backquotes, exist in the repository."""
    text = (ROOT / page).read_text()
    for name in re.findall(r"\]\(((?!https?:)[^)#\s]+)[^)]*\)", text):
        # Pictures below _generated are made when the pages are built, which fails without them.
        assert "_generated/" in name or ((ROOT / page).parent / name).exists(), name
    for name in re.findall(r"`((?:jobs|tests|ringtmp|kernels|ps)/[\w./-]+)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_every_environment_variable_is_documented():
    """What the code reads or sets under a name of ours, and what it reads of launchers."""
    page = (DOCS / "reference" / "status.md").read_text()
    found = set()
    files = subprocess.run(
        ["git", "ls-files", "ringtmp", "ps", "kernels", "jobs"], cwd=ROOT, capture_output=True, text=True
    )
    for name in files.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".sh", ".sbatch") and path.is_file():
            found |= set(re.findall(r"\bRINGTMP_[A-Z_]+\b", path.read_text()))
            found |= set(re.findall(r"environ(?:\.get\(|\.pop\(|\[)\"([A-Z_]+)\"", path.read_text()))
    found -= {"PATH", "OPENBLAS_CORETYPE"}  # of benchmarks
    assert {name for name in found if f"`{name}`" not in page} == set()


def test_columns_and_events_are_documented():
    page = (DOCS / "reference" / "files.md").read_text()
    for name in (*COLUMNS, *(EVENT.names or ()), *KINDS):
        assert f"`{name}`" in page, name


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "reference" / "dependencies.md").read_text()
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        name = re.match(r"[A-Za-z0-9-]+", text)[0]
        assert name.lower() in page.lower(), name


def test_how_to_pages_are_listed():
    """Every page is in the list of its folder, so that a reader finds it."""
    for folder in ("tutorials", "how-to", "explanation"):
        index = (DOCS / folder / "index.md").read_text()
        for path in (DOCS / folder).glob("*.md"):
            assert path.stem == "index" or f"({path.name})" in index, path
    assert Path(ROOT / "docs" / "code.md").exists()

"""``python tests/support/sizes.py``: name each file, function and folder that is above the project's limits of size.

Exceptions stand in pyproject.toml under ``[tool.sizes.exceptions]``, each with its reason.
"""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from launching import ROOT

FILE_LINES, FUNCTION_LINES, FOLDER_FILES = 400, 80, 20


def functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, int]]:
    """Dotted name and length in lines, docstring included, of each function below `tree`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node.end_lineno - node.lineno + 1
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, outer)


def too_large(root: Path, names: list[str]) -> dict[str, str]:
    """What is above a limit among the files `names` below `root`: its name, and a line that says by how much.

    The name is a path, or for a function ``PATH::FUNCTION``.
    """
    found = {}
    for name in sorted(names):
        if not name.endswith(".py"):
            continue
        text = (root / name).read_text()
        lines = text.count("\n")
        if lines > FILE_LINES:
            found[name] = f"{lines} lines, {FILE_LINES} at most"
        for function, length in functions(ast.parse(text)):
            if length > FUNCTION_LINES:
                found[f"{name}::{function}"] = f"{length} lines, {FUNCTION_LINES} at most"
    for folder, number in Counter(str(Path(name).parent) for name in names).items():
        if number > FOLDER_FILES and folder != ".":
            found[folder] = f"{number} files, {FOLDER_FILES} at most"
    return found


def main() -> int:
    """Print what breaks a limit without an exception, and exceptions that nothing needs; 1 if a limit is broken."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = too_large(ROOT, [name for name in names if (ROOT / name).is_file()])
    excepted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sizes"]["exceptions"]
    for name in sorted(excepted.keys() - found.keys()):
        print(f"sizes: {name} is within the limits: remove its exception from pyproject.toml")
    broken = sorted(found.keys() - excepted.keys())
    for name in broken:
        print(f"sizes: {name} has {found[name]}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

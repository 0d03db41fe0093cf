"""The pages of the API: one for each folder, with all that its modules document.

`sphinx.ext.apidoc` makes such pages too, but keeps those of modules that are gone, and lists every attribute twice. The
pages lie in docs/reference/api, which git ignores.
"""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
API, PACKAGE = DOCS / "reference" / "api", DOCS.parent / "ringtmp"
LEFT_OUT = {"ringtmp.jobs.bench", "ringtmp.jobs.experiments"}  # programs


def folders(folder: Path, name: str) -> dict[str, list[str]]:
    """The modules of each package at and below `folder`, whose name is `name`."""
    found = {name: [f"{name}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]}
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").exists() and f"{name}.{inner.name}" not in LEFT_OUT:
            found |= folders(inner, f"{name}.{inner.name}")
    return found


def page(name: str, modules: list[str]) -> str:
    """The text of the page of a package."""
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
    for module in modules:
        lines += [module, "-" * len(module), "", f".. automodule:: {module}", "   :members:", "   :show-inheritance:"]
        lines += ["   :ignore-module-all:", ""]
    return "\n".join(lines)


def write(app: Sphinx) -> None:
    """Write the pages that have changed, and remove those of packages that are gone."""
    API.mkdir(exist_ok=True)
    found = folders(PACKAGE, "ringtmp")
    names = "\n".join(f"   {name}" for name in found)
    pages = {name: page(name, modules) for name, modules in found.items()}
    pages["index"] = f"Python modules\n==============\n\n.. toctree::\n   :maxdepth: 1\n\n{names}\n"
    for path in API.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = API / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for pages."""
    app.connect("builder-inited", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Links into the code that cannot rot: the role ``src`` finds the line of a symbol when the pages are built.

    {src}`ringtmp/ring/engine.py`               the file
    {src}`ringtmp/ring/engine.py::Engine.run`   the line where the method is defined
    {src}`ringtmp/ring/`                        the folder: a list of its files with the first line of each docstring

Text may come first: {src}`the loop <ringtmp/ring/engine.py::Engine.run>`. Each file and folder that is named becomes a
page of its own under ``source/``, so that the links work without a network. A name that does not exist is a warning,
and thereby an error of `make docs`.
"""

import ast
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)


def line_of(path: Path, symbol: str) -> int | None:
    """Line of `symbol` (``name``, ``Class.method``, a module's variable) in the Python file `path`; None: not found."""
    body = ast.parse(path.read_text()).body
    line = None
    for name in symbol.split("."):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
            if name in names:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            return None
    return line


def page_name(target: str) -> str:
    """Name of the page that shows the file or folder `target`."""
    return f"source/{target.rstrip('/')}/index" if target.endswith("/") else f"source/{target}"


class Source(ReferenceRole):
    """The role ``src``: a link to a file, a folder, or the line of a symbol."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The link; text alone, and a warning, if its target does not exist."""
        name, _, symbol = self.target.partition("::")
        path = ROOT / name
        text = self.title if self.has_explicit_title else (symbol or name)
        literal = nodes.emphasis("", text) if self.has_explicit_title else nodes.literal("", text)
        line = line_of(path, symbol) if symbol and path.is_file() else None
        if not (path.is_dir() if name.endswith("/") else path.is_file()) or (symbol and line is None):
            log.warning("src: %s does not exist", self.target, location=self.get_location())
            return [literal], []
        _targets(self.env).setdefault(self.env.docname, set()).add(name)
        # The builder knows the pages' addresses only when it writes (`resolve`).
        link = SourceLink("", "", literal, target=name, line=line, refuri="")
        return [link], []


class SourceLink(nodes.reference):
    """A link whose address is not known yet."""


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give each link of a page its address."""
    for link in list(doctree.findall(SourceLink)):
        uri = app.builder.get_relative_uri(docname, page_name(link["target"]))
        if link["line"]:
            uri += f"#L-{link['line']}"
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def _targets(env: BuildEnvironment) -> dict[str, set[str]]:
    """Files and folders that each page names."""
    if not hasattr(env, "source_targets"):
        env.source_targets = {}
    return env.source_targets


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget what the page `docname` named: it is read again."""
    _targets(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Take over what another process has read."""
    _targets(env).update({name: found for name, found in _targets(other).items() if name in docnames})


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file and folder that is named, and for each file of such a folder."""
    wanted = set().union(*_targets(app.env).values())
    for folder in [name for name in wanted if name.endswith("/")]:
        wanted.update(f"{folder}{path.name}" for path in _files(ROOT / folder))
    for target in sorted(wanted):
        body = _folder(app, target) if target.endswith("/") else _file(ROOT / target)
        yield page_name(target), {"title": target, "body": f"<h1>{html.escape(target)}</h1>\n{body}"}, "page.html"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".py" and path.name != "__init__.py")


def _folder(app: Sphinx, target: str) -> str:
    """Table of the files of a folder."""
    here, rows = page_name(target), []
    for path in _files(ROOT / target):
        uri = app.builder.get_relative_uri(here, page_name(f"{target}{path.name}"))
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        rows.append(f'<tr><td><a href="{uri}"><code>{path.name}</code></a></td><td>{html.escape(about)}</td></tr>')
    return f'<table class="table"><tbody>{"".join(rows)}</tbody></table>'


def _file(path: Path) -> str:
    form = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="highlight source")
    return highlight(path.read_text(), get_lexer_for_filename(path.name, stripnl=False), form)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the pages."""
    app.add_role("src", Source())
    app.connect("doctree-resolved", resolve)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The built pages: no warnings, no dead link, tables and pictures in them, and a page that a browser shows."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from launching import ROOT

from ringtmp.config.schema import RunConfig

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("docs"),
    pytest.mark.skipif(not find_spec("sphinx"), reason="Sphinx is not installed: pip install -e '.[docs]'"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built pages; any warning fails the build."""
    path = tmp_path_factory.mktemp("docs") / "html"
    words = ["--quiet", "--fail-on-warning", "--keep-going", "--nitpicky", "--builder", "html", "docs", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path


class Links(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets |= {found[key] for key in ("href", "src") if found.get(key)}


def test_every_link_leads_somewhere(site):
    """Links between the pages, anchors included, and all pictures, styles and scripts; none to another host's files."""
    own = (path for path in site.rglob("*.html") if "_static" not in path.parts)  # templates of the theme lie there
    pages = {path: Links(path.read_text()) for path in own}
    assert len(pages) > 80
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            name = name.partition("?")[0]
            found = (path.parent / unquote(name)).resolve() if name else path
            if not found.exists() or (anchor and found in pages and unquote(anchor) not in pages[found].anchors):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert not dead, "\n".join(dead[:40])


def text_of(site: Path, name: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / f"{name}.html").read_text())


def test_every_setting_is_there(site):
    page = text_of(site, "reference/settings")
    for key in RunConfig.model_fields:
        assert f"--{key.replace('_', '-')} (" in page, key


def test_links_into_the_code_hit_the_line(site):
    """A symbol's link leads to the line on which it is defined."""
    page = (site / "code.html").read_text()
    line = re.search(r'source/ringtmp/ring/engine\.py\.html#L-(\d+)"[^>]*><code[^>]*>(?:<[^>]+>)*Engine\.run', page)
    source = (ROOT / "ringtmp" / "ring" / "engine.py").read_text().splitlines()
    assert source[int(line[1]) - 1].strip().startswith("def run(self)")


def test_results_are_those_of_the_files(site):
    """Tables of results come from the result files: a number of each kind."""
    from ringtmp.jobs.lib.store import places

    ratio = '"ratio": 0.914'  # of exchange.json
    assert ratio in (ROOT / "jobs/bench/results/exchange.json").read_text()
    assert "0.914 (" in text_of(site, "reference/results/servers")
    table = places("balance")[0].with_suffix(".md").read_text().splitlines()[4]
    cells = [cell.strip() for cell in table.split("|") if cell.strip()]
    page = text_of(site, "reference/results/balance")
    assert all(cell in page for cell in cells)

"""Configuration of Sphinx: `make docs` builds these pages into docs/_build/html, and warnings are errors."""

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]
os.environ["NUMBA_DISABLE_JIT"] = "1"  # kernels are then plain functions, whose signatures and docstrings can be read

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "RingTMP"
author = copyright = "The RingTMP authors"
version = release = _project["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "command_reference",
    "docstrings",
    "headlines",
    "pictures",
    "result_tables",
    "settings_reference",
    "source_pages",
]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
smartquotes = False  # a flag begins with two dashes

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it
napoleon_google_docstring = False
napoleon_use_param = napoleon_use_rtype = False  # types are words, not links
napoleon_use_ivar = True
default_role = "py:obj"  # backquotes in docstrings name code: a link where it has a page
nitpick_ignore_regex = [("py:(obj|class|exc)", ".*")]
suppress_warnings = ["ref.python"]  # a short name that several modules have

html_theme = "pydata_sphinx_theme"
html_title = "RingTMP"
html_static_path = ["_static"]
html_css_files = ["ringtmp.css"]
html_show_sourcelink = False
html_copy_source = False
# Pages without neighbours have no list of neighbours; those of results, whose tables are wide, none of their headings.
_results = [f"reference/results/{path.stem}" for path in (HERE / "reference" / "results").glob("*.md")]
html_sidebars = {name: [] for name in ("code", "contributing", "changelog", "source/**")}
html_theme_options = {
    "navigation_with_keys": False,
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": {"**": ["page-toc"]} | dict.fromkeys(_results, []),
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}

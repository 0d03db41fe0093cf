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

html_theme = "pydata_sphinx_theme"
html_title = "RingTMP"
html_static_path = ["_static"]
html_css_files = ["ringtmp.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}

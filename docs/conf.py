"""How Sphinx builds the documentation: `./dev docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "imbrace-lake"
author = "the authors of imbrace-lake"
version = release = installed("imbrace-lake")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
# The anchors of sections are those of GitHub, so links work there and on the site.
myst_heading_anchors = 4
exclude_patterns = ["_ext"]
nitpicky = True
# Signatures name many types of other projects.
nitpick_ignore_regex = [("py:.*", ".*")]
# Our docstrings mark code with single backticks.
default_role = "code"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"imbrace-lake {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "source_repository": "https://github.com/imbraceltd/imbrace-lake/",
    "source_branch": "main",
    "source_directory": "docs/",
}

"""Sphinx settings; `make docs` builds with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

import vlm_lens

sys.path[:0] = [str(Path(__file__).parent / "extensions"), str(Path(__file__).parents[1])]

project = "vlm_lens"
author = "the vlm_lens authors"
copyright = "the vlm_lens authors"  # noqa: A001
version = release = vlm_lens.__version__

extensions = ["myst_parser", "shown", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "vlm_lens"
html_show_sphinx = False
html_show_search_summary = False  # empty where pages are opened as files
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["pages.js"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name` for code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False}


def _before_napoleon(app, what, name, obj, options, lines):
    """Shows indented code after a colon as code, and keeps colons in docstrings of properties.

    Docstrings write code without reST's `::` or between fences, and tables as in Markdown; Napoleon
    would read what stands before the first colon of a property's docstring as its type. A value has
    no docstring of its own, but its type's.
    """
    if what == "data":
        lines.clear()
    if "```" in lines:
        first = lines.index("```")
        last = lines.index("```", first + 1)
        code = [f"    {line}" for line in lines[first + 1 : last]]
        lines[first : last + 1] = ["::", "", *code, ""]
    table = [i for i, line in enumerate(lines) if line.startswith("|")]
    if table:
        rows = [f"    {line}" for line in lines[table[0] : table[-1] + 1]]
        lines[table[0] : table[-1] + 1] = ["::", "", *rows, ""]
    if what in ("property", "attribute"):
        lines[:] = [line.replace(": ", ":: ") for line in lines]
        return
    for i in range(len(lines) - 2):
        indent = len(lines[i]) - len(lines[i].lstrip())
        after = lines[i + 2]
        deeper = len(after) - len(after.lstrip()) >= indent + 4
        if lines[i].endswith(":") and not lines[i].endswith("::") and not lines[i + 1] and deeper:
            lines[i] += ":"


def _after_napoleon(app, what, name, obj, options, lines):
    if what in ("property", "attribute"):
        lines[:] = [line.replace(":: ", ": ") for line in lines]


def setup(app):
    """Connects the two around Napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)

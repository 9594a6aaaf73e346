"""The directive `shown`: what an expression gives, after the page's code blocks above it have run.

    ```{shown} look.over_picture(layer=2, head=2)
    ```

shows a value as a notebook would: plotly figures, pieces of HTML, or its repr. Pages without the
directive are not run. Nothing is fetched when the page is read.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from scripts.docs.examples import blocks

_PAGES: dict[str, tuple[int, dict[str, Any]]] = {}  # page -> lines that have run, its names


class Shown(Directive):
    """Runs the page up to here and shows one value."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The value as nodes."""
        page = self.state.document.current_source
        names = names_at(Path(page), self.lineno)
        value = eval(self.arguments[0], names)  # the page's own code
        depth = self.state.document.settings.env.docname.count("/")
        return as_nodes(value, "../" * depth)


def names_at(page: Path, line: int) -> dict[str, Any]:
    """The names that the code blocks above a line define, each block run once."""
    done, names = _PAGES.get(str(page), (0, {}))
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks(page):
                if done < block.line < line:
                    exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        finally:
            os.chdir(here)
    _PAGES[str(page)] = (max(done, line), names)
    return names


def _boxed(html: str) -> list[nodes.Node]:
    """HTML as wide as the page at most: what is wider, as on a phone, scrolls within it."""
    return [
        nodes.raw("", f'<div class="shown" style="overflow-x: auto">{html}</div>', format="html")
    ]


def as_nodes(value: Any, root: str = "") -> list[nodes.Node]:
    """A value as it is shown; `root` leads from the page to the documentation's first folder."""
    if hasattr(value, "to_plotly_json"):
        options = {"displayModeBar": False}
        html = value.to_html(full_html=False, include_plotlyjs=False, config=options)
        # before the figure's own script; a browser loads it once for all
        library = f'<script src="{root}_static/plotly.min.js"></script>'
        return _boxed(library + html)
    if hasattr(value, "_repr_html_"):
        return _boxed(value._repr_html_())
    return [nodes.literal_block(text=repr(value))]


def _files(app, exception) -> None:
    from plotly.offline import get_plotlyjs

    if exception is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(exist_ok=True)
        (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def setup(app) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("shown", Shown)
    app.connect("build-finished", _files)
    return {"parallel_read_safe": False}

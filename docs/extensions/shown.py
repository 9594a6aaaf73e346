"""The directive `shown`: what an expression gives, after the page's code blocks above it have run.

    ```{shown} look.over_picture(layer=2, head=2)
    ```

shows a value as a notebook would: plotly figures, pieces of HTML, or its repr. Pages without the
directive are not run. Nothing is fetched when the page is read. Figures have the page's own ground
and ink, in light and in dark: plotly's by `_static/pages.css`, SVG files because they are put into
the page instead of being linked.
"""

from __future__ import annotations

import tempfile
from contextlib import chdir
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from scripts.docs.examples import blocks
from vlm_lens.figures.figure_html import figure_html
from vlm_lens.figures.style import GROUND, INK


@dataclass
class _Run:
    """A page that runs.

    Attributes:
        folder: Where it runs, kept to the end: values are shown from files that blocks wrote.
        names: What its blocks have defined.
        done: Up to which line they have run.
    """

    folder: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)
    names: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def until(self, page: Path, line: int) -> None:
        """Runs the blocks above a line that have not run."""
        for block in blocks(page):
            if self.done < block.line < line:
                exec(compile("\n" * block.line + block.code, str(page), "exec"), self.names)
        self.done = max(self.done, line)


_PAGES: dict[str, _Run] = {}


class Shown(Directive):
    """Runs the page up to here and shows one value."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The value as nodes."""
        page = Path(self.state.document.current_source).resolve()
        run = _PAGES.setdefault(str(page), _Run())
        depth = self.state.document.settings.env.docname.count("/")
        with chdir(run.folder.name):
            run.until(page, self.lineno)
            value = eval(self.arguments[0], run.names)  # the page's own code
            return as_nodes(value, "../" * depth)


def _boxed(html: str) -> list[nodes.Node]:
    """HTML as wide as the page at most: what is wider, as on a phone, scrolls within it."""
    return [nodes.raw("", f'<div class="doc-figure">{html}</div>', format="html")]


def as_nodes(value: Any, root: str = "") -> list[nodes.Node]:
    """A value as it is shown; `root` leads from the page to the documentation's first folder."""
    if hasattr(value, "to_plotly_json"):
        # before the figure's own script; a browser loads it once for all
        library = f'<script src="{root}_static/plotly.min.js"></script>'
        return _boxed(library + figure_html(value))
    if hasattr(value, "_repr_html_"):
        return _boxed(value._repr_html_())
    return [nodes.literal_block(text=repr(value))]


def _inline(app, doctree, docname) -> None:
    """Puts SVG files into the page, with their text for those who do not see them."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            svg = (Path(app.srcdir) / image["uri"]).read_text(encoding="utf-8")
            label = f'<svg role="img" aria-label="{escape(image.get("alt", ""))}"'
            svg = svg[svg.index("<svg") :].replace("<svg", label, 1)
            svg = svg.replace(f"fill: {GROUND}", "fill: none")
            image.replace_self(_boxed(svg.replace(INK, "var(--figure-ink)")))


def _files(app, exception) -> None:
    from plotly.offline import get_plotlyjs

    if exception is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(exist_ok=True)
        (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def setup(app) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("shown", Shown)
    app.connect("doctree-resolved", _inline)
    app.connect("build-finished", _files)
    return {"parallel_read_safe": False}

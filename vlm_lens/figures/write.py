"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens.figures.figure_html import figure_page
from vlm_lens.figures.static_figure import PICTURES, draw_figure
from vlm_lens.figures.style import CONFIG, GROUND
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["write_figure"]


def write_figure(fig: go.Figure, path: str | Path, *, plotlyjs: str = "directory") -> None:
    """Writes a figure as a picture, or as an HTML file that needs no network.

    The HTML of the package's figures is light or dark, as the reader's browser prefers; a figure
    with a ground of its own (`fig.layout.paper_bgcolor`) keeps it. Pictures are light.

    Args:
        fig: The figure.
        path: The file: `.png`, `.svg` and `.pdf` are drawn by matplotlib, all else is HTML.
        plotlyjs: Where HTML finds the library that draws it: `"directory"` puts it beside the file,
            a path to a file `.js` (relative to the file) shares one.

    Raises:
        VLMLensError: A picture is asked for, and matplotlib is not installed; or the file cannot be
            written.
    """
    path = Path(path)
    if path.suffix in PICTURES:
        write_whole(path, lambda to: draw_figure(fig, to, kind=path.suffix[1:]))
        return
    library = path.with_name("plotly.min.js")
    if plotlyjs == "directory" and not library.exists():
        from plotly.offline import get_plotlyjs

        write_whole(library, get_plotlyjs())
    if fig.layout.paper_bgcolor == GROUND:
        write_whole(path, figure_page(fig, plotlyjs=plotlyjs))
    else:  # a look of its owner's
        write_whole(path, fig.to_html(include_plotlyjs=plotlyjs, config=CONFIG))

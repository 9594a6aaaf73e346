"""One picture with what a lens reads at its patches: a strip at the foot of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from PIL import Image

from vlm_lens.errors import PositionError
from vlm_lens.figures.lens_words import Words
from vlm_lens.figures.prompt_view import canvas, cell_edges, picture_uri
from vlm_lens.layout.geometry import Box, PatchGrid

__all__ = ["Panel"]

_STRIP = 0.24  # of a patch, at its foot, for what is decoded: the rest of the picture is to be seen


@dataclass(frozen=True)
class Panel:
    """A picture, its patches, and the decodings that stand on them.

    Attributes:
        words: What the lens says.
        image: Which picture of the prompt.
        grid: Its patches.
        cells: Of each patch the number of its decoding; None where nothing was decoded.
        box: What is drawn, in pixels of the picture.
        zoom: Screen pixels for one of them.
    """

    words: Words
    image: int
    grid: PatchGrid
    cells: list[list[int | None]]
    box: Box
    zoom: float

    @classmethod
    def of(cls, words: Words, image: int, grid: int | None, *, most: float = 920) -> Panel:
        """The panel of a picture.

        Args:
            words: What the lens says.
            image: Which picture of the prompt.
            grid: Which of its grids; the first of which something was decoded by default.
            most: Screen pixels that it is wide at the most.

        Raises:
            PositionError: No such picture, or nothing of it was decoded.
        """
        patches, cells = _decoded_grid(words, image, grid)
        box = canvas([patches], patches.pixels_of.picture)
        xs, ys = cell_edges(patches)
        return cls(words, image, patches, cells, box, _zoom(box, xs, ys, most))

    @property
    def width(self) -> int:
        """Screen pixels from left to right."""
        return round((self.box[2] - self.box[0]) * self.zoom)

    @property
    def height(self) -> int:
        """Screen pixels from top to bottom."""
        return round((self.box[3] - self.box[1]) * self.zoom)

    @property
    def title(self) -> str:
        """What it shows."""
        says = "decodes to" if self.words.likely else "is nearest to"
        return f"What each patch of image {self.image} {says}"

    @property
    def picture(self) -> Image.Image | None:
        """The picture, where it is known."""
        pictures = self.words.pictures
        return pictures[self.image] if self.image < len(pictures) else None

    @property
    def indices(self) -> list[int]:
        """The numbers of all decodings that are shown."""
        return [i for line in self.cells for i in line if i is not None]

    def strips(self, layer: int) -> dict[str, Any]:
        """The heat map of one layer, as keywords of plotly."""
        words, (xs, ys) = self.words, cell_edges(self.grid)
        strip = _STRIP * (ys[1] - ys[0])
        font = max(8, min(12, round(strip * self.zoom / 1.3)))
        letters = int((xs[1] - xs[0]) * self.zoom / (0.7 * font))
        depth = 10 if self.grid.rows * self.grid.cols <= 100 else 5
        text = None
        if letters >= 3:
            text = _in_strips(
                self.cells, lambda i: words.top(layer, i, most=letters), above="", missing=""
            )
        return {
            "x": xs,
            "y": [y for top, foot in pairwise(ys) for y in (top, foot - strip)] + [ys[-1]],
            "z": _in_strips(
                self.cells, lambda i: float(words.top_probs[layer, i, 0]), above=None, missing=None
            ),
            "text": text,
            "hovertext": _in_strips(  # the whole patch can be pointed at
                self.cells, lambda i: words.hover(layer, i, depth), above=..., missing="not decoded"
            ),
            "texttemplate": "%{text}" if text else None,
            "textfont": {"size": font},
            "hovertemplate": "%{hovertext}<extra></extra>",
            "hoverongaps": True,
            "xgap": 1,
        }

    def draw_picture(self, fig: go.Figure, row: int | None = None, col: int | None = None) -> None:
        """The picture under the strips, and what the model does not see of it dimmed."""
        size, there = self.grid.pixels_of.picture, {"row": row, "col": col}
        if self.picture is not None:
            axes = {} if row else {"xref": "x", "yref": "y"}
            fig.add_layout_image(
                source=picture_uri(self.picture, most=1024), x=0, y=0, sizex=size[0],
                sizey=size[1], xanchor="left", yanchor="top", sizing="stretch", layer="below",
                **axes, **there,
            )  # fmt: skip
        (x0, y0, x1, y1), (w, h) = self.grid.pixels_of.seen, size
        bands = [(0, 0, x0, h), (x1, 0, w, h), (x0, 0, x1, y0), (x0, y1, x1, h)]
        for left, top, right, bottom in bands:
            if right - left > 1e-6 and bottom - top > 1e-6:
                fig.add_shape(
                    type="rect", x0=left, y0=top, x1=right, y1=bottom, line_width=0,
                    fillcolor="rgba(110,110,110,0.78)", name="not seen by the model", **there,
                )  # fmt: skip

    def fit_axes(self, fig: go.Figure, row: int | None = None, col: int | None = None) -> None:
        """Axes that show the picture as it is, without ticks."""
        plain = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
        box, there = self.box, {"row": row, "col": col}
        plain["constrain"] = "domain"
        fig.update_xaxes(range=[box[0], box[2]], constraintoward="left", **plain, **there)
        anchor = fig.get_subplot(row, col).xaxis.plotly_name.replace("axis", "") if row else "x"
        fig.update_yaxes(
            range=[box[3], box[1]], scaleanchor=anchor, constraintoward="top", **plain, **there
        )


def _in_strips(
    cells: list[list[int | None]], show: Callable[[int], Any], *, above: Any, missing: Any
) -> list[list[Any]]:
    """Rows for the part of a patch above its strip, and for the strip, of each row of patches.

    Args:
        cells: The number of each patch's decoding; None where nothing was decoded.
        show: What stands in the strip.
        above: What stands above it; the same if it is `...`.
        missing: What stands in the strip where nothing was decoded.
    """
    rows = []
    for line in cells:
        strip = [missing if i is None else show(i) for i in line]
        rows += [strip if above is ... else [above] * len(line), strip]
    return rows


def _decoded_grid(
    words: Words, image: int, number: int | None
) -> tuple[PatchGrid, list[list[int | None]]]:
    """A grid of a picture, and for each of its cells the index of its decoding, if any."""
    space = words.layout.image[image].space(words.space)
    space.grid(number or 0)
    index = {pair: i for i, pair in enumerate(words.pairs)}
    for grid in space.grids if number is None else [space.grid(number)]:
        rows, cols = range(grid.rows), range(grid.cols)
        cells = [[index.get((grid.row, grid.patch(r, c))) for c in cols] for r in rows]
        if any(i is not None for line in cells for i in line):
            return grid, cells
    raise PositionError(
        f"The lens decoded no position of image {image}: leave at= out, or use at=Images() or "
        f"at=Patches({image})."
    )


def _zoom(box: Box, xs: list[float], ys: list[float], most: float) -> float:
    """Screen pixels for one pixel of the picture: room for a token in each patch, up to a limit."""
    wanted = max(70 / (xs[1] - xs[0]), 60 / (ys[1] - ys[0]), 420 / (box[2] - box[0]))
    return min(wanted, most / (box[2] - box[0]), 780 / (box[3] - box[1]))

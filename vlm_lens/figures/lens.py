"""What a lens has seen, as figures: layers by positions, and over a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from vlm_lens.errors import PositionError
from vlm_lens.figures.lens_words import Words
from vlm_lens.figures.prompt_view import canvas, cell_edges, picture_uri
from vlm_lens.figures.style import GREY, SEQUENTIAL, style
from vlm_lens.layout.geometry import Box, PatchGrid

_TOKEN_PX = 58  # width of a column with a token in it
_LAYER_PX = 30
_FEW = 14  # up to so many positions, patches too have columns of their own: a page is not wider
_RUN_PX = (110, 330)  # least and most width of one picture's patches, side by side
_STRIP = 0.24  # of a patch, at its foot, for what is decoded: the rest of the picture is to be seen


def lens_figure(words: Words) -> go.Figure:
    """Layers by positions: in each place the top token, coloured by its probability.

    Block 0 is at the bottom. In long prompts the patches of a picture stand side by side in narrow
    columns without text, so that the words around them stay legible; `lens_image_figure` shows them
    in their places. Where one position was decoded, columns are ranks instead: the most likely
    tokens of each layer.

    Args:
        words: What a lens says of a prompt.

    Returns:
        A figure with one heat map for each stretch of text or patches.
    """
    if len(words.positions) == 1:
        return _ranks_figure(words)
    fig = go.Figure()
    ticks: list[tuple[float, str]] = []
    left, borders = 0.0, []
    for image, indices in words.stretches():
        n = len(indices)
        compact = image is not None and len(words.positions) > _FEW
        width = min(max(n * 4, _RUN_PX[0]), _RUN_PX[1]) / _TOKEN_PX if compact else n
        xs = [left + width * i / n for i in range(n + 1)]
        depth = 10 if not compact else 3 if n <= 600 else 1  # hover texts add up to megabytes
        _add_layers(
            fig,
            words,
            xs,
            z=[[float(words.top_probs[la, i, 0]) for i in indices] for la in words.layers],
            text=None if compact else [[words.top(la, i) for i in indices] for la in words.layers],
            hover=[[words.hover(la, i, depth) for i in indices] for la in words.layers],
        )
        if compact:
            ticks.append((left + width / 2, words.run(image, indices)))
            borders += [left, left + width]
        else:
            at = words.positions
            ticks += [(left + k + 0.5, words.column(at[i])) for k, i in enumerate(indices)]
        left += width
    for at in borders:
        fig.add_vline(x=at, line={"color": GREY, "width": 1})
    fig.update_xaxes(
        range=[0, left], tickvals=[t for t, _ in ticks], ticktext=[t for _, t in ticks]
    )
    return _by_layer(fig, words, left, x="position, and the token read there")


def lens_image_figure(words: Words, *, image: int = 0, grid: int | None = None) -> go.Figure:
    """Decodings over a picture: at the foot of each patch its top token, coloured by probability.

    The strips cover a quarter of the picture and leave the rest as it is.

    Args:
        words: What a lens says at the picture's positions.
        image: Which picture of the prompt.
        grid: Which of the picture's grids, on families that also cut it into tiles; by default
            the first of which something was decoded.

    Returns:
        A figure with one heat map a layer, of which a slider shows one; the last at first.

    Raises:
        PositionError: The prompt has no such picture, no position of it holds a single patch, or
            the lens decoded none of them.
    """
    patches, cells = _decoded_grid(words, image, grid)
    xs, ys = cell_edges(patches)
    size = patches.pixels_of.picture
    box = canvas([patches], size)
    zoom = _zoom(box, xs, ys)
    strip = _STRIP * (ys[1] - ys[0])
    font = max(8, min(12, round(strip * zoom / 1.3)))
    letters = int((xs[1] - xs[0]) * zoom / (0.7 * font))
    depth = 10 if patches.rows * patches.cols <= 100 else 5
    edges = [y for top, foot in pairwise(ys) for y in (top, foot - strip)] + [ys[-1]]
    fig = go.Figure()
    for la in words.layers:
        fig.add_heatmap(
            x=xs,
            y=edges,
            z=_in_strips(
                cells, lambda i, la=la: float(words.top_probs[la, i, 0]), above=None, missing=None
            ),
            text=_in_strips(
                cells, lambda i, la=la: words.top(la, i, most=letters), above="", missing=""
            )
            if letters >= 3
            else None,
            hovertext=_in_strips(  # the whole patch can be pointed at
                cells, lambda i, la=la: words.hover(la, i, depth), above=..., missing="not decoded"
            ),
            texttemplate="%{text}" if letters >= 3 else None,
            textfont={"size": font},
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=True,
            coloraxis="coloraxis",
            xgap=1,
            visible=la == words.layers[-1],
            name=words.layer(la),
        )
    picture = words.pictures[image] if image < len(words.pictures) else None
    if picture is not None:
        fig.add_layout_image(
            source=picture_uri(picture, most=1024), x=0, y=0, sizex=size[0], sizey=size[1],
            xref="x", yref="y", xanchor="left", yanchor="top", sizing="stretch", layer="below",
        )  # fmt: skip
    _dim_unseen(fig, patches.pixels_of.seen, size)
    known = "" if picture is not None else "; the picture itself is not known"
    style(
        fig,
        title=f"What each patch of image {image} decodes to"
        if words.likely
        else f"What each patch of image {image} is nearest to",
        subtitle=f"{words.subtitle}; strips: top token, coloured by its {words.measure}{known}",
        width=max(480, round((box[2] - box[0]) * zoom) + 130),
        height=round((box[3] - box[1]) * zoom) + 200,
    )
    plain = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
    fig.update_xaxes(range=[box[0], box[2]], constrain="domain", **plain)
    fig.update_yaxes(range=[box[3], box[1]], scaleanchor="x", constrain="domain", **plain)
    fig.update_layout(
        coloraxis=_colours(words, (i for line in cells for i in line if i is not None),
                           SEQUENTIAL),
        margin={"l": 20, "r": 110, "t": 90, "b": 110},
        hoverlabel_align="left",
        sliders=[_slider(words)],
    )  # fmt: skip
    return fig


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


def _ranks_figure(words: Words) -> go.Figure:
    """One position: layers by rank."""
    position = words.positions[0]
    ranks = range(min(10, words.top_ids.shape[-1]))
    fig = go.Figure()
    _add_layers(
        fig,
        words,
        [k - 0.5 for k in range(len(ranks) + 1)],
        z=[[float(words.top_probs[la, 0, k]) for k in ranks] for la in words.layers],
        text=[[words.top(la, 0, rank=k) for k in ranks] for la in words.layers],
        hover=[[words.hover(la, 0)] * len(ranks) for la in words.layers],
    )
    fig.update_xaxes(tickvals=list(ranks), ticktext=[str(k) for k in ranks])
    where = f"rank at position {position}, {words.token(position)} (0: the top token)"
    return _by_layer(fig, words, float(len(ranks)), x=where)


def _add_layers(
    fig: go.Figure,
    words: Words,
    xs: list[float],
    *,
    z: list[list[float]],
    text: list[list[str]] | None,
    hover: list[list[str]],
) -> None:
    """A heat map with one row a layer; without text its columns touch."""
    fig.add_heatmap(
        x=xs,
        y=[la - 0.5 for la in range(len(words.layers) + 1)],
        z=z,
        text=text,
        hovertext=hover,
        texttemplate=None if text is None else "%{text}",
        textfont={"size": 11},
        hovertemplate="%{hovertext}<extra></extra>",
        coloraxis="coloraxis",
        xgap=0 if text is None else 1,
        ygap=0 if text is None else 1,
    )


def _by_layer(fig: go.Figure, words: Words, columns: float, *, x: str) -> go.Figure:
    """Axis of layers, colours, title and size, as both heat maps by layer have them."""
    names = [words.layer(la) for la in words.layers]
    style(
        fig,
        title=words.title,
        subtitle=f"{words.subtitle}; colour: {words.measure} of the token shown",
        x=x,
        y=f"{words.of_layers} (0-based, first below)",
        width=max(520, round(columns * _TOKEN_PX) + 200),
        height=len(names) * _LAYER_PX + 210,
    )
    plain = {"showgrid": False, "zeroline": False}
    fig.update_xaxes(tickangle=0, tickfont={"size": 11}, **plain)
    fig.update_yaxes(tickvals=list(words.layers), ticktext=names, **plain)
    coloraxis = _colours(words, range(len(words.positions)), SEQUENTIAL)
    fig.update_layout(coloraxis=coloraxis, hoverlabel_align="left")
    return fig


def _decoded_grid(
    words: Words, image: int, number: int | None
) -> tuple[PatchGrid, list[list[int | None]]]:
    """A grid of a picture, and for each of its cells the index of its decoding, if any."""
    space = words.layout.image[image].text
    space.grid(number or 0)
    index = {position: i for i, position in enumerate(words.positions)}
    for grid in space.grids if number is None else [space.grid(number)]:
        rows, cols = range(grid.rows), range(grid.cols)
        cells = [[index.get(grid.patch(r, c)) for c in cols] for r in rows]
        if any(i is not None for line in cells for i in line):
            return grid, cells
    raise PositionError(
        f"The lens decoded no position of image {image}: leave at= out, or use at=Images() or "
        f"at=Patches({image})."
    )


def _colours(words: Words, indices: Iterable[int], scale: str | list) -> dict:
    """Colours from 0 to the largest value shown, so that faint decodings differ too."""
    top = max(float(words.top_probs[:, list(indices), 0].max()), 1e-6)
    percent = ".0%" if top >= 0.05 else ".1%"
    bar = {
        "title": {"text": words.measure, "side": "right"},
        "thickness": 12,
        "tickformat": percent if words.likely else ".2f",
        "outlinewidth": 0,
    }
    return {"cmin": 0, "cmax": top, "colorscale": scale, "colorbar": bar}


def _zoom(box: Box, xs: list[float], ys: list[float]) -> float:
    """Screen pixels for one pixel of the picture: room for a token in each patch, up to a limit."""
    wanted = max(70 / (xs[1] - xs[0]), 60 / (ys[1] - ys[0]), 420 / (box[2] - box[0]))
    return min(wanted, 920 / (box[2] - box[0]), 780 / (box[3] - box[1]))


def _dim_unseen(fig: go.Figure, seen: Box, size: tuple[int, int]) -> None:
    (x0, y0, x1, y1), (w, h) = seen, size
    bands = [(0, 0, x0, h), (x1, 0, w, h), (x0, 0, x1, y0), (x0, y1, x1, h)]
    for left, top, right, bottom in bands:
        if right - left > 1e-6 and bottom - top > 1e-6:
            fig.add_shape(
                type="rect", x0=left, y0=top, x1=right, y1=bottom, line_width=0,
                fillcolor="rgba(110,110,110,0.78)", name="not seen by the model",
            )  # fmt: skip


def _slider(words: Words) -> dict:
    """Shows the heat map of one layer and hides the others."""
    steps = [
        {
            "method": "update",
            "label": words.layer(la),
            "args": [{"visible": [la == other for other in words.layers]}],
        }
        for la in words.layers
    ]
    return {
        "active": len(words.layers) - 1,
        "steps": steps,
        "currentvalue": {"prefix": f"{words.of_layers} ", "xanchor": "left"},
        "x": 0,
        "len": 1,
        "pad": {"t": 20, "l": 4, "r": 4},
        "bgcolor": "rgba(128,128,128,0.3)",
        "ticklen": 4,
    }

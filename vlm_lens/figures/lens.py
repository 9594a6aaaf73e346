"""What a lens has seen, as figures: layers by positions, and over a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.cell_text import legible_cells
from vlm_lens.figures.lens_panel import Panel
from vlm_lens.figures.lens_words import Words
from vlm_lens.figures.style import GREY, SEQUENTIAL, style

_TOKEN_PX = 58  # width of a column with a token in it
_LAYER_PX = 30
_FEW = 14  # up to so many positions, patches too have columns of their own: a page is not wider
_RUN_PX = (110, 330)  # least and most width of one picture's patches, side by side
_BAR_PX = 75  # for a colour bar
_SUBTITLE_PX = 570  # for the line below the title
_BESIDE_PX = 265  # a picture's width where several stand side by side


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
    for kind, indices in words.stretches():
        n = len(indices)
        compact = kind.medium is not None and len(words.positions) > _FEW
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
            ticks.append((left + width / 2, words.run(kind, indices)))
            borders += [left, left + width]
        else:
            ticks += [(left + k + 0.5, words.column(i)) for k, i in enumerate(indices)]
        left += width
    for at in borders:
        fig.add_vline(x=at, line={"color": GREY, "width": 1})
    fig.update_xaxes(
        range=[0, left], tickvals=[t for t, _ in ticks], ticktext=[t for _, t in ticks]
    )
    return _by_layer(fig, words, left, x="position, and the token read there")


def lens_image_figure(
    words: Words, *, image: int = 0, grid: int | None = None, first: int = -1
) -> go.Figure:
    """Decodings over a picture: at the foot of each patch its top token, coloured by probability.

    The strips cover a quarter of the picture and leave the rest as it is.

    Args:
        words: What a lens says at the picture's positions.
        image: Which picture of the prompt.
        grid: Which of the picture's grids, on families that also cut it into tiles; by default
            the first of which something was decoded.
        first: The number of the layer that is shown at first.

    Returns:
        A figure with one heat map a layer, of which a slider shows one.

    Raises:
        PositionError: The prompt has no such picture, no position of it holds a single patch, or
            the lens decoded none of them.
    """
    panel, first = Panel.of(words, image, grid), first % len(words.layers)
    fig = go.Figure()
    for la in words.layers:
        fig.add_heatmap(
            **panel.strips(la), coloraxis="coloraxis", visible=la == first,
            name=words.layer(la),
        )  # fmt: skip
    panel.draw_picture(fig)
    known = "" if panel.picture is not None else "; the picture itself is not known"
    style(
        fig,
        title=panel.title,
        subtitle=f"{words.subtitle}; strips: top token, coloured by its {words.measure}{known}",
        width=max(panel.width + 150, _SUBTITLE_PX),
        height=panel.height + 200,
    )
    panel.fit_axes(fig)
    fig.update_layout(
        coloraxis=_colours(words, panel.indices, SEQUENTIAL),
        margin={"l": 20, "r": 70, "t": 90, "b": 110},
        hoverlabel_align="left",
        sliders=[layer_slider(words, [[la] for la in words.layers], first)],
    )
    return legible_cells(fig)


def lens_comparison_figure(
    words: Mapping[str, Words],
    *,
    image: int = 0,
    grid: int | None = None,
    first: int = -1,
    columns: int = 2,
) -> go.Figure:
    """Several lenses over the same picture, with one slider for the layer.

    Args:
        words: What each lens says, by the lens's name; of the same layers and positions.
        image: Which picture of the prompt.
        grid: Which of its grids; see `lens_image_figure`.
        first: The number of the layer that is shown at first.
        columns: How many stand side by side.

    Raises:
        PositionError: As `lens_image_figure`.
    """
    one = next(iter(words.values()))
    first = first % len(one.layers)
    rows = -(-len(words) // columns)
    panels = {n: Panel.of(w, image, grid, most=_BESIDE_PX) for n, w in words.items()}
    measures = list(dict.fromkeys(w.measure for w in words.values()))
    any_panel = next(iter(panels.values()))
    fig = make_subplots(
        rows, columns, subplot_titles=[escape(n, quote=False) for n in words],
        horizontal_spacing=0.03, vertical_spacing=34 / (rows * (any_panel.height + 34)),
    )  # fmt: skip
    for i, (name, mine) in enumerate(words.items()):
        row, col = divmod(i, columns)
        number = measures.index(mine.measure)
        for la in mine.layers:
            fig.add_heatmap(
                **panels[name].strips(la), coloraxis=f"coloraxis{number + 1 if number else ''}",
                visible=la == first, name=name, row=row + 1, col=col + 1,
            )  # fmt: skip
        panels[name].draw_picture(fig, row + 1, col + 1)
        panels[name].fit_axes(fig, row + 1, col + 1)
    for i in range(len(words), rows * columns):
        row, col = divmod(i, columns)
        fig.update_xaxes(visible=False, row=row + 1, col=col + 1)
        fig.update_yaxes(visible=False, row=row + 1, col=col + 1)
    drawn = columns * (any_panel.width + 12)  # without margins
    style(
        fig,
        title=f"What lenses read at the patches of image {image}",
        subtitle=f"{escape(one.model)}; strips: top token of each lens",
        width=drawn + 50 + _BAR_PX * len(measures),
        height=rows * (any_panel.height + 34) + 220,
    )
    axes = {}
    for number, measure in enumerate(measures):
        mine = [n for n, w in words.items() if w.measure == measure]
        top = max((_colours(words[n], panels[n].indices, SEQUENTIAL) for n in mine),
                  key=lambda axis: axis["cmax"])  # fmt: skip
        top["colorbar"] |= {"x": 1.02 + _BAR_PX * number / drawn, "len": 0.8}
        axes[f"coloraxis{number + 1 if number else ''}"] = top
    n_layers = len(one.layers)
    shown = [[i * n_layers + la for i in range(len(words))] for la in one.layers]
    fig.update_layout(
        **axes,
        margin={"l": 20, "r": 30 + _BAR_PX * len(measures), "t": 110, "b": 100},
        hoverlabel_align="left",
        sliders=[layer_slider(one, shown, first)],
    )
    return legible_cells(fig)


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
    where = f"rank at position {position}, {words.token(0)} (0: the top token)"
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
    return legible_cells(fig)


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


def layer_slider(words: Words, shown: Sequence[Sequence[int]], first: int) -> dict:
    """A slider over layers.

    Args:
        words: What the layers are called.
        shown: Of each layer the traces that are seen; all others are hidden.
        first: The number of the layer at which it stands at first.
    """
    total = sum(len(traces) for traces in shown)
    steps = [
        {
            "method": "update",
            "label": words.layer(la),
            "args": [{"visible": [i in traces for i in range(total)]}],
        }
        for la, traces in zip(words.layers, shown, strict=True)
    ]
    return {
        "active": first,
        "steps": steps,
        "currentvalue": {"prefix": f"{words.of_layers} ", "xanchor": "left"},
        "x": 0,
        "len": 1,
        "pad": {"t": 20, "l": 4, "r": 4},
        "bgcolor": "rgba(128,128,128,0.3)",
        "ticklen": 4,
    }

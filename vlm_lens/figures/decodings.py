"""Decoded tokens by layer: a column a task, a panel a source, the token written in each cell."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.cell_text import legible_cells
from vlm_lens.figures.prompt_view import visible
from vlm_lens.figures.style import SEQUENTIAL, style
from vlm_lens.terms import Layer, examples_of, layer_name, layer_ticks, short_names

__all__ = ["commonest_tokens", "vector_tokens"]

_LETTERS = 8


def vector_tokens(table: pd.DataFrame) -> go.Figure:
    """The most likely token of each mean vector, by layer.

    Args:
        table: Rows with `task`, `source`, `layer`, `token` and `prob`, the likeliest first.

    Returns:
        The figure; the next tokens are shown by pointing.
    """
    return _cells(
        table, "prob", title="What the mean vector decodes to",
        subtitle="The most likely token; colour: its probability",
        bar="probability",
    )  # fmt: skip


def commonest_tokens(table: pd.DataFrame) -> go.Figure:
    """The token that is most often the most likely of a single run, by layer.

    Args:
        table: Rows with `task`, `source`, `layer`, `token` and `share`, the commonest first.

    Returns:
        The figure; other tokens are shown by pointing.
    """
    return _cells(
        table, "share", title="What single prompts decode to",
        subtitle="The commonest first token over prompts; colour: the share of prompts",
        bar="share of prompts",
    )  # fmt: skip


def _cells(table: pd.DataFrame, value: str, *, title: str, subtitle: str, bar: str) -> go.Figure:
    tasks = list(dict.fromkeys(table["task"]))
    sources = list(dict.fromkeys(table["source"]))
    layers = list(dict.fromkeys(table["layer"]))
    short = short_names(tasks)
    fig = make_subplots(
        rows=1, cols=len(sources), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=list(map(examples_of, sources)),
    )  # fmt: skip
    groups = {key: cell for key, cell in table.groupby(["source", "task", "layer"], sort=False)}
    for col, source in enumerate(sources, 1):
        cells = [[groups[source, task, layer] for task in tasks] for layer in layers]
        fig.add_heatmap(
            x=[short[task] for task in tasks],
            y=list(range(len(layers))),
            z=[[cell[value].iloc[0] for cell in row] for row in cells],
            text=[[_token(cell["token"].iloc[0], _LETTERS) for cell in row] for row in cells],
            customdata=[
                [_hover(cell, layer, value) for cell in row]
                for layer, row in zip(layers, cells, strict=True)
            ],
            texttemplate="%{text}",
            textfont={"size": 11},
            hovertemplate=f"<b>%{{x}}, {source}</b>, %{{customdata}}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=1,
            col=col,
        )
    wide = len(sources) * len(tasks) * 64 + 200
    style(fig, title=title, subtitle=subtitle, height=200 + 30 * len(layers), width=max(wide, 480))
    fig.update_annotations(font_size=13)
    fig.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1,
            "colorbar": {"title": {"text": bar, "side": "right"}, "thickness": 12,
                         "outlinewidth": 0},
        },
        margin_t=104,
        hoverlabel_align="left",
    )  # fmt: skip
    fig.update_xaxes(showgrid=False, tickangle=0)
    fig.update_yaxes(showgrid=False, zeroline=False, **layer_ticks(layers))
    fig.update_yaxes(title_text="output of block (0-based)", col=1)
    return legible_cells(fig)


def _hover(cell: pd.DataFrame, layer: Layer, value: str) -> str:
    lines = zip(cell["token"][:8], cell[value][:8], strict=True)
    tokens = (f"{share:6.1%}  {escape(repr(token))}" for token, share in lines)
    return "<br>".join([layer_name(layer), *tokens])


def _token(token: str, most: int) -> str:
    return escape(visible(token.strip() or token, most), quote=False)

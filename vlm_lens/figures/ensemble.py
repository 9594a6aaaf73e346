"""Accuracy against the number of examples: instruction, examples, and both together."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import GREY, PALETTE, fade, style
from vlm_lens.terms import AVERAGED, ENSEMBLE, EXAMPLES, IN_CONTEXT, INSTRUCTION, MEAN

__all__ = ["ensemble_curves"]

_COLOURS = {EXAMPLES: PALETTE["blue"], ENSEMBLE: PALETTE["vermillion"]}
_MEANINGS = {
    AVERAGED: ("vectors of several prompts, averaged", "examples in all averaged prompts"),
    IN_CONTEXT: ("one prompt of n examples", "examples in the prompt"),
}


def ensemble_curves(table: pd.DataFrame, *, layer: int) -> go.Figure:
    """The mean over tasks against n, one panel a meaning of n.

    Args:
        table: Rows with `method`, `meaning`, `n`, `task`, `accuracy`, and `sd` over seeds.
        layer: The 0-based block that is patched.

    Returns:
        The figure; bands are one standard deviation over seeds, the dashed line the instruction.
    """
    table = table[table["task"] == MEAN]
    meanings = [m for m in _MEANINGS if (table["meaning"] == m).any()]
    fig = make_subplots(
        rows=1, cols=len(meanings), shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[_MEANINGS[m][0] for m in meanings],
    )  # fmt: skip
    instruction = float(table.loc[table["method"] == INSTRUCTION, "accuracy"].iloc[0])
    for col, meaning in enumerate(meanings, 1):
        place = {"row": 1, "col": col}
        ends = table.loc[table["meaning"] == meaning, "n"]
        for method, colour in _COLOURS.items():
            mine = table[(table["method"] == method) & (table["meaning"] == meaning)].sort_values(
                "n"
            )
            spread = mine["sd"].fillna(0)
            hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                      "showlegend": False, "legendgroup": method}  # fmt: skip
            fig.add_scatter(x=mine["n"], y=mine["accuracy"] - spread, **hidden, **place)
            fig.add_scatter(
                x=mine["n"], y=mine["accuracy"] + spread, fill="tonexty",
                fillcolor=fade(colour, 0.22), **hidden, **place,
            )  # fmt: skip
            fig.add_scatter(
                x=mine["n"], y=mine["accuracy"], name=method, legendgroup=method,
                mode="lines+markers", line={"color": colour, "width": 2.4}, customdata=spread,
                showlegend=col == 1, **place,
                hovertemplate=f"<b>{method}</b>, n = %{{x}}<br>accuracy %{{y:.3f}} (sd over seeds "
                "%{customdata:.3f})<extra></extra>",
            )  # fmt: skip
        fig.add_scatter(
            x=[ends.min(), ends.max()], y=[instruction] * 2, name=INSTRUCTION, mode="lines",
            legendgroup=INSTRUCTION, showlegend=col == 1, hoverinfo="name+y",
            line={"color": GREY, "width": 2, "dash": "dash"}, **place,
        )  # fmt: skip
        fig.update_xaxes(
            title_text=_MEANINGS[meaning][1], tickvals=sorted(set(ends)), showgrid=False,
            zeroline=False, **place,
        )  # fmt: skip
    style(
        fig, title="Instruction, examples, and both",
        subtitle=f"Patched after block {layer} (0-based); test rows, mean over "
        "tasks and seeds; bands: one standard deviation over seeds",
        height=440,
    )  # fmt: skip
    fig.update_annotations(font_size=13)
    fig.update_yaxes(rangemode="tozero", tickformat=".2f", zeroline=False)
    fig.update_yaxes(title_text="accuracy (prefix rule)", col=1)
    fig.update_layout(
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}, margin_t=104
    )
    return fig

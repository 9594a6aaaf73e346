"""Figures of the recipes: bars by task, the phase curves."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    from vlm_lens.recipes.phase_analysis import PhaseResult
    from vlm_lens.recipes.transfer import TransferResult

__all__ = ["phase_curves", "transfer_bars"]

_METHOD_COLOURS = {
    "No Context": GREY,
    "Prompt": PALETTE["orange"],
    "Patch": PALETTE["blue"],
    "Wrong task, same domain": PALETTE["vermillion"],
    "Wrong task, other domain": PALETTE["purple"],
    "Random vector": PALETTE["sky"],
    "Majority answer": fade(GREY, 0.4),
}
_PHASE_COLOURS = {
    "input": PALETTE["orange"],
    "task": PALETTE["green"],
    "answer": PALETTE["blue"],
}


def transfer_bars(result: TransferResult) -> go.Figure:
    """Test accuracy by task, one bar a method, with bootstrap intervals.

    Args:
        result: The result of CrossModalPatch.

    Returns:
        The figure.
    """
    table = result.table
    fig = go.Figure()
    for method, colour in _METHOD_COLOURS.items():
        mine = table[table["method"] == method]
        if mine.empty:
            continue
        fig.add_bar(
            x=mine["task"],
            y=mine["accuracy"],
            name=method,
            marker_color=colour,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": mine["high"] - mine["accuracy"],
                "arrayminus": mine["accuracy"] - mine["low"],
                "thickness": 1,
                "width": 2,
                "color": GREY,
            },
            customdata=mine[["strict", "queries", "low", "high"]],
            hovertemplate=(
                f"<b>{method}</b>, %{{x}}<br>accuracy %{{y:.3f}} "
                "(95 % %{customdata[2]:.3f} to %{customdata[3]:.3f})<br>"
                "strict %{customdata[0]:.3f}, %{customdata[1]} queries<extra></extra>"
            ),
        )
    style(
        fig,
        title=f"{_arrow(result)} transfer",
        subtitle="Test rows; mean over seeds; lines: 95 % bootstrap interval over queries",
        y="accuracy (prefix rule)",
        height=470,
    )
    fig.update_layout(
        barmode="group",
        bargap=0.18,
        bargroupgap=0.04,
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
    )
    fig.update_yaxes(range=[0, 1.02], tickformat=".1f")
    fig.update_xaxes(showgrid=False)
    return fig


def phase_curves(result: PhaseResult) -> go.Figure:
    """The three tokens' renormalised probabilities by layer, with 25-75 % bands.

    Args:
        result: The result of PhaseAnalysis.

    Returns:
        The figure.
    """
    table, values = result.table, result.values
    fig = go.Figure()
    said = {
        "input": f"input {values['input_token']!r}",
        "task": f"task {values['task_token']!r}",
        "answer": "answer",
    }
    for phase, colour in _PHASE_COLOURS.items():
        band = {"x": table["layer"], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        fig.add_scatter(y=table[f"{phase}_low"], showlegend=False, legendgroup=phase, **band)
        fig.add_scatter(
            y=table[f"{phase}_high"],
            showlegend=False,
            legendgroup=phase,
            fill="tonexty",
            fillcolor=fade(colour, 0.2),
            **band,
        )
    for phase, colour in _PHASE_COLOURS.items():
        fig.add_scatter(
            x=table["layer"],
            y=table[phase],
            name=said[phase],
            legendgroup=phase,
            mode="lines+markers",
            line={"color": colour, "width": 2.6},
            customdata=table[["where", f"{phase}_rank"]],
            hovertemplate=(
                f"<b>{said[phase]}</b><br>%{{customdata[0]}}: %{{y:.3f}}<br>"
                "median rank in the vocabulary %{customdata[1]:.0f}<extra></extra>"
            ),
        )
    start = 0
    for phase, run in groupby(table["phase"]):
        end = start + len(list(run))
        fig.add_vrect(
            x0=start - 0.5,
            x1=end - 0.5,
            fillcolor=fade(_PHASE_COLOURS[phase], 0.09),
            line_width=0,
            layer="below",
            annotation={"text": phase, "yref": "paper", "y": 1.0, "yanchor": "top"},
            annotation_position="top",
        )
        start = end
    style(
        fig,
        title=f"{values['task']}, {values['modality']} examples",
        subtitle=f"Last delimiter; mean and 25-75 % band over {values['runs']} prompts",
        x="layer: 0 is the embedding, k the output of block k - 1",
        y="probability among three tokens",
        height=420,
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0})
    fig.update_yaxes(range=[0, 1.12], tickformat=".1f", dtick=0.2)
    dtick = 1 if len(table) <= 20 else 4
    fig.update_xaxes(range=[-0.5, len(table) - 0.5], dtick=dtick, showgrid=False)
    return fig


def _arrow(result: TransferResult) -> str:
    return f"{result.values['source']} → {result.values['query']}"

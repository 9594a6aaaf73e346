"""Every method and control of a transfer on one axis: a point a task, and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    from vlm_lens.recipes.parts.transfer_result import TransferResult

__all__ = ["methods_figure"]

_MEAN = "mean"


def methods_figure(result: TransferResult) -> go.Figure:
    """Accuracy of each method and control: small points are tasks, the large one is their mean.

    Args:
        result: The result of CrossModalPatch.

    Returns:
        The figure; lines are 95 % bootstrap intervals over queries.
    """
    table = result.table
    methods = list(dict.fromkeys(table["method"]))
    tasks = table[table["task"] != _MEAN]
    mean = table[table["task"] == _MEAN]
    fig = go.Figure()
    fig.add_scatter(
        x=tasks["accuracy"],
        y=tasks["method"],
        mode="markers",
        name="one task",
        marker={"color": fade(PALETTE["sky"], 0.7), "size": 8},
        customdata=tasks[["task", "strict", "balanced"]],
        hovertemplate="<b>%{y}</b>, %{customdata[0]}<br>accuracy %{x:.3f}, strict "
        "%{customdata[1]:.3f}, balanced %{customdata[2]:.3f}<extra></extra>",
    )
    fig.add_scatter(
        x=mean["accuracy"],
        y=mean["method"],
        mode="markers",
        name="mean over tasks",
        marker={"color": PALETTE["vermillion"], "size": 11, "symbol": "diamond"},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": mean["high"] - mean["accuracy"],
            "arrayminus": mean["accuracy"] - mean["low"],
            "thickness": 2,
            "width": 5,
            "color": PALETTE["vermillion"],
        },
        customdata=mean[["low", "high", "balanced"]],
        hovertemplate="<b>%{y}</b>, mean over tasks<br>accuracy %{x:.3f} (95 % %{customdata[0]:.3f}"
        " to %{customdata[1]:.3f}), balanced %{customdata[2]:.3f}<extra></extra>",
    )
    style(
        fig,
        title=f"Methods and controls, {result.values['source']} → {result.values['query']}",
        subtitle="Test rows; mean over seeds; lines: 95 % bootstrap interval over queries",
        x="accuracy (prefix rule)",
        height=170 + 30 * len(methods),
    )
    fig.update_yaxes(categoryorder="array", categoryarray=methods[::-1], showgrid=True)
    fig.update_xaxes(range=[-0.02, 1.02], tickformat=".1f", zeroline=False)
    fig.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0})
    for at in range(len(methods)):
        fig.add_hline(y=at, line={"color": fade(GREY, 0.15), "width": 1}, layer="below")
    return fig

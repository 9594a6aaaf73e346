"""The figure of transfer: bars by task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    from vlm_lens.recipes.parts.transfer_result import TransferResult

__all__ = ["transfer_bars"]

_METHOD_COLOURS = {
    "No Context": GREY,
    "Prompt": PALETTE["orange"],
    "Patch": PALETTE["blue"],
    "Wrong task, same domain": PALETTE["vermillion"],
    "Wrong task, other domain": PALETTE["purple"],
    "Random vector": PALETTE["sky"],
    "Best constant token": fade(GREY, 0.4),  # the majority answer, mostly lower, is in the table
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


def _arrow(result: TransferResult) -> str:
    return f"{result.values['source']} → {result.values['query']}"

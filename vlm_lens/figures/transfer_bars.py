"""The figure of transfer: bars by task."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, interval, style
from vlm_lens.terms import (
    BEST_TOKEN,
    NO_CONTEXT,
    PATCH,
    PROMPT,
    RANDOM,
    WRONG_OTHER,
    WRONG_SAME,
)

__all__ = ["transfer_bars"]

_METHOD_COLOURS = {
    NO_CONTEXT: GREY,
    PROMPT: PALETTE["orange"],
    PATCH: PALETTE["blue"],
    WRONG_SAME: PALETTE["vermillion"],
    WRONG_OTHER: PALETTE["purple"],
    RANDOM: PALETTE["sky"],
    BEST_TOKEN: fade(GREY, 0.25),  # the majority answer, mostly lower, is in the table
}
_OUTLINED = {"line": {"color": GREY, "width": 1}}  # a faint bar is seen on any ground


def transfer_bars(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Test accuracy by task, one bar a method, with bootstrap intervals.

    Args:
        table: A row a task and method: `accuracy`, `low`, `high`, `strict`, `queries`.
        title: What is shown.

    Returns:
        The figure.
    """
    fig = go.Figure()
    for method, colour in _METHOD_COLOURS.items():
        mine = table[table["method"] == method]
        if mine.empty:
            continue
        fig.add_bar(
            x=mine["task"],
            y=mine["accuracy"],
            name=method,
            marker={"color": colour, **(_OUTLINED if method == BEST_TOKEN else {})},
            error_y=interval(mine, thickness=1, width=2, color=GREY),
            customdata=mine[["strict", "queries", "low", "high"]],
            hovertemplate=(
                f"<b>{method}</b>, %{{x}}<br>accuracy %{{y:.3f}} "
                "(95 % %{customdata[2]:.3f} to %{customdata[3]:.3f})<br>"
                "strict %{customdata[0]:.3f}, %{customdata[1]} queries<extra></extra>"
            ),
        )
    style(
        fig,
        title=title,
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

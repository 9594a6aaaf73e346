"""What cutting or patching does to the answer, by block: one line an edge or a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["flow_figure"]


def flow_figure(
    table: pd.DataFrame,
    *,
    title: str,
    subtitle: str,
    x: str = "block in the middle of the window (0-based)",
    y: str = "change of the answer's probability",
) -> go.Figure:
    """A share against the block, a line for each edge or place.

    Args:
        table: Columns `edge`, `layer`, `change`, `low`, `high`; edges that begin with `random` are
            controls.
        title: What is shown.
        subtitle: What is counted.
        x: The title of the axis of blocks.
        y: The title of the axis of shares.
    """
    fig = go.Figure()
    colours = list(PALETTE.values())
    edges = list(dict.fromkeys(table["edge"]))
    for i, edge in enumerate(edges):
        mine = table[table["edge"] == edge].sort_values("layer")
        control = edge.startswith("random")
        colour = GREY if control else colours[i % len(colours)]
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        fig.add_scatter(x=mine["layer"], y=mine["low"], legendgroup=edge, **band)
        fill = fade("#8C8C8C" if control else colour, 0.18)
        fig.add_scatter(
            x=mine["layer"], y=mine["high"], fill="tonexty", fillcolor=fill, legendgroup=edge,
            **band,
        )  # fmt: skip
        fig.add_scatter(
            x=mine["layer"],
            y=mine["change"],
            name=edge.replace("->", "→"),
            legendgroup=edge,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if control else "solid"},
            hovertemplate=f"<b>{edge}</b>, block %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    style(fig, title=title, subtitle=subtitle, x=x, y=y, height=430)
    fig.add_hline(y=0, line={"color": GREY, "width": 1})
    fig.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0})
    fig.update_yaxes(tickformat="+.0%")
    return fig

"""A number for each attention head, as a map of blocks and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import PALETTE, colour_scale, style

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["head_map", "search_curves"]


def head_map(
    table: pd.DataFrame, value: str, chosen: pd.DataFrame, *, title: str, subtitle: str
) -> go.Figure:
    """Blocks by heads, with the chosen heads marked.

    Args:
        table: A row for each head: `layer` and `head`, 0-based, and the value.
        value: The column that is shown.
        chosen: The rows of the chosen heads.
        title: What is shown.
        subtitle: What is counted.

    Returns:
        The figure.
    """
    matrix = table.pivot(index="head", columns="layer", values=value)
    heat = go.Heatmap(
        x=matrix.columns,
        y=matrix.index,
        z=matrix.to_numpy(),
        coloraxis="coloraxis",
        hovertemplate=f"block %{{x}}, head %{{y}}<br>{value} %{{z:.4f}}<extra></extra>",
    )
    fig = go.Figure(heat)
    fig.add_scatter(
        x=chosen["layer"],
        y=chosen["head"],
        mode="markers",
        showlegend=False,
        hoverinfo="skip",
        marker={"symbol": "circle", "size": 11, "color": PALETTE["vermillion"],
                "line": {"color": "#FFFFFF", "width": 1.5}},
    )  # fmt: skip
    bar = {"title": {"text": value}, "thickness": 12}
    colours = colour_scale(table[value].tolist())
    fig.update_layout(coloraxis={"colorbar": bar, **colours})
    heads, layers = matrix.shape
    style(
        fig,
        title=title,
        subtitle=subtitle,
        x="block (0-based)",
        y="head (0-based)",
        height=min(760, 210 + 34 * heads),
    )
    fig.update_xaxes(showgrid=False, zeroline=False, dtick=1 if layers <= 20 else 4)
    fig.update_yaxes(
        autorange="reversed", showgrid=False, zeroline=False, dtick=1 if heads <= 16 else 4
    )
    return fig


def search_curves(table: pd.DataFrame) -> go.Figure:
    """The loss of the drawn sets of heads by step of the search, smoothed, one line a task.

    Args:
        table: Rows with `task`, `step` and `loss`.

    Returns:
        The figure.
    """
    fig = go.Figure()
    for name, mine in table.groupby("task", sort=False):
        smooth = mine["loss"].rolling(10, min_periods=1).mean()
        fig.add_scatter(x=mine["step"], y=smooth, name=name, mode="lines")
    style(
        fig,
        title="The search for heads",
        subtitle="Mean over the sets drawn in a step, and over ten steps",
        x="step",
        y="cross-entropy of the answer (nats)",
        height=400,
    )
    fig.update_yaxes(rangemode="tozero")
    return fig

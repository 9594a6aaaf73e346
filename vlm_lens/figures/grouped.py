"""Bars in groups, with intervals: what is asked beside its controls."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, style

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["grouped_bars"]

_SHADES = ("#8C8C8C", "#B5B5B5", "#D0D0D0")


def grouped_bars(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    title: str,
    subtitle: str,
    controls: Collection[str] = (),
) -> go.Figure:
    """One bar for each entry of `by` in each group of `x`; controls are grey.

    Args:
        table: Columns `x`, `by` and `y`, and `low` and `high`, the ends of an interval.
        x: The column of the groups.
        y: The column of the heights.
        by: The column of the bars within a group.
        title: What is shown.
        subtitle: What is counted.
        controls: Entries of `by` that are controls.
    """
    fig = go.Figure()
    colours, greys = iter(PALETTE.values()), iter(_SHADES * 4)
    for name in dict.fromkeys(table[by]):
        mine = table[table[by] == name]
        above, below = mine["high"] - mine[y], mine[y] - mine["low"]
        fig.add_bar(
            x=mine[x].astype(str),
            y=mine[y],
            name=str(name),
            marker={"color": next(greys), "line": {"color": GREY, "width": 1}}
            if name in controls else {"color": next(colours)},
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below,
                     "color": GREY, "thickness": 1.2},
            hovertemplate=f"<b>{name}</b>, {x} %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    style(fig, title=title, subtitle=subtitle, x=x, y=y, height=420)
    fig.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0})
    fig.update_xaxes(type="category", showgrid=False)
    return fig

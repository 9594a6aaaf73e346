"""Methods and controls one below another: the mean over tasks with its interval, and each task."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, interval, legend_below, style
from vlm_lens.terms import MEAN

__all__ = ["method_dots"]


def method_dots(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Accuracy of each method and control: the mean over tasks with its interval, and each task.

    Args:
        table: A row a task (and their mean) and method: `accuracy`, `low` and `high`, `strict`,
            `balanced` and `queries`.
        title: What is shown.

    Returns:
        The figure; lines are 95 % bootstrap intervals over queries.
    """
    methods = list(dict.fromkeys(table["method"]))
    mean, by_task = table[table["task"] == MEAN], table[table["task"] != MEAN]
    fig = go.Figure()
    fig.add_scatter(
        x=by_task["accuracy"],
        y=by_task["method"],
        mode="markers",
        name="one task",
        marker={"color": fade(PALETTE["orange"], 0.75), "size": 7, "symbol": "line-ns-open",
                "line": {"width": 2}},
        customdata=by_task[["task", "low", "high", "strict", "balanced", "queries"]],
        hovertemplate=(
            "<b>%{y}</b>, %{customdata[0]}<br>%{x:.3f} (95 % %{customdata[1]:.3f} to "
            "%{customdata[2]:.3f}), %{customdata[5]} queries<br>strict %{customdata[3]:.3f}, "
            "balanced %{customdata[4]:.3f}<extra></extra>"
        ),
    )  # fmt: skip
    fig.add_scatter(
        x=mean["accuracy"],
        y=mean["method"],
        mode="markers",
        name="mean over tasks, 95 % interval",
        marker={"color": PALETTE["blue"], "size": 11},
        error_x=interval(mean, thickness=2, width=0, color=PALETTE["blue"]),
        customdata=mean[["strict", "balanced"]],
        hovertemplate="<b>%{y}</b>, mean %{x:.3f}, strict %{customdata[0]:.3f}, balanced "
        "%{customdata[1]:.3f}<extra></extra>",
    )
    style(
        fig,
        title=title,
        subtitle="Test rows, prefix rule; mean over seeds; bootstrap over queries",
        x="accuracy",
        height=180 + 30 * len(methods),
    )
    legend_below(fig)
    fig.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f", zeroline=False)
    fig.update_yaxes(categoryorder="array", categoryarray=methods[::-1], tickcolor=GREY)
    return fig

"""Methods one below another: the mean over tasks with its interval, each task a small mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    from vlm_lens.recipes.parts.transfer_result import TransferResult

__all__ = ["method_dots"]


def method_dots(result: TransferResult, *, title: str | None = None) -> go.Figure:
    """Accuracy of each method: the mean over tasks with its interval, and each task.

    Args:
        result: The result of a recipe with a table of tasks and methods.
        title: What is shown; by default from where to where the task goes.

    Returns:
        The figure.
    """
    table = result.table
    methods = list(dict.fromkeys(table["method"]))
    mean = table[table["task"] == "mean"].set_index("method").reindex(methods)
    mean = mean.dropna(subset=["accuracy"])
    by_task = table[table["task"] != "mean"]
    fig = go.Figure()
    fig.add_scatter(
        x=by_task["accuracy"],
        y=by_task["method"],
        mode="markers",
        name="one task",
        marker={"color": fade(PALETTE["orange"], 0.75), "size": 7, "symbol": "line-ns-open",
                "line": {"width": 2}},
        customdata=by_task[["task", "low", "high", "queries"]],
        hovertemplate=(
            "<b>%{y}</b>, %{customdata[0]}<br>%{x:.3f} (95 % %{customdata[1]:.3f} to "
            "%{customdata[2]:.3f}), %{customdata[3]} queries<extra></extra>"
        ),
    )  # fmt: skip
    fig.add_scatter(
        x=mean["accuracy"],
        y=mean.index,
        mode="markers",
        name="mean over tasks, 95 % interval",
        marker={"color": PALETTE["blue"], "size": 11},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": mean["high"] - mean["accuracy"],
            "arrayminus": mean["accuracy"] - mean["low"],
            "thickness": 2,
            "width": 0,
            "color": PALETTE["blue"],
        },
        customdata=mean[["strict"]],
        hovertemplate="<b>%{y}</b>, mean %{x:.3f}, strict %{customdata[0]:.3f}<extra></extra>",
    )
    if title is None:
        title = f"{result.values['source']} → {result.values['query']}, by method"
    style(
        fig,
        title=title,
        subtitle="Test rows, prefix rule; mean over seeds; bootstrap over queries",
        x="accuracy",
        height=180 + 30 * len(methods),
    )
    fig.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        margin_b=88,
    )
    fig.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f")
    fig.update_yaxes(
        categoryorder="array", categoryarray=methods[::-1], tickcolor=GREY, title_text=None
    )
    return fig

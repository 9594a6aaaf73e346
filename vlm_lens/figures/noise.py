"""Accuracy against the number of swapped characters."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, interval, legend_below, style
from vlm_lens.terms import MEAN

__all__ = ["noise_lines"]


def noise_lines(table: pd.DataFrame, *, layer: int) -> go.Figure:
    """One line a task, and the mean over tasks with its interval.

    Args:
        table: Rows with `task` (and their mean), `swaps`, `accuracy`, `low` and `high`.
        layer: The 0-based block that is patched.

    Returns:
        The figure.
    """
    fig = go.Figure()
    colours = list(PALETTE.values())
    tasks = [name for name in dict.fromkeys(table["task"]) if name != MEAN]
    for i, name in enumerate(tasks):
        mine = table[table["task"] == name]
        line = {"color": colours[i % len(colours)], "width": 1.6, "dash": "dot"}
        fig.add_scatter(x=mine["swaps"], y=mine["accuracy"], name=name, mode="lines+markers",
                        line=line)  # fmt: skip
    mean = table[table["task"] == MEAN]
    fig.add_scatter(
        x=mean["swaps"],
        y=mean["accuracy"],
        name="mean, 95 % interval",
        mode="lines+markers",
        line={"color": GREY, "width": 4},
        marker={"size": 9},
        error_y=interval(mean, color=GREY),
    )
    style(
        fig,
        title="Instructions with typing errors",
        subtitle=f"Vector of the instruction at block {layer} (0-based); test rows; mean "
        "over seeds of the swaps",
        x="swapped pairs of characters in the instruction",
        y="accuracy (prefix rule)",
        height=420,
    )
    fig.update_yaxes(range=[-0.02, 1.03], tickformat=".1f")
    fig.update_xaxes(dtick=1)
    return legend_below(fig, margin=104)

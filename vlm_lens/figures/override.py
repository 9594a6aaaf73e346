"""What answers were judged to do, by method: one bar a method, cut by verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, style

if TYPE_CHECKING:
    from vlm_lens.recipes.task_override import OverrideResult

__all__ = ["override_bars"]

_VERDICTS = {  # verdict: colours of bar and text
    "overriding": (PALETTE["blue"], "#FFFFFF"),
    "both": (PALETTE["sky"], "#222222"),
    "original": (PALETTE["orange"], "#222222"),
    "neither": (GREY, "#FFFFFF"),
}


def override_bars(result: OverrideResult) -> go.Figure:
    """Shares of verdicts by method, mean over pairs of tasks.

    Args:
        result: The result of TaskOverride.

    Returns:
        The figure.
    """
    table = result.table[result.table["task"] == "mean"]
    fig = go.Figure()
    for verdict, (colour, ink) in _VERDICTS.items():
        share = table[f"judged_{verdict}"]
        fig.add_bar(
            y=table["method"],
            x=share,
            name=verdict,
            orientation="h",
            marker_color=colour,
            text=[f"{s:.2f}" if s >= 0.06 else "" for s in share],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            insidetextfont_color=ink,
            hovertemplate=f"<b>%{{y}}</b><br>{verdict} %{{x:.3f}}<extra></extra>",
        )
    counted = int(table["queries"].max())
    style(
        fig,
        title="Which task does the answer do?",
        subtitle=f"Judged of {counted} answers a method; mean over pairs of tasks; patched: block "
        f"{result.values['layer']} (0-based)",
        x="share of answers",
        height=190 + 42 * len(table),
    )
    fig.update_layout(
        barmode="stack",
        bargap=0.3,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom",
                "x": 0, "traceorder": "normal"},
        margin_b=92,
    )  # fmt: skip
    fig.update_xaxes(range=[0, 1.001], tickformat=".1f", dtick=0.2)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig

"""What answers were judged to do, by method: one bar a method, cut by verdict."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, legend_below, style
from vlm_lens.terms import BOTH, MEAN, NEITHER, ORIGINAL, OVERRIDING

__all__ = ["override_bars"]

_VERDICTS = {  # verdict: colours of bar and text
    OVERRIDING: (PALETTE["blue"], "#FFFFFF"),
    BOTH: (PALETTE["sky"], "#222222"),
    ORIGINAL: (PALETTE["orange"], "#222222"),
    NEITHER: (GREY, "#111111"),
}


def override_bars(table: pd.DataFrame, *, layer: int) -> go.Figure:
    """Shares of verdicts by method, mean over pairs of tasks.

    Args:
        table: Rows with `task` (and their mean), `method`, `judged_<verdict>` and `queries`.
        layer: The 0-based block that is patched.

    Returns:
        The figure.
    """
    table = table[table["task"] == MEAN]
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
        f"{layer} (0-based)",
        x="share of answers",
        height=190 + 42 * len(table),
    )
    legend_below(fig, margin=92)
    fig.update_layout(
        barmode="stack",
        bargap=0.3,
        legend_traceorder="normal",
    )
    fig.update_xaxes(range=[0, 1.001], tickformat=".1f", dtick=0.2)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig

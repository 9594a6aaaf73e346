"""Time and memory of a forward pass against the number of examples in the prompt."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import GREY, PALETTE, legend_below, style

__all__ = ["cost_lines"]


def cost_lines(table: pd.DataFrame, *, device: str) -> go.Figure:
    """Prompting by number of examples; patching and the query alone as level lines.

    Args:
        table: Rows with `n_examples` (0 for patching, then for the query alone), `tokens`,
            `seconds` with quartiles `seconds_low` and `seconds_high`, and `extra` bytes.
        device: Where it was measured.

    Returns:
        The figure.
    """
    shown, rest = table[table["n_examples"] > 0], table[table["n_examples"] == 0]
    fig = make_subplots(1, 2, horizontal_spacing=0.13)
    columns = (
        ("seconds", 1e3, "time of one pass (ms)"),
        ("extra", 1e-6, "memory beyond the model (MB)"),
    )
    for column, (name, scale, label) in enumerate(columns, start=1):
        first, place = column == 1, {"row": 1, "col": column}
        bars = {}
        if name == "seconds":
            above, below = shown["seconds_high"] - shown[name], shown[name] - shown["seconds_low"]
            bars["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": above * scale,
                "arrayminus": below * scale,
                "color": GREY,
                "thickness": 1,
            }
        fig.add_scatter(
            x=shown["n_examples"], y=shown[name] * scale, name="Prompting", showlegend=first,
            mode="lines+markers", line={"color": PALETTE["orange"], "width": 2.6},
            customdata=shown[["tokens"]], legendgroup="Prompting",
            hovertemplate="%{x} examples, %{customdata[0]:.0f} tokens: %{y:.2f}<extra></extra>",
            **bars, **place,
        )  # fmt: skip
        ends = [0, max(shown["n_examples"])]
        looks = (("Patching", PALETTE["blue"], "solid"), ("Query only", GREY, "dot"))
        for (text, colour, dash), value in zip(looks, rest[name], strict=True):
            fig.add_scatter(
                x=ends, y=[value * scale] * 2, name=text, showlegend=first, legendgroup=text,
                mode="lines", line={"color": colour, "width": 2.6, "dash": dash},
                hovertemplate=f"{text}: %{{y:.2f}}<extra></extra>", **place,
            )  # fmt: skip
        fig.update_yaxes(title_text=label, rangemode="tozero", **place)
    style(
        fig,
        title="What examples in the prompt cost",
        subtitle=f"One forward pass on {device}; medians, time with quartiles",
        x="examples in the prompt",
        height=430,
    )
    return legend_below(fig, margin=96)

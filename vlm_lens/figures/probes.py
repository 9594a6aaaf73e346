"""What a probe reads at each layer, beside what the controls read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, style

__all__ = ["probe_figure"]

_LINES = {"accuracy": "solid", "control": "dot", "text_only": "dash"}
_SAID = {"accuracy": "", "control": ", control task", "text_only": ", without the picture"}


def probe_figure(rows: Sequence[Mapping[str, Any]], name: str) -> go.Figure:
    """Accuracy by layer, a colour a kind of position.

    Args:
        rows: `layer`, `kind`, `accuracy`, `control`, `majority`, and `text_only` where there is.
        name: What is probed.
    """
    fig = go.Figure()
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    for colour, kind in zip(PALETTE.values(), kinds, strict=False):
        mine = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r["layer"])
        for column, dash in _LINES.items():
            y = [row.get(column) for row in mine]
            if all(v is None or v != v for v in y):
                continue
            fig.add_scatter(
                x=[row["layer"] for row in mine], y=y, name=f"{kind}{_SAID[column]}",
                mode="lines+markers", marker_size=6 if column == "accuracy" else 4,
                line={"color": colour, "dash": dash, "width": 2.4 if dash == "solid" else 1.5},
                hovertemplate=f"{kind}{_SAID[column]}, block %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    majority = rows[0]["majority"]
    fig.add_scatter(
        x=[layers[0] - 0.4, layers[-1] + 0.4], y=[majority] * 2, mode="lines", hoverinfo="y",
        name="most frequent label", line={"color": GREY, "width": 1.5},
    )  # fmt: skip
    style(
        fig, title=f"Linear probe of {name}", subtitle="accuracy on held-out examples", height=430
    )
    fig.update_yaxes(range=[0, 1.05], title_text="accuracy", tickformat=".1f")
    fig.update_xaxes(title_text="block (0-based)", dtick=1 if len(layers) <= 20 else 4)
    fig.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0})
    return fig

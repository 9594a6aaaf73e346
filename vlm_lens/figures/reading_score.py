"""How often lenses read what is there, by layer."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import PALETTE, legend_below, style

__all__ = ["reading_score_figure"]


def reading_score_figure(table: pd.DataFrame, *, k: int, model: str) -> go.Figure:
    """A line a lens over layers; dashed, the same states asked for another prompt's words.

    Args:
        table: A row a lens and layer: `lens`, `layer`, `share`, `shuffled`, `positions`.
        k: Among how many leading entries a word was looked for.
        model: The model's name.
    """
    fig = go.Figure()
    layers = [str(layer) for layer in dict.fromkeys(table["layer"])]
    for (name, mine), colour in zip(table.groupby("lens", sort=False), _colours(), strict=False):
        for column, dash in (("share", "solid"), ("shuffled", "dot")):
            fig.add_scatter(
                x=[str(layer) for layer in mine["layer"]],
                y=mine[column],
                name=str(name),
                legendgroup=str(name),
                showlegend=column == "share",
                mode="lines+markers" if column == "share" else "lines",
                line={"color": colour, "dash": dash, "width": 2.5 if column == "share" else 1.5},
                marker={"size": 6},
                customdata=mine["positions"],
                hovertemplate=f"<b>{name}</b>, block %{{x}}<br>"
                + ("" if column == "share" else "asked for another prompt's words: ")
                + "%{y:.1%} of %{customdata} positions<extra></extra>",
            )
    style(
        fig,
        title="Which lens reads what is there",
        subtitle=f"{model}; share of positions with the word for it among the top {k}; dotted: "
        "asked for another picture's word",
        x="block (0-based)",
        y="share",
        height=440,
    )
    legend_below(fig)
    fig.update_xaxes(type="category", categoryorder="array", categoryarray=layers)
    fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%", zeroline=False)
    return fig


def _colours() -> list[str]:
    names = ("blue", "orange", "green", "vermillion", "purple", "sky", "yellow")
    return [PALETTE[name] for name in names]

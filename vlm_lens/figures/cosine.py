"""Cosines between two models' task vectors: the matrix of tasks, and by block."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.cell_text import legible_cells
from vlm_lens.figures.style import GREY, PALETTE, SEQUENTIAL, style

__all__ = ["cosine_layers", "cosine_matrix"]

_COLOURS = {"base": PALETTE["blue"], "unrelated": PALETTE["vermillion"]}


def cosine_matrix(table: pd.DataFrame, *, llm: str, vlm: str, layer: int) -> go.Figure:
    """Tasks of the language model by tasks of the VLM, mean over seeds, at one block.

    Args:
        table: The cosines of one language model at the block: `llm_task`, `vlm_task`, `cosine`.
        llm: The language model's name.
        vlm: The VLM's name.
        layer: The 0-based block.

    Returns:
        The figure.
    """
    tasks = list(dict.fromkeys(table["llm_task"]))
    matrix = table.pivot_table(index="llm_task", columns="vlm_task", values="cosine")
    matrix = matrix.loc[tasks, tasks]
    same = table["llm_task"] == table["vlm_task"]
    heat = go.Heatmap(
        x=tasks,
        y=tasks,
        z=matrix.to_numpy(),
        texttemplate="%{z:.2f}",
        colorscale=SEQUENTIAL,
        zmin=min(0.0, float(matrix.min().min())),
        zmax=1,
        colorbar={"title": {"text": "cosine"}, "thickness": 12},
        hovertemplate="%{y} of the LLM, %{x} of the VLM: %{z:.3f}<extra></extra>",
    )
    style(
        fig := go.Figure(heat),
        title=f"Task vectors of {llm} and {vlm}",
        subtitle=f"Block {layer} (0-based), mean over seeds; same task "
        f"{table[same]['cosine'].mean():.2f}, different tasks {table[~same]['cosine'].mean():.2f}",
        x=f"vector of {vlm}",
        y=f"vector of {llm}",
        height=250 + 45 * len(tasks),
        width=max(640, 300 + 70 * len(tasks)),
    )
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(showgrid=False, tickangle=-30)
    return legible_cells(fig)


def cosine_layers(table: pd.DataFrame, *, names: Mapping[str, str], layer: int) -> go.Figure:
    """Cosine by block, of the same task and of different tasks.

    Args:
        table: The cosines: `model` (`"base"`, `"unrelated"`), `llm_task`, `vlm_task`, `layer`,
            `cosine`.
        names: The names of the models, that of the VLM under `"vlm"`.
        layer: The 0-based block that is patched.

    Returns:
        The figure.
    """
    fig = go.Figure()
    for model, mine in table.groupby("model", sort=False):
        same = mine["llm_task"] == mine["vlm_task"]
        for what, rows, dash in (("same", same, "solid"), ("different", ~same, "dot")):
            by_layer = mine[rows].groupby("layer")["cosine"].mean()
            fig.add_scatter(
                x=by_layer.index,
                y=by_layer,
                name=f"{names[model]}, {what} task{'' if what == 'same' else 's'}",
                mode="lines+markers",
                line={"color": _COLOURS[model], "width": 2.4, "dash": dash},
            )
    fig.add_vline(
        x=layer,
        line={"color": GREY, "dash": "dash", "width": 1},
        annotation={"text": f"patched: block {layer}", "textangle": 0},
        annotation_position="bottom right",
    )
    style(
        fig,
        title=f"How alike are task vectors to those of {names['vlm']}?",
        subtitle="Cosine of the two models' vectors from the same prompts; mean over seeds",
        x="block (0-based), its output",
        y="cosine",
        height=420,
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0})
    fig.update_yaxes(range=[min(0.0, table["cosine"].min()) - 0.03, 1.05])
    fig.update_xaxes(dtick=1 if table["layer"].max() <= 20 else 4)
    return fig

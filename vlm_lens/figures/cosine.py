"""Cosines between two models' task vectors: the matrix of tasks, and by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vlm_lens.figures.style import GREY, PALETTE, SEQUENTIAL, style

if TYPE_CHECKING:
    from vlm_lens.recipes.inter_model_transfer import InterModelResult

__all__ = ["cosine_layers", "cosine_matrix"]

_COLOURS = {"base": PALETTE["blue"], "unrelated": PALETTE["vermillion"]}


def cosine_matrix(result: InterModelResult, model: str = "base") -> go.Figure:
    """Tasks of the language model by tasks of the VLM, mean over seeds, at the patched block.

    Args:
        result: The result of InterModelTransfer.
        model: `"base"` or `"unrelated"`.

    Returns:
        The figure.
    """
    table = result.cosine_table(model, result.layer)
    tasks = list(dict.fromkeys(table["llm_task"]))
    matrix = table.pivot_table(index="llm_task", columns="vlm_task", values="cosine")
    matrix = matrix.loc[tasks, tasks]
    means, names = result.cosine(model), result.values["models"]
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
        title=f"Task vectors of {names[model]} and {names['vlm']}",
        subtitle=f"Block {result.layer} (0-based), mean over seeds; same task "
        f"{means['matched']:.2f}, different tasks {means['mismatched']:.2f}",
        x=f"vector of {names['vlm']}",
        y=f"vector of {names[model]}",
        height=250 + 45 * len(tasks),
        width=max(640, 300 + 70 * len(tasks)),
    )
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(showgrid=False, tickangle=-30)
    return fig


def cosine_layers(result: InterModelResult) -> go.Figure:
    """Cosine by block, of the same task and of different tasks.

    Args:
        result: The result of InterModelTransfer.

    Returns:
        The figure.
    """
    fig, names = go.Figure(), result.values["models"]
    for model in dict.fromkeys(result.tables["cosine"]["model"]):
        table = result.cosine_table(model)
        same = table["llm_task"] == table["vlm_task"]
        for what, rows, dash in (("same", same, "solid"), ("different", ~same, "dot")):
            by_layer = table[rows].groupby("layer")["cosine"].mean()
            fig.add_scatter(
                x=by_layer.index,
                y=by_layer,
                name=f"{names[model]}, {what} task{'' if what == 'same' else 's'}",
                mode="lines+markers",
                line={"color": _COLOURS[model], "width": 2.4, "dash": dash},
            )
    fig.add_vline(
        x=result.layer,
        line={"color": GREY, "dash": "dash", "width": 1},
        annotation={"text": f"patched: block {result.layer}", "textangle": 0},
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
    fig.update_yaxes(range=[min(0.0, result.tables["cosine"]["cosine"].min()) - 0.03, 1.05])
    fig.update_xaxes(dtick=1 if result.tables["cosine"]["layer"].max() <= 20 else 4)
    return fig

"""Phase curves: what three tokens get at each layer, alone or in a grid, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import PALETTE, fade, style

if TYPE_CHECKING:
    from vlm_lens.recipes.parts.phase_result import PhaseResult

__all__ = ["phase_curves", "phase_grid", "rank_curves"]

COLOURS = {
    "input": PALETTE["orange"],
    "task": PALETTE["green"],
    "answer": PALETTE["blue"],
}
_LAYERS = "layer: 0 is the embedding, k the output of block k - 1"
_BEGINS = {"task_from": "task", "answer_from": "answer"}
_EDGE = 1.04  # the height at which a boundary's interval is drawn


def phase_curves(result: PhaseResult) -> go.Figure:
    """The three tokens' renormalised probabilities by layer, with 25-75 % bands.

    Shaded is the phase that leads; the bars above are 95 % intervals of where a phase begins.

    Args:
        result: The result of PhaseAnalysis.

    Returns:
        The figure.
    """
    fig = go.Figure()
    _draw(fig, result, {}, legend=True)
    _style(fig, result, len(result.table))
    for row in result.boundaries.dropna().itertuples():
        colour = COLOURS[_BEGINS[row.boundary]]
        fig.add_scatter(
            x=[row.low - 0.5, row.high - 0.5],
            y=[_EDGE, _EDGE],
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"symbol": "line-ns", "size": 9, "line": {"color": colour, "width": 2}},
            showlegend=False,
            hovertemplate=f"{_BEGINS[row.boundary]} leads from layer {row.layer:.0f}, 95 % "
            f"{row.low:.0f} to {row.high:.0f}<extra></extra>",
        )
    fig.update_yaxes(title_text="probability among three tokens")
    return fig


def rank_curves(result: PhaseResult) -> go.Figure:
    """The median rank of the three tokens in the whole vocabulary, by layer.

    Args:
        result: The result of PhaseAnalysis.

    Returns:
        The figure; the top is the most likely token, rank 1 (tables count from 0).
    """
    table = result.table
    fig = go.Figure()
    for phase, colour in COLOURS.items():
        fig.add_scatter(
            x=table["layer"], y=table[f"{phase}_rank"] + 1, name=_said(result)[phase],
            mode="lines+markers", line={"color": colour, "width": 2.4}, customdata=table["where"],
            hovertemplate="%{customdata}: rank %{y:.0f}<extra></extra>",
        )  # fmt: skip
    _style(fig, result, len(table), what="median")
    fig.update_yaxes(
        type="log", autorange="reversed", title_text="median rank in the vocabulary (1: first)",
        range=None, tickformat="d", dtick=1,
    )  # fmt: skip
    return fig


def phase_grid(results: Sequence[PhaseResult]) -> go.Figure:
    """Curves of several tasks and modalities: a row a task, a column a modality.

    Args:
        results: Results of PhaseAnalysis on one model.

    Returns:
        The figure.
    """
    tasks = list(dict.fromkeys(r.values["task"] for r in results))
    kinds = list(dict.fromkeys(r.values["modality"] for r in results))
    fig = make_subplots(
        rows=len(tasks), cols=len(kinds), shared_xaxes=True, shared_yaxes=True,
        column_titles=[_examples(kind) for kind in kinds], row_titles=tasks,
        horizontal_spacing=0.03, vertical_spacing=0.12 / len(tasks),
    )  # fmt: skip
    for i, result in enumerate(results):
        row, col = tasks.index(result.values["task"]), kinds.index(result.values["modality"])
        _draw(fig, result, {"row": row + 1, "col": col + 1}, legend=i == 0, short=True)
    style(
        fig, title="What the last delimiter decodes to",
        subtitle="Mean over prompts, band 25-75 %; shaded: the token that leads",
        height=150 + 170 * len(tasks),
    )  # fmt: skip
    layers = max(len(r.table) for r in results)
    fig.update_yaxes(range=[0, 1.05], tickformat=".1f", dtick=0.5)
    fig.update_xaxes(range=[-0.5, layers - 0.5], dtick=_step(layers), showgrid=False)
    fig.update_xaxes(title_text="layer (0: embedding)", row=len(tasks))
    fig.update_yaxes(title_text="probability", col=1)
    fig.update_layout(legend={"orientation": "h", "y": -0.5 / len(tasks), "yanchor": "top", "x": 0})
    fig.update_layout(margin={"t": 110, "r": 40})
    return fig


def _draw(
    fig: go.Figure, result: PhaseResult, place: Mapping[str, int], *, legend: bool,
    short: bool = False,
) -> None:  # fmt: skip
    """Bands, curves and the shading of one result."""
    table, said = result.table, _said(result)
    for phase, colour in COLOURS.items():
        band = {"x": table["layer"], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                "showlegend": False, "legendgroup": phase}  # fmt: skip
        fig.add_scatter(y=table[f"{phase}_low"], **band, **place)
        fill = {"fill": "tonexty", "fillcolor": fade(colour, 0.2)}
        fig.add_scatter(y=table[f"{phase}_high"], **fill, **band, **place)
    for phase, colour in COLOURS.items():
        fig.add_scatter(
            x=table["layer"],
            y=table[phase],
            name=phase if short else said[phase],
            legendgroup=phase,
            showlegend=legend,
            mode="lines+markers",
            marker_size=4 if short else 6,
            line={"color": colour, "width": 2 if short else 2.6},
            customdata=table[["where", f"{phase}_rank"]],
            hovertemplate=(
                f"<b>{said[phase]}</b><br>%{{customdata[0]}}: %{{y:.3f}}<br>"
                "median rank in the vocabulary %{customdata[1]:.0f}<extra></extra>"
            ),
            **place,
        )
    start = 0
    for phase, run in groupby(table["phase"]):
        end = start + len(list(run))
        named = {} if short else {
            "annotation": {"text": phase, "yref": "paper", "y": 1.0, "yanchor": "top"},
            "annotation_position": "top",
        }  # fmt: skip
        fig.add_vrect(
            x0=start - 0.5, x1=end - 0.5, fillcolor=fade(COLOURS[phase], 0.12), line_width=0,
            layer="below", **named, **place,
        )  # fmt: skip
        start = end


def _style(
    fig: go.Figure, result: PhaseResult, layers: int, *, what: str = "mean and 25-75 % band"
) -> None:
    values = result.values
    counted = "answers" if values["modality"] == "instruction" else "prompts"
    style(
        fig,
        title=f"{values['task']}, {_examples(values['modality'])}",
        subtitle=f"Last delimiter; {what} over {values['runs']} {counted}",
        x=_LAYERS,
        height=420,
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0})
    fig.update_yaxes(range=[0, 1.12], tickformat=".1f", dtick=0.2)
    fig.update_xaxes(range=[-0.5, layers - 0.5], dtick=_step(layers), showgrid=False)


def _said(result: PhaseResult) -> dict[str, str]:
    values = result.values
    return {
        "input": f"input {values['input_token']!r}",
        "task": f"task {values['task_token']!r}",
        "answer": "answer",
    }


def _examples(modality: str) -> str:
    return "instruction" if modality == "instruction" else f"{modality} examples"


def _step(layers: int) -> int:
    return 1 if layers <= 20 else 4

"""Phase curves: what three tokens get at each layer, alone or in a grid, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import PALETTE, fade, style
from vlm_lens.terms import ANSWER, INPUT, TASK, layer_name, layer_ticks

__all__ = ["Curves", "phase_curves", "phase_grid", "rank_curves"]

COLOURS = {INPUT: PALETTE["orange"], TASK: PALETTE["green"], ANSWER: PALETTE["blue"]}
_LAYERS = "output of block (0-based)"
_BEGINS = {"task_from": TASK, "answer_from": ANSWER}
_EDGE = 1.04  # the height at which a boundary's interval is drawn


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of one task and one kind of examples.

    Attributes:
        table: A row a layer: `layer`, the `phase` that leads, and for each phase its mean,
            `<phase>_low`, `<phase>_high` and `<phase>_rank`.
        task: The task's name.
        examples: What prompts hold.
        tokens: What each phase's token is called in a legend.
        counted: What is averaged over.
    """

    table: pd.DataFrame
    task: str
    examples: str
    tokens: Mapping[str, str]
    counted: str

    @property
    def where(self) -> list[str]:
        """Each layer as hovering says it."""
        return [layer_name(layer) for layer in self.table["layer"]]


def phase_curves(curves: Curves, boundaries: pd.DataFrame) -> go.Figure:
    """The three tokens' renormalised probabilities by layer, with 25-75 % bands.

    Shaded is the phase that leads; the bars above are 95 % intervals of where a phase begins.

    Args:
        curves: The curves.
        boundaries: Rows with `boundary` (`task_from`, `answer_from`), `layer`, `low` and `high`.

    Returns:
        The figure.
    """
    fig = go.Figure()
    _draw(fig, curves, {}, legend=True)
    _style(fig, curves)
    places = {layer: i for i, layer in enumerate(curves.table["layer"])}
    for row in boundaries.dropna().itertuples():
        colour = COLOURS[_BEGINS[row.boundary]]
        fig.add_scatter(
            x=[places[row.low] - 0.5, places[row.high] - 0.5],
            y=[_EDGE, _EDGE],
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"symbol": "line-ns", "size": 9, "line": {"color": colour, "width": 2}},
            showlegend=False,
            hovertemplate=f"{_BEGINS[row.boundary]} leads from {layer_name(row.layer)}, 95 % "
            f"{layer_name(row.low)} to {layer_name(row.high)}<extra></extra>",
        )
    fig.update_yaxes(title_text="probability among three tokens")
    return fig


def rank_curves(curves: Curves) -> go.Figure:
    """The median rank of the three tokens in the whole vocabulary, by layer.

    Args:
        curves: The curves.

    Returns:
        The figure; the top is the most likely token, rank 1 (tables count from 0).
    """
    table = curves.table
    fig = go.Figure()
    for phase, colour in COLOURS.items():
        fig.add_scatter(
            x=list(range(len(table))), y=table[f"{phase}_rank"] + 1, name=curves.tokens[phase],
            mode="lines+markers", line={"color": colour, "width": 2.4}, customdata=curves.where,
            hovertemplate="%{customdata}: rank %{y:.0f}<extra></extra>",
        )  # fmt: skip
    _style(fig, curves, what="median")
    fig.update_yaxes(
        type="log", autorange="reversed", title_text="median rank in the vocabulary (1: first)",
        range=None, tickformat="d", dtick=1,
    )  # fmt: skip
    return fig


def phase_grid(every: Sequence[Curves]) -> go.Figure:
    """Curves of several tasks and modalities: a row a task, a column a modality.

    Args:
        every: The curves, all of one model.

    Returns:
        The figure.
    """
    tasks = list(dict.fromkeys(one.task for one in every))
    kinds = list(dict.fromkeys(one.examples for one in every))
    fig = make_subplots(
        rows=len(tasks), cols=len(kinds), shared_xaxes=True, shared_yaxes=True,
        column_titles=kinds, row_titles=tasks,
        horizontal_spacing=0.03, vertical_spacing=0.12 / len(tasks),
    )  # fmt: skip
    for i, one in enumerate(every):
        place = {"row": tasks.index(one.task) + 1, "col": kinds.index(one.examples) + 1}
        _draw(fig, one, place, legend=i == 0, short=True)
    style(
        fig, title="What the last delimiter decodes to",
        subtitle="Mean over prompts, band 25-75 %; shaded: the token that leads",
        height=150 + 170 * len(tasks),
    )  # fmt: skip
    layers = max((list(one.table["layer"]) for one in every), key=len)
    fig.update_yaxes(range=[0, 1.05], tickformat=".1f", dtick=0.5)
    fig.update_xaxes(range=[-0.5, len(layers) - 0.5], showgrid=False, **layer_ticks(layers))
    fig.update_xaxes(title_text=_LAYERS, row=len(tasks))
    fig.update_yaxes(title_text="probability", col=1)
    fig.update_layout(legend={"orientation": "h", "y": -0.5 / len(tasks), "yanchor": "top", "x": 0})
    fig.update_layout(margin={"t": 110, "r": 40})
    return fig


def _draw(
    fig: go.Figure, curves: Curves, place: Mapping[str, int], *, legend: bool, short: bool = False
) -> None:
    """Bands, curves and the shading of one task."""
    table, xs = curves.table, list(range(len(curves.table)))
    for phase, colour in COLOURS.items():
        band = {"x": xs, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                "showlegend": False, "legendgroup": phase}  # fmt: skip
        fig.add_scatter(y=table[f"{phase}_low"], **band, **place)
        fill = {"fill": "tonexty", "fillcolor": fade(colour, 0.2)}
        fig.add_scatter(y=table[f"{phase}_high"], **fill, **band, **place)
    for phase, colour in COLOURS.items():
        fig.add_scatter(
            x=xs,
            y=table[phase],
            name=phase if short else curves.tokens[phase],
            legendgroup=phase,
            showlegend=legend,
            mode="lines+markers",
            marker_size=4 if short else 6,
            line={"color": colour, "width": 2 if short else 2.6},
            customdata=list(zip(curves.where, table[f"{phase}_rank"], strict=True)),
            hovertemplate=(
                f"<b>{curves.tokens[phase]}</b><br>%{{customdata[0]}}: %{{y:.3f}}<br>"
                "median rank in the vocabulary %{customdata[1]:.0f}<extra></extra>"
            ),
            **place,
        )
    ends = [0, *accumulate(len(list(run)) for _, run in groupby(table["phase"]))]
    runs = [(table["phase"].iloc[start], start, end) for start, end in pairwise(ends)]
    for phase, start, end in runs:
        # once each, where there is most room: labels of short stretches would lie on one another
        widest = max((r for r in runs if r[0] == phase), key=lambda r: r[2] - r[1])
        named = {} if short or widest[1] != start else {
            "annotation": {"text": phase, "yref": "paper", "y": 1.0, "yanchor": "top"},
            "annotation_position": "top",
        }  # fmt: skip
        fig.add_vrect(
            x0=start - 0.5, x1=end - 0.5, fillcolor=fade(COLOURS[phase], 0.12), line_width=0,
            layer="below", **named, **place,
        )  # fmt: skip


def _style(fig: go.Figure, curves: Curves, *, what: str = "mean and 25-75 % band") -> None:
    layers = list(curves.table["layer"])
    style(
        fig,
        title=f"{curves.task}, {curves.examples}",
        subtitle=f"Last delimiter; {what} over {curves.counted}",
        x=_LAYERS,
        height=420,
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0})
    fig.update_yaxes(range=[0, 1.12], tickformat=".1f", dtick=0.2)
    fig.update_xaxes(range=[-0.5, len(layers) - 0.5], showgrid=False, **layer_ticks(layers))

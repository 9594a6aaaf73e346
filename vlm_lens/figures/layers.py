"""Accuracy against the layer that is patched: lines by task, the mean, and how seeds differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import GREY, PALETTE, fade, style

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Panel", "layer_figure"]

_DASHES = ("solid", "dash", "dot")
_COLUMNS = 2


@dataclass(frozen=True, eq=False)
class Panel:
    """One sweep of layers.

    Attributes:
        title: What is patched into what.
        layers: Columns `task`, `seed`, `layer` and `accuracy`.
        best: The layer to mark.
        prompting: For each task, the accuracy with the examples in the prompt; empty if unknown.
    """

    title: str
    layers: pd.DataFrame
    best: int
    prompting: Mapping[str, float] = field(default_factory=dict)


def layer_figure(panels: Sequence[Panel], *, title: str, subtitle: str) -> go.Figure:
    """Accuracy by layer, one panel a sweep.

    Args:
        panels: The sweeps, all on the same model.
        title: What is shown.
        subtitle: What is counted.

    Returns:
        The figure; the band is one standard deviation over seeds, the dotted line prompting.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    fig = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, shared_xaxes=rows > 1,
        subplot_titles=[p.title for p in panels] if len(panels) > 1 else None,
        horizontal_spacing=0.05, vertical_spacing=0.14 / rows,
    )  # fmt: skip
    tasks = list(dict.fromkeys(task for panel in panels for task in panel.layers["task"]))
    for i, panel in enumerate(panels):
        _draw(fig, panel, tasks, {"row": i // columns + 1, "col": i % columns + 1}, first=i == 0)
    height = 430 if rows == 1 else 150 + 260 * rows
    style(fig, title=title, subtitle=subtitle, height=height)
    fig.update_annotations(font_size=13)
    fig.update_layout(
        legend={"orientation": "h", "y": -0.2 if rows == 1 else -0.09, "yanchor": "top", "x": 0},
        margin_t=84 + 16 * (len(panels) > 1),
    )
    n_layers = max(panel.layers["layer"].max() for panel in panels) + 1
    fig.update_yaxes(range=[0, 1.05], tickformat=".1f")
    fig.update_yaxes(title_text="accuracy (prefix rule)", col=1)
    fig.update_xaxes(
        range=[-0.5, n_layers - 0.5],
        dtick=1 if n_layers <= 20 else 4,
        showgrid=False,
        zeroline=False,
    )
    fig.update_xaxes(title_text="block whose output is patched (0-based)", row=rows)
    return fig


def _draw(
    fig: go.Figure, panel: Panel, tasks: Sequence[str], place: Mapping[str, int], *, first: bool
) -> None:
    colours = list(PALETTE.values())
    by_task = panel.layers.groupby(["task", "layer"], sort=False)["accuracy"].mean()
    alone = len(tasks) == 1
    for i, task in enumerate(tasks):
        mine = by_task[task].sort_index()
        line = {
            "color": colours[i % len(colours)],
            "width": 1.8,
            "dash": _DASHES[i // len(colours) % 3],
        }
        fig.add_scatter(
            x=mine.index, y=mine, name=task, legendgroup=task, mode="lines+markers", line=line,
            marker_size=5, showlegend=first, **place,
            hovertemplate=f"<b>{task}</b>, block %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    by_seed = panel.layers.groupby(["seed", "layer"])["accuracy"].mean().unstack("seed")
    mean, spread = by_seed.mean(axis=1), by_seed.std(axis=1).fillna(0)
    if by_seed.shape[1] > 1:
        line = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        fig.add_scatter(x=mean.index, y=mean - spread, **line, **place)
        fig.add_scatter(
            x=mean.index, y=mean + spread, fill="tonexty", fillcolor=fade(GREY, 0.3), **line,
            **place,
        )  # fmt: skip
    if not alone:
        fig.add_scatter(
            x=mean.index, y=mean, name="mean over tasks", legendgroup="mean", mode="lines",
            line={"color": GREY, "width": 4}, showlegend=first, customdata=spread, **place,
            hovertemplate="<b>mean</b>, block %{x}: %{y:.3f} (sd over seeds %{customdata:.3f})"
            "<extra></extra>",
        )  # fmt: skip
    if panel.prompting:
        level = sum(panel.prompting.values()) / len(panel.prompting)
        fig.add_scatter(
            x=[-0.5, mean.index[-1] + 0.5], y=[level] * 2, mode="lines", legendgroup="prompt",
            name="prompting" if alone else "prompting, mean over tasks", showlegend=first,
            line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="y", **place,
        )  # fmt: skip
    fig.add_vline(x=panel.best, line={"color": GREY, "dash": "dash", "width": 1}, **place)
    fig.add_annotation(
        x=panel.best, y=1.05, text=f"block {panel.best}", showarrow=False, yanchor="top",
        xanchor="left", xshift=4, font_size=12, **place,
    )  # fmt: skip

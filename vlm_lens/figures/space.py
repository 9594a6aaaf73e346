"""Maps of context embeddings and task vectors: colour is the task, shape is where it is read."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.figures.style import GREY, PALETTE, style
from vlm_lens.terms import CONTEXT, VECTORS, Layer, examples_of, layer_name

__all__ = ["space_maps"]

_SHAPES = {"text": "circle", "image": "x-thin", "description": "square", "instruction": "star"}
_ORDER = (CONTEXT, VECTORS)


def space_maps(points: pd.DataFrame, silhouettes: pd.DataFrame, *, layer: Layer) -> go.Figure:
    """The t-SNE maps side by side; their titles give the silhouettes.

    Args:
        points: Rows with `set`, `task`, `source`, `input`, `x` and `y`.
        silhouettes: Rows with `set`, `by`, `silhouette` and `p`.
        layer: Where they were read.

    Returns:
        The figure.
    """
    titles = [
        f"{name}<br><span style='font-size:11px'>{_scores(silhouettes, name)}</span>"
        for name in _ORDER
    ]
    fig = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.04)
    colours = list(PALETTE.values())
    tasks = list(dict.fromkeys(points["task"]))
    for col, name in enumerate(_ORDER, 1):
        of_set = points[points["set"] == name]
        for source, shape in _SHAPES.items():  # instructions last, on top
            for i, task in enumerate(tasks):
                mine = of_set[(of_set["task"] == task) & (of_set["source"] == source)]
                if mine.empty:
                    continue
                colour = colours[i % len(colours)]
                star = source == "instruction"
                fig.add_scatter(
                    x=mine["x"],
                    y=mine["y"],
                    mode="markers",
                    marker={
                        "color": colour,
                        "symbol": shape,
                        "size": 15 if star else 7,
                        "opacity": 1 if star else 0.8,
                        "line": {"width": 1.8 if source == "image" else 1 if star else 0,
                                 "color": GREY if star else colour},
                    },
                    showlegend=False,
                    customdata=mine["input"],
                    hovertemplate=f"<b>{task}</b>, {source}<br>%{{customdata}}<extra></extra>",
                    row=1,
                    col=col,
                )  # fmt: skip
    for i, task in enumerate(tasks):
        fig.add_scatter(x=[None], y=[None], mode="markers", name=task,
                        marker={"color": colours[i % len(colours)], "size": 10})  # fmt: skip
    for source in dict.fromkeys(points["source"]):
        wide = {"line": {"width": 2, "color": GREY}} if source == "image" else {}
        fig.add_scatter(
            x=[None], y=[None], mode="markers",
            name=examples_of(source),
            marker={"color": GREY, "symbol": _SHAPES[source], "size": 10, **wide},
        )  # fmt: skip
    style(
        fig, title="Context lies by modality, vectors by task?",
        subtitle=f"t-SNE of the output of {layer_name(layer)} (0-based), after the final norm; "
        "distances have no unit",
        height=600,
    )  # fmt: skip
    plain = {"showticklabels": False, "zeroline": False, "ticks": ""}
    fig.update_xaxes(title_text="t-SNE 1", **plain)
    fig.update_yaxes(**plain)
    fig.update_yaxes(title_text="t-SNE 2", col=1)
    fig.update_annotations(font_size=14)
    fig.update_layout(
        legend={"orientation": "h", "y": -0.08, "yanchor": "top", "x": 0}, margin_t=180
    )
    return fig


def _scores(silhouettes: pd.DataFrame, name: str) -> str:
    mine = silhouettes[silhouettes["set"] == name]
    mine = mine[mine["by"].isin(("task", "modality"))]  # there is no room for more
    scores = [f"by {row.by}<br>{row.silhouette:.2f} (p {row.p:.3f})" for row in mine.itertuples()]
    return "silhouette " + ",<br>".join(scores)  # short lines: a phone's panel is narrow

"""Numbers on one, two or more named axes, as a figure: a line, a heat map, heat maps by slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import plotly.graph_objects as go

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.style import PALETTE, colour_scale, style

__all__ = ["score_map"]

_TITLES = {
    "layer": "block (0-based)",
    "head": "head (0-based)",
    "position": "position and token",
    "query": "query position and token",
    "kind": "kind of position",
    "receiver": "receiver of the path",
    "edges": "edges in the circuit, the strongest",
}
_ALONG = ("layer", "scale", "edges")  # a quantity: numbers against it are a line, not bars
# which axis runs to the right: the rightmost named here that is there
_ACROSS = ("kind", "head", "feature", "layer", "query", "position")
_FRAMES = 200
_SLANTED_PX = 6  # how much further down a letter of a slanted label reaches


def score_map(
    values: np.ndarray, axes: Mapping[str, Sequence[str]], *, name: str, subtitle: str = ""
) -> go.Figure:
    """Numbers against their axes.

    Args:
        values: The numbers, an axis for each of `axes`.
        axes: Axis -> the names of its entries, in the array's order.
        name: What the numbers are.
        subtitle: What of them is shown.

    Raises:
        VLMLensError: More axes than a figure can show.
    """
    order = sorted(axes, key=lambda a: _ACROSS.index(a) if a in _ACROSS else -1, reverse=True)
    across, *rest = order
    if not rest:
        return _line(values, across, axes[across], name, subtitle)
    up = "layer" if "layer" in rest else rest[0]
    if across == "layer" and "head" in rest:
        up = "head"
    others = [a for a in axes if a not in (across, up)]
    moved = np.moveaxis(values, [list(axes).index(a) for a in (*others, up, across)],
                        range(len(axes)))  # fmt: skip
    settings = list(product(*(axes[a] for a in others)))
    if len(settings) > _FRAMES:
        raise VLMLensError(
            f"{', '.join(others)} have {len(settings)} settings, more than a slider shows "
            f"({_FRAMES}): choose some with sel(), or sum over an axis first."
        )
    flat = moved.reshape(-1, *moved.shape[-2:])
    fig = go.Figure()
    for i, matrix in enumerate(flat):
        fig.add_heatmap(
            x=list(range(matrix.shape[1])),
            y=list(range(matrix.shape[0])),
            z=matrix,
            visible=i == 0,
            coloraxis="coloraxis",
            customdata=[[[u, a] for a in axes[across]] for u in axes[up]],
            hovertemplate=f"{up} %{{customdata[0]}}, {across} %{{customdata[1]}}"
            f"<br>{_plain(name)} %{{z:.4g}}<extra></extra>",
        )
    ticks = _ticks(axes[across])
    longest = max(map(len, ticks["ticktext"]))
    slanted = longest > 3
    below = 70 + _SLANTED_PX * longest * slanted  # labels and title of the axis
    height = 210 + max(160, min(26 * len(axes[up]), 640)) + (below - 10) * bool(others)
    style(fig, title=_plain(name), subtitle=_plain(subtitle) or None, height=height)
    bar = {"title": {"text": _plain(name), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    fig.update_layout(coloraxis={"colorbar": bar, **colour_scale(values.flatten().tolist())})
    fig.update_xaxes(
        title_text=_TITLES.get(across, across), tickangle=-60 if slanted else 0,
        showgrid=False, zeroline=False, **ticks,
    )  # fmt: skip
    fig.update_yaxes(
        title_text=_TITLES.get(up, up), showgrid=False, zeroline=False, **_ticks(axes[up]),
        autorange="reversed" if up == "head" else True,
    )  # fmt: skip
    if others:
        steps = [
            {
                "label": _plain(setting[0])
                if len(others) == 1
                else ", ".join(f"{a} {_plain(s)}" for a, s in zip(others, setting, strict=True)),
                "method": "update",
                "args": [{"visible": [j == i for j in range(len(settings))]}],
            }
            for i, setting in enumerate(settings)
        ]
        shown = {"prefix": f"{others[0]} " if len(others) == 1 else ""}
        fig.update_layout(sliders=[{"steps": steps, "currentvalue": shown, "pad": {"t": below}}])
    return fig


def _line(
    values: np.ndarray, axis: str, labels: Sequence[str], name: str, subtitle: str
) -> go.Figure:
    fig = go.Figure()
    numbers = _numbers(labels, float if axis in _ALONG else int)
    common = {
        "x": numbers or list(labels),
        "y": values,
        "hovertemplate": f"{axis} %{{x}}<br>{_plain(name)} %{{y:.4g}}<extra></extra>",
    }
    if axis in _ALONG:
        fig.add_scatter(mode="lines+markers", line={"color": PALETTE["blue"]}, **common)
    else:
        fig.add_bar(marker={"color": PALETTE["blue"]}, **common)
    style(fig, title=_plain(name), subtitle=_plain(subtitle) or None,
          x=_TITLES.get(axis, axis), y=_plain(name), height=400)  # fmt: skip
    return fig


def _numbers(labels: Sequence[str], kind: type[int] | type[float]) -> list[float] | None:
    try:
        return [kind(v) for v in labels]
    except ValueError:
        return None


def _ticks(labels: Sequence[str]) -> dict[str, list]:
    step = max(1, -(-len(labels) // 40))
    return {
        "tickvals": list(range(0, len(labels), step)),
        "ticktext": [_plain(v if len(v) <= 24 else v[:23] + "…") for v in labels[::step]],
    }


def _plain(text: str) -> str:
    return text.replace("\n", "⏎").replace("<", "&lt;")

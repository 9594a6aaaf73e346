"""Heat maps, bars and scatters of plotly, drawn by matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_lens.figures.cell_text import ink_on, limits
from vlm_lens.figures.static_axes import POINTS, PlotAxis, plain, rgba
from vlm_lens.figures.style import INK, PALETTE

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

    from vlm_lens.figures.static_axes import Plane

_SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "star": "*", "x": "X", "x-thin": "x",
    "cross": "P", "line-ns": "|", "line-ew": "_", "triangle-up": "^", "triangle-down": "v",
}  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)),
           "longdashdot": (0, (8, 3, 1, 3))}  # fmt: skip
DRAWN = ("heatmap", "bar", "scatter")  # kinds of traces
_THIN = ("x-thin", "line-ns", "line-ew")
_PLACEHOLDER = re.compile(r"%\{(\w+)(?::([^}]*))?\}")


def draw_traces(fig: go.Figure, plane: Plane, traces: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Draws all traces.

    Returns:
        For each scale of colours that is shown: what it is of plotly, and what matplotlib colours.
    """
    way = fig.layout.colorway or list(PALETTE.values())
    scales: dict[Any, tuple[Any, Any]] = {}
    below: dict[Axes, tuple[np.ndarray, np.ndarray]] = {}
    for number, trace in enumerate(traces):
        names = trace.xaxis or "x", trace.yaxis or "y"
        axes, x, y = plane.pairs[names], plane.axis[names[0]], plane.axis[names[1]]
        if trace.type == "heatmap":
            scale = fig.layout[trace.coloraxis] if trace.coloraxis else trace
            drawn = _heatmap(axes, x, y, trace, scale)
            if scale.showscale is not False:
                scales.setdefault(trace.coloraxis or number, (scale.colorbar, drawn))
        elif trace.type == "bar":
            colour = way[number % len(way)]
            _bars(axes, x, y, trace, colour, *_slot(fig, trace, traces))
        else:
            at = x.at(trace.x if trace.x is not None else range(len(trace.y))), y.at(trace.y)
            _scatter(axes, trace, *at, way[number % len(way)], below.get(axes))
            below[axes] = at
    return list(scales.values())


def colour_of(trace: Any, otherwise: str) -> str:
    """The one colour that stands for a trace."""
    for part in (getattr(trace, "line", None), trace.marker):
        if part is not None and isinstance(part.color, str):
            return part.color
    return otherwise


def marker_of(symbol: Any) -> str:
    """The sign of matplotlib for a symbol."""
    return _SYMBOLS.get(str(symbol or "circle").removesuffix("-open"), "o")


def dash_of(line: Any) -> Any:
    """The dashes of matplotlib for those of a line."""
    return _DASHES.get(line.dash or "solid", "-")


# ---------------------------------------------------------------------------------- heat maps


def _heatmap(axes: Axes, x: PlotAxis, y: PlotAxis, trace: Any, scale: Any) -> Any:
    z = np.array([[np.nan if v is None else v for v in row] for row in trace.z], float)
    xs, ys = _edges(x, trace.x, z.shape[1]), _edges(y, trace.y, z.shape[0])
    colours, norm = _colours(scale, z)
    ruled = bool(trace.xgap or trace.ygap)
    drawn = axes.pcolormesh(
        xs, ys, np.ma.masked_invalid(z), cmap=colours, norm=norm,
        edgecolors="white" if ruled else "none", linewidth=0.8 if ruled else 0, zorder=1,
    )  # fmt: skip
    if trace.texttemplate:
        size = (trace.textfont.size or 12) * POINTS
        for i, j in np.ndindex(*z.shape):
            said = _filled(trace, i, j, z[i, j])
            if said:
                middle = (xs[j] + xs[j + 1]) / 2, (ys[i] + ys[i + 1]) / 2
                axes.text(
                    *middle, said, ha="center", va="center", fontsize=size, zorder=3,
                    color=ink_on(*colours(norm(z[i, j]))), clip_on=True,
                )  # fmt: skip
    return drawn


def _edges(axis: PlotAxis, given: Any, count: int) -> np.ndarray:
    at = axis.at(given) if given is not None else np.arange(count, dtype=float)
    if len(at) == count + 1:
        return at
    if count == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    between = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - between[0]], between, [2 * at[-1] - between[-1]]])


def _colours(scale: Any, z: np.ndarray) -> tuple[Colormap, Normalize]:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    stops = scale.colorscale or ((0, "#ffffff"), (1, PALETTE["blue"]))
    if scale.reversescale:
        stops = [(1 - at, colour) for at, colour in reversed(stops)]
    colours = LinearSegmentedColormap.from_list("plotly", [(at, rgba(c)) for at, c in stops])
    return colours, Normalize(*limits(scale, z))


def _filled(trace: Any, i: int, j: int, z: float) -> str:
    """The text of one place, by the trace's template."""

    def value(found: re.Match[str]) -> str:
        if found[1] == "z":
            return "" if np.isnan(z) else format(z, found[2] or "")
        held = None if trace.text is None else trace.text[i][j]
        return "" if held is None else str(held)

    return plain(_PLACEHOLDER.sub(value, trace.texttemplate))


# ---------------------------------------------------------------------- bars, lines, markers


def _slot(fig: go.Figure, trace: Any, traces: Sequence[Any]) -> tuple[int, int]:
    """Which of how many bars side by side a trace's are; stacked ones stand in one place."""
    mine = [t for t in traces if t.type == "bar" and (t.xaxis, t.yaxis) == (trace.xaxis, trace.yaxis)]  # noqa: E501  # fmt: skip
    if fig.layout.barmode in ("stack", "relative", "overlay"):
        return 0, 1
    return next(i for i, t in enumerate(mine) if t is trace), len(mine)


def _bars(
    axes: Axes, x: PlotAxis, y: PlotAxis, trace: Any, colour: str, number: int, count: int
) -> None:
    flat = trace.orientation == "h"
    places, lengths = (y.at(trace.y), x.at(trace.x)) if flat else (x.at(trace.x), y.at(trace.y))
    wide = 0.8 / count if trace.width is None else trace.width
    places = places + (number - (count - 1) / 2) * wide
    stacked = axes.__dict__.setdefault("_stacked", {}) if count == 1 else {}
    base = np.zeros(len(places)) if trace.base is None else np.broadcast_to(trace.base, places.shape)  # noqa: E501  # fmt: skip
    base = base + [stacked.get(float(p), 0.0) for p in places]
    given = trace.marker.color
    many = [rgba(c) for c in given] if isinstance(given, tuple | list | np.ndarray) else None
    kind = axes.barh if flat else axes.bar
    edge = trace.marker.line
    kind(
        places, lengths, wide * 0.94, base, color=many or rgba(colour_of(trace, colour)),
        edgecolor=rgba(edge.color) if edge.width else "none", linewidth=(edge.width or 0) * POINTS,
        alpha=trace.opacity if trace.opacity is not None else trace.marker.opacity, zorder=2,
    )  # fmt: skip
    for place, end in zip(places, base + np.nan_to_num(lengths), strict=True):
        stacked[float(place)] = end
    ends = base + lengths
    at = (ends, places) if flat else (places, ends)
    _errors(axes, trace, *at)
    texts = trace.text if isinstance(trace.text, list | tuple | np.ndarray) else ()
    inside = trace.textposition == "inside"
    if inside:
        aligned = {"ha": "center", "va": "center"}
    else:
        aligned = {"ha": "left" if flat else "center", "va": "center" if flat else "bottom"}
    for place, start, end, text in zip(places, base, ends, texts, strict=False):
        middle = (start + end) / 2 if inside else end
        axes.text(
            *((middle, place) if flat else (place, middle)), plain(str(text)), **aligned,
            color=rgba((inside and trace.insidetextfont.color) or INK), fontsize=11 * POINTS,
            zorder=4,
        )  # fmt: skip


def _scatter(
    axes: Axes, trace: Any, x: np.ndarray, y: np.ndarray, colour: str,
    below: tuple[np.ndarray, np.ndarray] | None,
) -> None:  # fmt: skip
    mode = trace.mode or "lines+markers"
    own = colour_of(trace, colour)
    if trace.fill in ("tonexty", "tozeroy") and len(y):
        ground = below[1] if trace.fill == "tonexty" and below is not None else 0.0
        filled = rgba(trace.fillcolor) if trace.fillcolor else rgba(own, 0.3)
        axes.fill_between(x, ground, y, color=filled, linewidth=0, zorder=1.5)
    opacity = trace.opacity
    if "lines" in mode and trace.line.width != 0:
        step = {"drawstyle": "steps-mid"} if trace.line.shape == "hvh" else {}
        axes.plot(x, y, color=rgba(own, opacity), linestyle=dash_of(trace.line),
                  linewidth=(trace.line.width or 2) * POINTS, zorder=2.5, **step)  # fmt: skip
    marker = trace.marker
    if "markers" in mode and marker.opacity != 0:
        _markers(axes, trace, x, y, own)
    if "text" in mode and trace.text is not None:
        for at_x, at_y, text in zip(x, y, np.broadcast_to(trace.text, x.shape), strict=True):
            axes.text(at_x, at_y, plain(str(text)), fontsize=11 * POINTS, color=INK, va="bottom",
                      ha="center", zorder=4)  # fmt: skip
    _errors(axes, trace, x, y, rgba(own, opacity))


def _markers(axes: Axes, trace: Any, x: np.ndarray, y: np.ndarray, own: str) -> None:
    marker = trace.marker
    symbol = str(marker.symbol or "circle")
    colours = marker.color
    if colours is None or isinstance(colours, str):
        face = [rgba(colours or own, trace.opacity or marker.opacity)]
    elif isinstance(colours[0], str):
        face = [rgba(c) for c in colours]
    else:
        scale, norm = _colours(_Numbers(marker), np.asarray(colours, float))
        face = scale(norm(np.asarray(colours, float)))
    open_ = symbol.endswith("-open")
    thin = symbol.removesuffix("-open") in _THIN
    line = marker.line
    size = marker.size if marker.size is not None else 6
    sizes = (np.asarray(size, float) * POINTS) ** 2
    edge = rgba(line.color) if isinstance(line.color, str) and line.width else "none"
    axes.scatter(
        x, y, s=sizes, marker=marker_of(symbol), zorder=3,
        c="none" if open_ and not thin else face if len(face) > 1 or thin else [face[0]],
        edgecolors=None if thin else face if open_ else edge,
        linewidths=max(1.4, (line.width or 0) * POINTS) if thin or open_
        else (line.width or 0) * POINTS,
    )  # fmt: skip


class _Numbers:
    """Markers coloured by number, as a scale of colours."""

    plotly_name = "coloraxis"

    def __init__(self, marker: Any):
        self._marker = marker
        self.colorscale, self.reversescale = marker.colorscale, marker.reversescale

    def __getitem__(self, name: str) -> Any:
        return self._marker[name]


def _errors(axes: Axes, trace: Any, x: np.ndarray, y: np.ndarray, colour: Any = None) -> None:
    for which in "xy":
        error = trace[f"error_{which}"]
        if error.array is None:
            continue
        above = np.array(error.array, float)
        under = above if error.arrayminus is None else np.array(error.arrayminus, float)
        axes.errorbar(
            x, y, **{f"{which}err": [np.maximum(under, 0), np.maximum(above, 0)]}, fmt="none",
            ecolor=rgba(error.color) if error.color else colour or rgba(INK), capsize=2,
            elinewidth=(error.thickness or 1.5) * POINTS, zorder=3.5,
        )  # fmt: skip

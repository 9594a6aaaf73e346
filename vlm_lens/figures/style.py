"""One look for every figure: colours, fonts, axes, and what plotly is asked to show of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import unescape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = [
    "CONFIG",
    "DIVERGING",
    "GRID",
    "GREY",
    "INK",
    "PALETTE",
    "SEQUENTIAL",
    "colour_scale",
    "fade",
    "interval",
    "legend_below",
    "plain_lines",
    "style",
    "without_links",
]

# Okabe and Ito 2008: told apart with every common form of colour blindness.
PALETTE: dict[str, str] = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
}
GREY = "#8C8C8C"
INK = "#3d434b"  # text, on the figure's own ground: no one colour is legible on every page's
GROUND = "#ffffff"
GRID = "rgba(128,128,128,0.22)"
SEQUENTIAL = "Cividis"  # for heat maps: even in lightness, the same for colour-blind readers
DIVERGING = "RdBu_r"  # for numbers below 0 and above
# How plotly shows a figure: nothing that sends data away.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
_LINK = re.compile(r"<(?=\s*/?\s*a[\s>/])", re.IGNORECASE)
_AWAY = ("sendChartToCloud", "sendDataToCloud", "editInChartStudio")  # buttons, by plotly's names


def plain_lines(text: str) -> list[str]:
    """A text of plotly, without its tags, by line.

    Args:
        text: As plotly shows it: a piece of HTML.
    """
    return [unescape(re.sub(r"<[^>]+>", "", line)) for line in re.split(r"<br\s*/?>", text)]


def colour_scale(values: Iterable[float]) -> dict[str, Any]:
    """Colours of a heat map: from 0 on or, where numbers are below it, alike on both sides of it.

    Args:
        values: All that are shown; NaN counts for nothing.

    Returns:
        `colorscale`, `cmin` and `cmax` of a `coloraxis`.
    """
    shown = [value for value in values if value == value] or [0.0]
    most = max(abs(value) for value in shown) or 1.0
    if min(shown) < 0:
        return {"colorscale": DIVERGING, "cmin": -most, "cmax": most}
    return {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": most}


def fade(colour: str, alpha: float) -> str:
    """A colour of the form `#rrggbb`, made transparent.

    Args:
        colour: The colour.
        alpha: From 0, unseen, to 1, opaque.

    Returns:
        The colour as `rgba(...)`.
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def interval(table: pd.DataFrame, **look: Any) -> dict[str, Any]:
    """Error bars from `low` to `high` around `accuracy`.

    Args:
        table: Rows with these columns.
        **look: What plotly takes for error bars: `color`, `thickness`, `width`.
    """
    above, below = table["high"] - table["accuracy"], table["accuracy"] - table["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def legend_below(fig: go.Figure, *, margin: int = 88) -> go.Figure:
    """Puts the legend into a row of its own below the axes, in place.

    Args:
        fig: The figure, styled.
        margin: Pixels below the axes, for ticks, title and legend.

    Returns:
        The same figure.
    """
    return fig.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        margin_b=margin,
    )


def style(
    fig: go.Figure,
    *,
    title: str | None = None,
    subtitle: str | None = None,
    x: str | None = None,
    y: str | None = None,
    height: int | None = None,
    width: int | None = None,
    legend: bool | None = None,
) -> go.Figure:
    """Gives a figure the package's look, in place.

    Args:
        fig: The figure.
        title: What is shown, in one line.
        subtitle: What is counted, in smaller letters below.
        x: Title of the x axes: what it is, with its unit.
        y: Title of the y axes.
        height: Height in pixels.
        width: Width in pixels; by default as wide as the page.
        legend: Whether there is a legend; by default plotly's choice.

    Returns:
        The same figure.
    """
    fig.update_layout(
        template="none",
        paper_bgcolor=GROUND,
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=list(PALETTE.values()),
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": INK,
        },
        margin={"l": 64, "r": 24, "t": 84 if subtitle else 64 if title else 24, "b": 56},
        hoverlabel={"font": {"family": "ui-monospace, monospace", "size": 12}},
        legend={"bgcolor": "rgba(0,0,0,0)", "borderwidth": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": INK, "remove": _AWAY},
    )
    if title is not None:
        text = f"<b>{title}</b>"
        if subtitle:
            text += f"<br><span style='font-size:12px'>{subtitle}</span>"
        fig.update_layout(
            title={"text": text, "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 16}}
        )
    for update, label in ((fig.update_xaxes, x), (fig.update_yaxes, y)):
        update(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
        update(title_font_size=13, title_standoff=10)
        if label is not None:
            update(title_text=label)
    given = {"height": height, "width": width, "showlegend": legend}
    fig.update_layout({k: v for k, v in given.items() if v is not None})
    for part in (*fig.data, fig.layout):
        for name in part:
            shown = without_links(part[name])
            if shown is not None:
                part[name] = shown
    return fig


def without_links(value: Any) -> Any:
    """A part of a figure in which links are shown as the text that they are; None if it has none.

    Plotly obeys links in every text, and labels, tokens and names are data: they may come from
    anywhere. The package's own figures have no links.

    Args:
        value: A property of a trace or of a layout.
    """
    if hasattr(value, "to_plotly_json"):
        value = value.to_plotly_json()
    if isinstance(value, str):
        shown = _LINK.sub("&lt;", value)
        return None if shown == value else shown
    if isinstance(value, dict):
        found = {k: shown for k, v in value.items() if (shown := without_links(v)) is not None}
        return {**value, **found} if found else None
    of_texts = getattr(getattr(value, "dtype", None), "kind", None) in ("O", "U")
    if isinstance(value, list | tuple) or of_texts:
        items = [without_links(v) for v in value]
        if any(item is not None for item in items):
            return [v if shown is None else shown for v, shown in zip(value, items, strict=True)]
    return None

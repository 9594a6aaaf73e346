"""Texts in the cells of heat maps, black or white: whichever is read better on the cell's colour.

Plotly itself writes dark grey or white, by the cell's brightness, which falls to a contrast of 2.5
on the middle of a scale. Of black and white the better one has at least 4.5 on every colour, what
WCAG 2.1 asks for (https://www.w3.org/TR/WCAG21/#contrast-minimum).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vlm_lens.figures.colour import colour_channels

__all__ = ["ink_on", "legible_cells"]

_SIZE = 12  # pixels: plotly's own choice counts the letters of tags too
_STEPS = 256  # colours of a scale that are looked at
_NUMBER = re.compile(r"%\{z(?::([^}]*))?\}")


def ink_on(red: float, green: float, blue: float, opacity: float = 1.0) -> str:
    """Black or white, whichever has more contrast with a colour.

    Args:
        red: From 0 to 1, in sRGB.
        green: As red.
        blue: As red.
        opacity: How much of the colour is seen, from 0 to 1; the rest is white behind it.
    """
    seen = (opacity * c + (1 - opacity) for c in (red, green, blue))
    linear = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in seen)
    luminance = float(np.dot(list(linear), (0.2126, 0.7152, 0.0722)))
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def legible_cells(fig: go.Figure) -> go.Figure:
    """Colours the texts in a figure's heat maps, in place.

    Args:
        fig: The figure, whose scales of colour are set, in any form of `colour_channels`.

    Returns:
        The same figure.
    """
    for trace in fig.data:
        if trace.type == "heatmap" and trace.texttemplate:
            scale = fig.layout[trace.coloraxis] if trace.coloraxis else trace
            trace.text = _coloured(_texts(trace), np.array(trace.z, float), scale)
            trace.texttemplate = "%{text}"
            trace.textfont.size = trace.textfont.size or _SIZE
    return fig


def _texts(trace: go.Heatmap) -> list[list[str]]:
    """What stands in each cell, its numbers written out."""
    found = _NUMBER.fullmatch(trace.texttemplate)
    if found is None:
        return [["" if text is None else str(text) for text in row] for row in trace.text]
    numbers = np.array(trace.z, float)
    return [["" if v != v else format(v, found[1] or "") for v in row] for row in numbers]


def _coloured(texts: list[list[str]], z: np.ndarray, scale: Any) -> list[list[str]]:
    inks = _inks(scale)
    low, high = limits(scale, z)
    steps = np.nan_to_num((z - low) / (high - low)).clip(0, 1) * (_STEPS - 1)
    return [
        [f"<span style='color:{inks[int(step)]}'>{text}</span>" if text else ""
         for text, step in zip(*row, strict=True)]
        for row in zip(texts, steps.round(), strict=True)
    ]  # fmt: skip


def _inks(scale: Any) -> list[str]:
    stops, colours = zip(*scale.colorscale, strict=True)
    at = np.linspace(0, 1, _STEPS)
    known = zip(*map(colour_channels, colours), strict=True)
    seen = (np.interp(at, stops, channel) for channel in known)
    inks = [ink_on(*colour) for colour in zip(*seen, strict=True)]
    return inks[::-1] if scale.reversescale else inks


def limits(scale: Any, z: np.ndarray) -> tuple[float, float]:
    """The values that the ends of a scale of colour stand for.

    Args:
        scale: A coloraxis, or a heat map that has a scale of its own.
        z: The values, with nan where there are none; what is infinite has the ends' colours.
    """
    kind = "c" if scale.plotly_name.startswith("coloraxis") else "z"
    low, high, middle = (scale[f"{kind}{end}"] for end in ("min", "max", "mid"))
    known = z[np.isfinite(z)]
    low = (float(known.min()) if known.size else 0.0) if low is None else low
    high = (float(known.max()) if known.size else 1.0) if high is None else high
    if middle is not None:
        reach = max(high - middle, middle - low)
        low, high = middle - reach, middle + reach
    return low, high if high > low else low + 1

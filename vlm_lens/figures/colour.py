"""Colours as plotly is given them, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from colorsys import hls_to_rgb

from PIL import ImageColor

from vlm_lens.errors import VLMLensError

__all__ = ["colour_channels"]

_FUNCTION = re.compile(r"(rgb|hsl|hwb)a?\(([^()]*)\)")


def colour_channels(colour: str) -> tuple[float, float, float, float]:
    """Red, green, blue and opacity of a colour, each from 0 to 1, in sRGB.

    Args:
        colour: A name of CSS, `#rgb`, `#rgba`, `#rrggbb`, `#rrggbbaa`, `rgb(...)`, `hsl(...)` or
            `hwb(...)`, with opacity or without
            (https://www.w3.org/TR/css-color-4/#color-syntax).

    Raises:
        VLMLensError: It is none of these.
    """
    try:
        found = _FUNCTION.fullmatch(colour.strip().lower())
        if found is None:
            parts = ImageColor.getrgb(colour.replace(" ", "").lower())
            red, green, blue, alpha = (p / 255 for p in (*parts, 255)[:4])
            return red, green, blue, alpha
        return _of_function(found[1], re.split(r"[\s,/]+", found[2].strip()))
    except (AttributeError, TypeError, ValueError):
        raise VLMLensError(
            f"The colour {colour!r} cannot be read: give a name of CSS such as 'steelblue', "
            "'#4682b4', 'rgb(70, 130, 180)', 'hsl(207, 44%, 49%)' or 'hwb(207 27% 29%)'."
        ) from None


def _of_function(name: str, parts: Sequence[str]) -> tuple[float, float, float, float]:
    first, second, third, *rest = parts
    [alpha] = rest or ["1"]
    if name == "rgb":
        red, green, blue = (_share(part, of=255) for part in (first, second, third))
    else:
        hue = float(first.removesuffix("deg")) / 360 % 1
        one, other = _share(second, of=100), _share(third, of=100)
        if name == "hsl":
            red, green, blue = hls_to_rgb(hue, other, one)
        else:  # white and black mixed in
            white, black = one / max(1, one + other), other / max(1, one + other)
            pure = hls_to_rgb(hue, 0.5, 1)
            red, green, blue = (white + (1 - white - black) * channel for channel in pure)
    return red, green, blue, _share(alpha, of=1)


def _share(part: str, of: float) -> float:
    """A number, or a share in per cent, from 0 to 1."""
    value = float(part.removesuffix("%")) / (100 if part.endswith("%") else of)
    return min(max(value, 0.0), 1.0)

"""Colours mean what CSS says, in every form that plotly lets through."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_rgba

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.colour import colour_channels

# Each as a browser computes it.
SEEN = {
    "steelblue": (70, 130, 180, 1),
    "Rebecca Purple": (102, 51, 153, 1),
    "#FA0": (255, 170, 0, 1),
    "#fa08": (255, 170, 0, 136 / 255),
    "#12345678": (18, 52, 86, 120 / 255),
    "rgb(1, 2, 3)": (1, 2, 3, 1),
    "rgb(100%, 0%, 20%)": (255, 0, 51, 1),
    "rgba(12.5,2,3,.25)": (12.5, 2, 3, 0.25),
    "rgb(70 130 180 / 50%)": (70, 130, 180, 0.5),
    "hsl(207, 44%, 49%)": (70, 130, 180, 1),
    "hsla(120deg, 100%, 25%, 0.3)": (0, 127.5, 0, 0.3),
    "hwb(194 0% 0%)": (0, 195.5, 255, 1),
    "hwb(0 40% 80%)": (85, 85, 85, 1),
}


@pytest.mark.parametrize("colour", SEEN)
def test_every_form(colour):
    red, green, blue, opacity = colour_channels(colour)
    assert [255 * red, 255 * green, 255 * blue] == pytest.approx(SEEN[colour][:3], abs=0.6)
    assert opacity == pytest.approx(SEEN[colour][3])


def test_names_are_those_that_plotly_and_matplotlib_know():
    names = go.Scatter(line={"color": "red"}).line._get_validator("color").named_colors
    assert len(names) > 140
    for name in names:
        assert colour_channels(name) == pytest.approx(to_rgba(name))


@pytest.mark.parametrize("colour", ["stealblue", "#12", "rgb(1, 2)", "lab(50 40 59)", "", None, 3])
def test_what_is_no_colour_is_told_what_is(colour):
    with pytest.raises(VLMLensError, match="cannot be read: give a name of CSS"):
        colour_channels(colour)

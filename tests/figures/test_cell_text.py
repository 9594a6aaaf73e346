"""Texts in heat maps have the contrast that WCAG asks for, on every colour of every scale."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from vlm_lens.figures.cell_text import ink_on, legible_cells
from vlm_lens.figures.static_figure import draw_figure

FORMS = ["white", "SteelBlue", "#fa0", "rgba(0, 60, 80, 0.4)", "hsl(120, 50%, 30%)", "#1234"]
SCALES = ["Cividis", [[0, "#0072b2"], [0.5, "#ffffff"], [1, "rgb(213, 94, 0)"]]]


def contrast(one, other):
    """https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""

    def light(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_black_or_white_is_read_on_every_colour():
    worst = min(
        contrast(colour, to_rgb(ink_on(*colour)))
        for colour in product(np.linspace(0, 1, 12), repeat=3)
    )
    assert worst >= 4.5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", SCALES, ids=["named", "own"])
@pytest.mark.parametrize("shared", [False, True], ids=["own axis", "coloraxis"])
def test_each_text_is_read_on_its_cell(scale, shared, reverse):
    z = [[None, *np.linspace(-1, 3, 40)], [0.5, *np.linspace(3, -1, 40)]]
    fig = go.Figure(go.Heatmap(z=z, texttemplate="%{z:.2f}"))
    if shared:
        fig.data[0].coloraxis = "coloraxis"
        fig.update_layout(coloraxis={"colorscale": scale, "cmin": -1, "reversescale": reverse})
        stops = fig.layout.coloraxis.colorscale
    else:
        fig.update_traces(colorscale=scale, zmin=-1, reversescale=reverse)
        stops = fig.data[0].colorscale
    legible_cells(fig)
    known = [(p, c if c[0] == "#" else [int(v) / 255 for v in re.findall(r"\d+", c)])
             for p, c in stops]  # fmt: skip
    colours = LinearSegmentedColormap.from_list("", known)
    texts = np.array(fig.data[0].text)
    assert texts[0, 0] == "" and fig.data[0].texttemplate == "%{text}"
    assert fig.data[0].textfont.size >= 11
    for value, text in zip(np.ravel(z)[1:], texts.ravel()[1:], strict=True):
        [(ink, said)] = re.findall(r"^<span style='color:(#\w+)'>(.*)</span>$", text)
        assert said == f"{value:.2f}"
        share = (value + 1) / 4
        ground = colours(1 - share if reverse else share)[:3]
        assert contrast(ground, to_rgb(ink)) >= 4.4  # of 256 steps, beside 4.5


def test_what_is_infinite_has_the_colours_of_the_ends():
    z = [[-np.inf, 0.0, 1.0, np.inf]]
    fig = legible_cells(go.Figure(go.Heatmap(z=z, texttemplate="%{z:.0f}", colorscale="Greys")))
    inks = [re.search("#[0f]+", text)[0] for text in fig.data[0].text[0]]
    assert inks[0] == inks[1] != inks[2] == inks[3]


def test_a_picture_shows_the_text_alone(tmp_path):
    words = {"text": [["low", "high"]], "texttemplate": "%{text}"}
    fig = go.Figure(go.Heatmap(z=[[0.0, 1.0]], colorscale="Cividis", **words))
    draw_figure(legible_cells(fig), tmp_path / "cells.svg")
    drawn = (tmp_path / "cells.svg").read_text()
    assert ">low<" in drawn and ">high<" in drawn and "span" not in drawn


def test_scales_may_be_of_every_form_of_colour(tmp_path):
    for scale in ([[i / 5, c] for i, c in enumerate(FORMS)], "Viridis_r", "rdbu"):
        fig = go.Figure(go.Heatmap(z=[[0, 1], [2, 5]], texttemplate="%{z}", colorscale=scale))
        legible_cells(fig)
        draw_figure(fig, tmp_path / "cells.png")
        assert (tmp_path / "cells.png").stat().st_size > 1000
    faint = [[0, "rgba(0, 0, 0, 0.1)"], [1, "rgba(0, 0, 0, 0.9)"]]
    fig = go.Figure(go.Heatmap(z=[[0, 1]], texttemplate="%{z}", colorscale=faint))
    legible_cells(fig)
    assert ["#000000" in text for text in fig.data[0].text[0]] == [True, False]  # on white

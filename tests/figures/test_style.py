"""The common look."""

from __future__ import annotations

import plotly.graph_objects as go

from vlm_lens.figures.style import INK, PALETTE, fade, style


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_light_and_on_dark():
    assert contrast(INK, "#ffffff") > 4 and contrast(INK, "#15181c") > 3.9


def test_style_titles_axes_and_leaves_the_page_to_show_through():
    fig = go.Figure(go.Scatter(x=[1], y=[2]))
    assert style(fig, title="T", subtitle="S", x="layer", y="accuracy", height=300) is fig
    assert "T" in fig.layout.title.text and "S" in fig.layout.title.text
    assert (fig.layout.xaxis.title.text, fig.layout.yaxis.title.text) == ("layer", "accuracy")
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert fig.layout.height == 300


def test_fade_makes_transparent():
    assert fade("#0072B2", 0.2) == "rgba(0,114,178,0.2)"
    assert len(set(PALETTE.values())) == len(PALETTE)

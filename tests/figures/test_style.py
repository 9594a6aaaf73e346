"""The common look."""

from __future__ import annotations

import plotly.graph_objects as go

from vlm_lens.figures.style import GROUND, INK, PALETTE, fade, style, write_figure


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_the_figure_s_own_ground():
    assert contrast(INK, GROUND) > 7  # AAA; AA asks for 4.5


def test_no_figure_offers_to_send_data_away(tmp_path):
    fig = style(go.Figure(go.Scatter(x=[1], y=[2])))
    assert "sendChartToCloud" in fig.layout.modebar.remove  # in a notebook, too
    write_figure(fig, tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert '"showSendToCloud": false' in page and "plotly.min.js" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_style_titles_axes_on_a_ground_of_its_own():
    fig = go.Figure(go.Scatter(x=[1], y=[2]))
    assert style(fig, title="T", subtitle="S", x="layer", y="accuracy", height=300) is fig
    assert "T" in fig.layout.title.text and "S" in fig.layout.title.text
    assert (fig.layout.xaxis.title.text, fig.layout.yaxis.title.text) == ("layer", "accuracy")
    assert (fig.layout.paper_bgcolor, fig.layout.plot_bgcolor) == (GROUND, "rgba(0,0,0,0)")
    assert fig.layout.height == 300


def test_fade_makes_transparent():
    assert fade("#0072B2", 0.2) == "rgba(0,114,178,0.2)"
    assert len(set(PALETTE.values())) == len(PALETTE)

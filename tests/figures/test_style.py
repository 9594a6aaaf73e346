"""The common look."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.score_map import score_map
from vlm_lens.figures.style import (
    GROUND,
    INK,
    PALETTE,
    fade,
    style,
    without_links,
)
from vlm_lens.figures.sweep import sweep_figure
from vlm_lens.figures.write import write_figure
from vlm_lens.recipes import Result


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


LINK = "<a href='https://example.org'>go</a>"


def shown(fig):
    """Everything that plotly is given, as text."""
    return fig.to_json().replace("\\u003c", "<").replace("\\u003e", ">").lower()


def test_links_in_labels_are_shown_as_text():
    fig = go.Figure(
        [
            go.Bar(x=[LINK, "b"], y=[1, 2], name=LINK, hovertext=[LINK, ""]),
            go.Heatmap(
                z=[[1.0]], x=[LINK.upper()], y=np.array([LINK], object), customdata=[[LINK, 1]],
                hovertemplate=f"{LINK}<br>%{{z}}<extra></extra>",
            ),
            go.Scatter(x=[0], y=[1], text="< A href=x>", meta={"k": [LINK]}),
        ]
    )  # fmt: skip
    fig.add_annotation(text=f"<b>{LINK}</b>", x=0, y=0)
    fig.update_layout(coloraxis={"colorbar": {"title": {"text": LINK}}})
    style(fig, title=LINK, subtitle=LINK, x=LINK, y=LINK)
    assert "<a" not in shown(fig) and "< a" not in shown(fig)
    assert "&lt;a href=" in shown(fig) and fig.data[0].x[1] == "b"
    assert "<b>" in fig.layout.title.text and "<br>" in fig.data[1].hovertemplate


def test_links_in_what_a_user_names_are_shown_as_text():
    table = pd.DataFrame({"x": [LINK, "b"], LINK: [1.0, 2.0]})
    assert "<a" not in shown(Result(table, provenance={"model": {"name": LINK}}).plot())
    records = [
        {"point": f"p{i}", "layer": i, "at": at, "prob": 0.1} for i in (0, 1) for at in (LINK, "b")
    ]
    assert "<a" not in shown(sweep_figure(records, labels=("point", "layer", "at")))
    axes = {"layer": ["0", LINK], "token": [LINK, "b"]}
    assert "<a" not in shown(score_map(np.ones((2, 2)), axes, name=LINK, subtitle=LINK))


def test_a_figure_without_links_is_as_it_was():
    assert without_links({"a": ["<b>x</b>", 1, None, {"k": "<abbr>"}], "z": np.ones(3)}) is None

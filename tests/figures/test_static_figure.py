"""Figures as pictures: what is drawn is what the numbers are, and nothing needs a browser."""

from __future__ import annotations

import io

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from vlm_lens import Images, Last, LogitLens, VLMLensError
from vlm_lens.figures.static_figure import draw_figure
from vlm_lens.figures.style import style
from vlm_lens.figures.write import write_figure

pytest.importorskip("matplotlib")


def pixels(fig):
    out = io.BytesIO()
    draw_figure(fig, out, dpi=100)
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def near(picture, colour, reach=3):
    return (np.abs(picture - np.array(colour)) <= reach).all(-1)


def box(mask):
    rows, cols = np.where(mask)
    return rows.min(), rows.max(), cols.min(), cols.max()


SCALE = [[0, "rgb(255,0,0)"], [1, "rgb(0,0,255)"]]


def test_a_heat_map_has_its_colours_in_their_places():
    fig = go.Figure(go.Heatmap(z=[[0, 10], [10, 5]], colorscale=SCALE, showscale=False))
    found = pixels(style(fig, title="T"))
    red, blue, both = (near(found, c) for c in ([255, 0, 0], [0, 0, 255], [127, 0, 128]))
    area = red.sum()
    assert area > 10_000 and both.sum() == pytest.approx(area, rel=0.05)
    assert blue.sum() == pytest.approx(2 * area, rel=0.05)
    low, middle = box(red), box(both)  # the first row is below, the second column to the right
    assert low[0] > middle[1] - 3 and low[3] < middle[2] + 3
    upside = pixels(style(fig.update_yaxes(autorange="reversed"), title="T"))
    assert box(near(upside, [255, 0, 0]))[0] < low[0]


def test_bars_are_as_long_as_their_numbers():
    fig = go.Figure()
    fig.add_bar(x=["a", "b"], y=[1, 4], marker_color="#ff0000", name="one")
    fig.add_bar(x=["a", "b"], y=[2, 3], marker_color="#0000ff", name="two")
    found = pixels(style(fig.update_layout(barmode="group"), legend=False))
    red, blue = near(found, [255, 0, 0]), near(found, [0, 0, 255])
    heights = [np.sort(np.unique(m.sum(0)))[-1] for m in (red, blue)]
    assert heights[0] / heights[1] == pytest.approx(4 / 3, rel=0.02)
    assert red.sum() == pytest.approx(blue.sum(), rel=0.05)
    stacked = pixels(style(fig.update_layout(barmode="stack"), legend=False))
    columns = [c for c in (near(stacked, [255, 0, 0]) | near(stacked, [0, 0, 255])).sum(0) if c]
    assert max(columns) / min(columns) == pytest.approx(7 / 3, rel=0.04)


def test_lines_run_through_their_points_and_bands_lie_between_theirs():
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 0], mode="lines", line_width=0)
    fig.add_scatter(x=[0, 1], y=[1, 1], mode="lines", line_width=0, fill="tonexty",
                    fillcolor="rgb(0,255,0)")  # fmt: skip
    fig.add_scatter(x=[0, 1], y=[3, 3], mode="lines", line={"color": "#ff0000", "width": 3})
    fig.add_hline(y=2, line={"color": "#0000ff", "width": 3})
    fig.update_yaxes(range=[0, 4])
    found = pixels(style(fig, legend=False))
    band, red, blue = (box(near(found, c)) for c in ([0, 255, 0], [255, 0, 0], [0, 0, 255]))
    one, other = (red[0] + red[1]) / 2, (blue[0] + blue[1]) / 2
    assert (other - one) / (band[0] - other) == pytest.approx(1, abs=0.05)


def test_what_a_slider_hides_is_not_drawn_and_its_setting_is_named(tmp_path):
    fig = go.Figure()
    fig.add_heatmap(z=[[0]], zmin=0, zmax=1, colorscale=SCALE, visible=False)
    fig.add_heatmap(z=[[1]], zmin=0, zmax=1, colorscale=SCALE, showscale=False)
    steps = [{"label": "first", "method": "skip"}, {"label": "second", "method": "skip"}]
    about = {"active": 1, "steps": steps, "currentvalue": {"prefix": "block "}}
    style(fig.update_layout(sliders=[about]), title="<b>Two</b>", subtitle="a &lt; b, $x$")
    assert not near(pixels(fig), [255, 0, 0]).any()
    write_figure(fig, tmp_path / "one.svg")
    drawn = (tmp_path / "one.svg").read_text()
    assert all(text in drawn for text in ("Two", "a &lt; b, $x$", "block second"))
    write_figure(fig, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_a_lens_over_its_picture(load, tmp_path):
    vlm = load("clip-llama")
    picture = Image.new("RGB", (60, 30), (10, 200, 30))
    prompt = vlm.prompt("<image>\nA:", images=[picture])
    result = LogitLens(at=Images() + Last()).run(vlm, prompt)
    found = pixels(result.plot_image())
    top, foot, left, right = box(near(found, [10, 200, 30]))
    height, width = foot - top, right - left
    assert width / height == pytest.approx(1, rel=0.1) and width > 200  # what the crop leaves
    write_figure(result.plot(), tmp_path / "lens.png")
    assert Image.open(tmp_path / "lens.png").size[0] > 500


def test_what_cannot_be_drawn_says_so(tmp_path):
    with pytest.raises(
        VLMLensError, match="'pie' traces are drawn by plotly only: save .* as .html"
    ):
        write_figure(go.Figure(go.Pie(values=[1])), tmp_path / "pie.png")
    with pytest.raises(VLMLensError, match=r"x\.gif: a figure is written as \.html, \.png"):
        draw_figure(go.Figure(), tmp_path / "x.gif")


def test_an_axis_that_begins_at_zero_does_so_in_pictures(tmp_path):
    fig = go.Figure(go.Scatter(x=[0, 1], y=[0.6, 0.7]))
    fig.update_yaxes(rangemode="tozero", tickformat=".2f")
    draw_figure(fig, tmp_path / "zero.svg")
    assert ">0.00<" in (tmp_path / "zero.svg").read_text()


def test_texts_in_bars_have_the_bars_own_ink(tmp_path):
    fig = go.Figure(go.Bar(x=["a"], y=[1], text=["one"], textposition="inside",
                           insidetextfont_color="#ff00ff"))  # fmt: skip
    draw_figure(fig, tmp_path / "bars.svg")
    assert "#ff00ff" in (tmp_path / "bars.svg").read_text()

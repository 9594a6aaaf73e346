from __future__ import annotations

import dataclasses
import html
import re

import pytest
import torch

from vlm_lens import At, Last, LogitLens, Patches
from vlm_lens.errors import PointError, PositionError
from vlm_lens.figures.prompt_view import visible
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageLayout, ImageSpace
from vlm_lens.lenses import LensResult, LensRow

TEXT = "Q:<image>\nA:"


@pytest.fixture
def clip(load):
    return load("clip-qwen2")


@pytest.fixture
def result(clip, picture):
    return LogitLens(tokens=(":",)).run(clip, clip.prompt(TEXT, [picture]))


def quoted(token):
    return html.escape(repr(token), quote=False)


def small_result(strings, kinds, images=(), *, layers=2, labels=None, k=2):
    """A result made by hand: token 0 first, token 1 second, everywhere."""
    n = len(strings)
    layout = Layout(tuple(range(n)), tuple(strings), tuple(kinds), 0, tuple(images))
    ids = torch.arange(k).expand(layers, n, k)
    probs = torch.tensor([0.5, 0.25, *[0.01] * (k - 2)]).expand(layers, n, k)
    nothing = probs[..., :0]
    row = LensRow(layout, tuple(range(n)), ids, probs, nothing, nothing.long())
    points = tuple(f"blocks.{i}.hook_resid_post" for i in range(layers))
    names = labels or {0: "one", 1: "two"}
    return LensResult(points, (row,), labels=names, pictures=((),), model="made-up")


def one_picture(rows, cols, first, pixel_map):
    grid = PatchGrid(rows, cols, tuple(range(first, first + rows * cols)), 0, pixel_map)
    return ImageLayout(0, ImageSpace((grid,), ((0, grid.positions),)))


# ------------------------------------------------------------------------- layers by positions


def test_each_place_shows_its_top_token_and_probability(result):
    fig = result.plot()
    found = {}
    for trace in fig.data:  # one heat map for each stretch of text or patches, left to right
        for column in range(len(trace.x) - 1):
            found[len(found)] = [
                (trace.z[layer][column], trace.hovertext[layer][column])
                for layer in range(len(result.points))
            ]
    assert len(found) == len(result.rows[0].positions)
    for i, layers in found.items():
        for layer, (prob, hover) in enumerate(layers):
            token, top = result.top(layer, i)[0]
            assert prob == pytest.approx(top)
            position = result.rows[0].positions[i]
            assert hover.startswith(f"<b>position {position}</b>")
            assert f"<br>blocks.{layer}.hook_resid_post<br>{top:6.1%}  {quoted(token)}" in hover


def bare(text):
    """Without the colour that it has on its cell."""
    return re.sub("</?span[^>]*>", "", text)


def test_text_columns_hold_top_tokens(result):
    fig = result.plot()
    text = fig.data[0].text
    for layer in range(len(result.points)):
        for i in range(len(text[layer])):
            token, _ = result.top(layer, i)[0]
            assert bare(text[layer][i]) == html.escape(visible(token, 8), quote=False)


def test_block_0_is_at_the_bottom(result):
    fig = result.plot()
    n = len(result.points)
    assert fig.layout.yaxis.ticktext == tuple(map(str, range(n)))
    assert fig.layout.yaxis.tickvals == tuple(range(n))
    assert fig.layout.yaxis.autorange is None and fig.layout.yaxis.range is None  # upwards
    assert "0-based" in fig.layout.yaxis.title.text and "output of" in fig.layout.yaxis.title.text
    assert tuple(fig.data[0].y) == tuple(i - 0.5 for i in range(n + 1))


def test_hover_says_what_was_asked(result):
    row = result.rows[0]
    hover = result.plot().data[0].hovertext[1][0]
    expected = f"asked: ':' {float(row.token_probs[1, 0, 0]):.2%}"
    assert f"{expected}, rank {int(row.token_ranks[1, 0, 0])}" in hover


def test_columns_are_labelled_by_position_and_token(result):
    layout = result.rows[0].layout
    ticks = result.plot().layout.xaxis.ticktext
    assert ticks[0] == "0<br>&lt;s&gt;"  # plotly would strike the text through
    assert ticks[-1] == f"{layout.last}<br>:"
    assert any(t.endswith("<br>\\n") for t in ticks)


def test_few_patches_have_columns_of_their_own(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    result = LogitLens(at=Patches(0, rows=1)).run(clip, prompt)
    fig = result.plot()
    positions = result.rows[0].positions
    assert fig.layout.xaxis.ticktext == tuple(f"{p}<br>(1, {c})" for c, p in enumerate(positions))
    assert fig.data[0].text is not None


def test_a_long_prompt_stays_narrow():
    image = one_picture(24, 24, 2, PixelMap((336, 336), (336, 336), (1.0, 1.0)))
    strings = ["Q", ":", *["<image>"] * 576, "A", ":"]
    kinds = ["text", "text", *["image 0"] * 576, "text", "text"]
    fig = small_result(strings, kinds, [image]).plot()
    assert [len(t.x) - 1 for t in fig.data] == [2, 576, 2]
    assert fig.layout.width < 900
    assert fig.layout.xaxis.ticktext[2] == "2..577<br>image 0<br>24 x 24 patches"
    patches, words = fig.data[1], fig.data[2]
    assert patches.text is None and words.text is not None
    assert "image 0, patch (1, 2)<br>pixels (28, 14, 42, 28)" in patches.hovertext[0][26]
    word = words.x[1] - words.x[0]
    assert word == pytest.approx(1) and patches.x[1] - patches.x[0] < word / 50
    assert patches.x[0] == words.x[0] - (patches.x[-1] - patches.x[0])  # no gap, no overlap


def test_one_position_shows_ranks(clip, picture):
    result = LogitLens(at=Last(), k=4, embedding=True).run(clip, clip.prompt(TEXT, [picture]))
    fig = result.plot()
    (trace,) = fig.data
    assert fig.layout.yaxis.ticktext[:3] == ("embed", "0", "1")
    assert result.layers == ("embed", *range(clip.cfg.n_layers))
    for row, layer in enumerate(result.layers):
        assert list(trace.z[row]) == pytest.approx([p for _, p in result.top(layer)])
    assert f"position {result.rows[0].positions[0]}, ':'" in fig.layout.xaxis.title.text


def test_padding_is_left_out(clip, picture):
    batch = clip.prompt(["Q:A", "Q:Greece\nA:Athens\n\nQ:<image>\nA:"], [[], [picture]])
    result = LogitLens().run(clip, batch)
    ticks = result.plot(row=0).layout.xaxis.ticktext
    assert ticks[0] == f"{batch.layouts[0].start}<br>&lt;s&gt;"
    with pytest.raises(PositionError, match="2 row"):
        result.plot(row=2)


def test_tokens_are_escaped():
    result = small_result(["<b>", "a&b"], ["text"] * 2, labels={0: "<i>x", 1: "$&"})
    fig = result.plot()
    assert bare(fig.data[0].text[0][0]) == "&lt;i&gt;x"
    assert "&lt;i&gt;x" in fig.data[0].hovertext[0][0] and "$&amp;" in fig.data[0].hovertext[0][0]
    assert fig.layout.xaxis.ticktext == ("0<br>&lt;b&gt;", "1<br>a&amp;b")


# ------------------------------------------------------------------------------ over a picture


def test_boxes_of_the_grid_are_the_pixels_of_the_patches(result):
    image = result.rows[0].layout.image[0]
    trace = result.plot_image().data[0]
    for position in image.grid.positions:
        row, col = image.grid.cell(position)
        box = (trace.x[col], trace.y[2 * row], trace.x[col + 1], trace.y[2 * row + 2])
        assert box == pytest.approx(image.pixels(position))


def test_each_patch_shows_its_own_token(result):
    row, image = result.rows[0], result.rows[0].layout.image[0]
    fig = result.plot_image()
    assert len(fig.data) == len(result.points)
    for layer, trace in enumerate(fig.data):
        for position in image.grid.positions:
            r, c = image.grid.cell(position)
            token, prob = result.top(layer, row.positions.index(position))[0]
            assert trace.z[2 * r + 1][c] == pytest.approx(prob)
            for part in (2 * r, 2 * r + 1):  # the patch above its strip, and the strip
                assert f"position {position}<" in trace.hovertext[part][c]
                assert f"patch ({r}, {c})" in trace.hovertext[part][c]
                assert f"{prob:6.1%}  {quoted(token)}" in trace.hovertext[part][c]


def test_strips_leave_three_quarters_of_the_picture_as_it_is(result):
    trace = result.plot_image().data[0]
    tops, strips, feet = trace.y[0:-1:2], trace.y[1::2], trace.y[2::2]
    for top, strip, foot in zip(tops, strips, feet, strict=True):
        assert (foot - strip) / (foot - top) == pytest.approx(0.24)
    assert all(set(line) == {None} for line in trace.z[::2])


def test_the_slider_begins_at_any_layer(result):
    fig = result.plot_image(layer=0)
    assert [t.visible for t in fig.data] == [True, False] and fig.layout.sliders[0].active == 0
    with pytest.raises(PointError, match="Layer 9"):
        result.plot_image(layer=9)


def test_the_slider_shows_one_layer(result):
    fig = result.plot_image()
    n = len(result.points)
    assert [t.visible for t in fig.data] == [*[False] * (n - 1), True]
    (slider,) = fig.layout.sliders
    assert slider.active == n - 1 and slider.currentvalue.prefix == "output of block "
    assert [s.label for s in slider.steps] == [str(i) for i in range(n)]
    shown = [list(s.args[0]["visible"]) for s in slider.steps]
    assert shown == [[i == j for j in range(n)] for i in range(n)]


def test_the_picture_lies_under_its_grid_and_what_is_cut_away_is_dimmed(result, picture):
    fig = result.plot_image()
    (shown,) = fig.layout.images
    assert (shown.x, shown.y, shown.sizex, shown.sizey) == (0, 0, *picture.size)
    assert shown.source.startswith("data:image/png;base64,") and shown.layer == "below"
    assert fig.layout.yaxis.range == (30, 0) and fig.layout.xaxis.range == (0, 40)  # y downwards
    x0, y0, x1, y1 = result.rows[0].layout.image[0].grid.pixels_of.seen
    dimmed = [(s.x0, s.y0, s.x1, s.y1) for s in fig.layout.shapes]
    assert dimmed == [(0, 0, x0, 30), (x1, 0, 40, 30)]
    assert (y0, y1) == (0, 30)


def test_only_what_was_decoded_is_coloured(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    result = LogitLens(at=Patches(0, rows=(1, 3))).run(clip, prompt)
    trace = result.plot_image().data[-1]
    assert [[v is not None for v in line] for line in trace.z[1::2]] == [
        [r in (1, 2)] * 4 for r in range(4)
    ]  # fmt: skip
    assert trace.hovertext[0][0] == trace.hovertext[1][0] == "not decoded"


def test_a_padded_picture_keeps_its_patches_outside():
    square = PixelMap((400, 100), (336, 336), (0.84, 0.84), (0.0, 126.0))
    strings, kinds = ["<image>"] * 16, ["image 0"] * 16
    fig = small_result(strings, kinds, [one_picture(4, 4, 0, square)]).plot_image()
    assert fig.layout.yaxis.range == (250, -150)
    assert tuple(fig.data[0].y[::2]) == pytest.approx((-150, -50, 50, 150, 250))
    assert "padding around the picture" in fig.data[0].hovertext[0][0]
    assert "pixels (0, 0, 100, 50)" in fig.data[0].hovertext[2][0]


def test_a_prompt_of_tensors_shows_the_grid_alone(clip, picture):
    tensors = clip.processor(text=TEXT, images=[picture], return_tensors="pt")
    fig = LogitLens().run(clip, dict(tensors)).plot_image()
    assert not fig.layout.images and "not known" in fig.layout.title.text


def test_the_second_picture_of_the_second_row(clip, picture):
    other = picture.rotate(180)
    batch = clip.prompt(["Q:A", "<image>:<image>"], [[], [picture, other]])
    result = LogitLens().run(clip, batch)
    fig = result.plot_image(1, row=1)
    position = batch.layouts[1].image[1].patch(0, 0)
    assert f"position {position}<" in fig.data[0].hovertext[0][0]


def test_what_cannot_be_drawn_says_why(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    with pytest.raises(PositionError, match=r"decoded no position of image 0.*Patches\(0\)"):
        LogitLens(at=Last()).run(clip, prompt).plot_image()
    with pytest.raises(PositionError, match="1 picture; image 1 was asked"):
        LogitLens().run(clip, prompt).plot_image(1)
    with pytest.raises(PositionError, match="no picture"):
        LogitLens(at=At((0, 1))).run(clip, "Q:A").plot_image()
    whole = dataclasses.replace(
        small_result(["<image>"], ["image 0"]).rows[0],
        layout=Layout((4,), ("<image>",), ("image 0",), 0,
                      (ImageLayout(0, ImageSpace((), ((0, (0,)),), "Its patches are mixed")),)),
    )  # fmt: skip
    mixed = dataclasses.replace(small_result(["<image>"], ["image 0"]), rows=(whole,))
    with pytest.raises(PositionError, match="Its patches are mixed"):
        mixed.plot_image()


# ------------------------------------------------------------------------------------- both


def test_figures_need_no_network(result):
    for fig in (result.plot(), result.plot_image()):
        page = fig.to_html(include_plotlyjs=False)
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "src=" not in page

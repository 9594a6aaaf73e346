"""A figure's page is light or dark as its reader's browser prefers, and whole at every width."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from browser import WIDTHS

from vlm_lens.figures.score_map import score_map
from vlm_lens.figures.style import legend_below, style
from vlm_lens.figures.write import write_figure

PATCHES = [f"{i} 'image 0 ({i}, 0)'" for i in range(24)]
LIGHT, DARK = "rgb(252, 252, 251)", "rgb(21, 24, 28)"


def lines():
    fig = go.Figure([go.Scatter(x=[0, 1], y=[i, 1], name=f"condition {i}") for i in range(9)])
    style(fig, title="Nine <i>conditions</i>", subtitle="counted", x="block", y="share", height=400)
    return legend_below(fig)


def by_slider():
    axes = {"layer": ["0", "1"], "head": ["0", "1"], "position": PATCHES}
    return score_map(np.random.default_rng(0).random((2, 2, 24)), axes, name="attention")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    own = go.Figure(go.Scatter(x=[0, 1], y=[0, 1]))
    own.update_layout(paper_bgcolor="rgb(17, 85, 119)", title="own")
    for name, fig in {"lines": lines(), "slider": by_slider(), "own": own}.items():
        write_figure(fig, folder / f"{name}.html")
    return folder


def ground(page):
    """What lies behind a figure: the page's colour, its own, and that of its letters."""
    return page.js(
        "[getComputedStyle(document.body).backgroundColor,"
        " document.querySelector('.main-svg').style.background,"
        " document.querySelector('.xtick text').style.fill]"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["lines", "slider"])
def test_a_figure_has_the_reader_s_colours_and_is_whole_at_every_width(browser, pages, name, dark):
    for width in (WIDTHS["desktop"], WIDTHS["phone"]):
        with browser.open(pages / f"{name}.html", width=width, dark=dark) as page:
            page.settle()
            back, paper, ink = ground(page)
            assert back == paper == (DARK if dark else LIGHT)
            assert ink == ("rgb(230, 232, 235)" if dark else "rgb(29, 33, 39)")
            assert page.faint == page.cut == page.overlapping == page.out_of_reach == []
            assert page.wider_than_screen <= 0 and page.errors == []
            assert [url.rsplit("/", 1)[1] for url in page.fetched] == ["plotly.min.js"]


def test_a_figure_follows_a_reader_who_switches(browser, pages):
    with browser.open(pages / "lines.html") as page:
        page.settle()
        assert ground(page)[1] == LIGHT and page.js("document.title") == "Nine conditions"
        page.ask("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
        page.wait(f"document.querySelector('.main-svg').style.background === '{DARK}'")


def test_a_figure_with_a_ground_of_its_own_keeps_it(browser, pages):
    with browser.open(pages / "own.html", dark=True) as page:
        page.settle()
        assert ground(page)[1] == "rgb(17, 85, 119)"


def test_the_figure_itself_is_left_as_it_was(tmp_path):
    fig = lines()
    before = fig.to_json()
    write_figure(fig, tmp_path / "figure.html")
    assert fig.to_json() == before

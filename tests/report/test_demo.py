"""The report: one file, no network, everything in it."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go
import pytest
from browser import WIDTHS

from vlm_lens import HookedVLM
from vlm_lens.figures.figure_html import figure_html
from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis
from vlm_lens.report import Section, demo_report, page
from vlm_lens.report.page import data_table


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    vlm = HookedVLM.from_pretrained("toy-llava")
    recipe = CrossModalPatch(tasks="food-color", seeds=1)
    transfer = recipe.run(vlm, progress=False)
    phase = PhaseAnalysis("food-color", runs=3).run(vlm, progress=False)
    path = tmp_path_factory.mktemp("report") / "report.html"
    return demo_report(path, vlm, recipe, transfer, [phase], commands=["vlm-lens demo"])


@pytest.fixture(scope="module")
def report(file):
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("width", "dark"),
    [(WIDTHS["phone"], False), (WIDTHS["tablet"], False), (WIDTHS["desktop"], True)],
    ids=WIDTHS,
)
def test_it_is_read_at_every_width(browser, file, width, dark):
    with browser.open(file, width=width, dark=dark) as page:
        page.wait("document.querySelectorAll('.main-svg').length >= 15")
        page.settle()
        assert page.errors == [] and page.fetched == []
        assert page.wider_than_screen <= 0
        assert page.narrow_cells == [] and page.out_of_reach == [] and page.cut == []
        assert page.faint == [] and page.overlapping == []
        if width == WIDTHS["phone"]:
            page.js("document.querySelectorAll('.more').forEach(e => { e.scrollLeft = 9999 })")
            page.settle()
            assert page.js("document.querySelectorAll('.more').length") == 0


def test_nothing_is_fetched(report):
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=[\"']?(?!data:)\w+:", report)
    assert "cdn.plot.ly/plotly" not in report


def test_plotly_is_in_it_once(report):
    assert report.count("plotly.js v") == 1


def test_every_part_is_there(report):
    for heading in ("Does the task cross over?", "What the model says", "Settings",
                    "From input to task to answer", "What a patch says"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in report
    assert report.count('class="plotly-graph-div"') == 6
    assert report.count("data:image/png;base64") >= 2
    assert "vlm-lens demo" in report and "CrossModalPatch(tasks=&#x27;food-color&#x27;" in report


def test_it_says_what_a_good_result_looks_like(report):
    assert report.count("A good result") >= 2
    assert "Planted in it: three phases of its language model, in text alone" in report


def test_text_is_escaped():
    html = page("<b>", "<p>lead</p>", [Section("a < b", "<p>body</p>")])
    assert "<title>&lt;b&gt;</title>" in html and "<h2>a &lt; b</h2>" in html
    table = data_table(pd.DataFrame({"token": ["<s>"], "n": [0.5]}))
    assert "&lt;s&gt;" in table and "<td>0.50</td>" in table


def test_figures_do_not_bring_their_own_library():
    assert len(figure_html(go.Figure(), "a caption")) < 20_000

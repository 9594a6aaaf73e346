"""Wide tables go on in sight; and what the browser tests look for is found where it is."""

from __future__ import annotations

import pandas as pd
import pytest
from browser import WIDTHS

from vlm_lens.report import Section
from vlm_lens.report.page import data_table, write_page

WIDE = pd.DataFrame({f"column {i}": ["a few words", 0.25] for i in range(14)})


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "wide.html"
    return write_page(path, "Wide", "<p>lead</p>", [Section("One", data_table(WIDE))])


def test_a_wide_table_fades_out_until_its_end_is_reached(browser, wide):
    with browser.open(wide, width=WIDTHS["phone"]) as page:
        page.settle()
        assert page.wider_than_screen <= 0 and page.out_of_reach == [] and page.cut == []
        assert page.js("document.querySelectorAll('.more').length") == 1
        page.js("document.querySelector('.scroll').scrollLeft = 99999")
        page.wait("!document.querySelector('.more')")
        right = page.js("[...document.querySelectorAll('td')].pop().getBoundingClientRect().right")
        assert right <= WIDTHS["phone"]
        page.resize(2000, 900)
        page.settle()
        assert page.js("document.querySelectorAll('.more').length") == 0


BROKEN = {
    "narrow_cells": "<table><td style='width:30px;max-width:30px;overflow-wrap:anywhere'>"
    "a sentence of words</td></table>",
    "out_of_reach": "<div style='width:90px;overflow:hidden'><table><tr><td>left</td>"
    "<td style='min-width:200px'>the last column</td></tr></table></div>",
    "cut": "<div style='width:90px;overflow:auto;white-space:nowrap'>words that go on and on</div>",
    "faint": "<p style='color:#aaa'>hardly to be read</p>",
    "overlapping": "<svg class='js-plotly-plot' width='90' height='20'><text y='15'>one</text>"
    "<text y='15' x='9'>other</text></svg>",
    "wider_than_screen": "<p style='width:1400px'>wide</p>",
    "errors": "<script>throw Error('no')</script>",
    "fetched": "<img src='https://127.0.0.1:1/x.png' alt=''>",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_seen(browser, tmp_path, fault):
    path = tmp_path / "broken.html"
    path.write_text(f"<!doctype html><title>x</title><body>{BROKEN[fault]}", "utf-8")
    with browser.open(path) as page:
        found = getattr(page, fault)
        assert found > 0 if isinstance(found, int) else found
        others = [name for name in BROKEN if name not in (fault, "errors", "wider_than_screen")]
        assert all(getattr(page, name) == [] for name in others)

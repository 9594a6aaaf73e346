"""The report of a recipe: its numbers, notes and figures, read at every width, nothing fetched."""

from __future__ import annotations

import pandas as pd
import pytest
from browser import WIDTHS

from vlm_lens import HookedVLM
from vlm_lens.recipes import LayerSweep, Result, TopDecodings
from vlm_lens.report import result_report


@pytest.fixture(scope="module")
def results():
    vlm = HookedVLM.from_pretrained("toy-llava")
    options = {"tasks": ("food-color", "country-capital")}
    return {
        "decodings": TopDecodings(**options, sources=["text", "image"]).run(vlm, progress=False),
        "layers": LayerSweep(**options, seeds=1).run(vlm, progress=False),
    }


@pytest.mark.parametrize("width", [WIDTHS["phone"], WIDTHS["desktop"]], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["decodings", "layers"])
def test_it_is_read_at_every_width(browser, results, tmp_path, name, width):
    result = results[name]
    file = result_report(tmp_path / "report.html", result, commands=["vlm-lens run one.yaml"])
    with browser.open(file, width=width, dark=width > 600) as page:
        page.wait("document.querySelector('.main-svg')")
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.settle()
        assert page.errors == [] and page.fetched == []
        assert page.wider_than_screen <= 0 and page.cut == [] and page.out_of_reach == []
        assert page.narrow_cells == [] and page.faint == [] and page.overlapping == []
        said = page.js("document.body.innerText")
        drawn = page.js("document.querySelectorAll('figure').length")
    assert drawn == len(result.plots())
    assert all(" ".join(note.split()) in " ".join(said.split()) for note in result.notes)
    assert result.title in said and "vlm-lens run one.yaml" in said
    recipe = result.provenance["recipe"]
    assert f"{recipe['class']}(tasks=['food-color', 'country-capital']" in " ".join(said.split())


def test_a_table_without_numbers_has_no_figures(tmp_path):
    about = {"recipe": {"class": "Own", "task": {"task": "mine", "rows": 7, "digest": "ab"}}}
    result = Result(pd.DataFrame({"token": ["<s>"], "says": ["a"]}), provenance=about)
    html = result_report(tmp_path / "report.html", result).read_text(encoding="utf-8")
    assert "&lt;s&gt;" in html and "<figure" not in html
    assert "Own(task=&lt;task mine, 7 rows&gt;)" in html

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from browser import WIDTHS
from families import tiny_llava_next
from PIL import Image

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.figures.view_parts import Cell, strengths
from vlm_lens.scores.scores import scores


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    tiny_llava_next.save(folder=folder)
    return HookedVLM.from_pretrained(folder)


def shown(vlm, heads=2, shift=0.0):
    prompt = vlm.prompt("<image>\nA:", images=[Image.new("RGB", (60, 30), "navy")])
    values = np.random.default_rng(1).random((heads, prompt.length)).astype("float32") - shift
    return prompt, scores(
        values, {"head": range(heads), "position": range(prompt.length)}, name="attention",
        layout=prompt.layout, pictures=prompt.images[0],
    )  # fmt: skip


def rects(page):
    return {
        int(i): (sign, tuple(map(float, box)), float(opacity))
        for sign, i, *box, opacity in re.findall(
            r'<rect class="cell (\w+)[^"]*" data-i="(\d+)" x="([-\d.]+)" y="([-\d.]+)" '
            r'width="([-\d.]+)" height="([-\d.]+)" fill-opacity="([\d.]+)"',
            page,
        )
    }


@pytest.mark.parametrize("which", ["crop", "tiles"])
def test_every_patch_is_drawn_at_its_pixels_with_its_strength(load, tiles, which):
    vlm = load("clip-llama") if which == "crop" else tiles
    prompt, found = shown(vlm)
    page = found.over_picture()._repr_html_()
    drawn = rects(page)
    first = found.values.to_numpy()[0]
    table = prompt.layout.to_dataframe()
    patches = table[table["patch"].notna()]
    assert set(drawn) == set(patches["position"])
    for position in patches["position"]:
        sign, (x, y, w, h), opacity = drawn[position]
        x0, y0, x1, y1 = prompt.layout.image[0].pixels(position)
        assert (max(x, 0), max(y, 0)) == pytest.approx((x0, y0), abs=0.02)
        assert (min(x + w, 60), min(y + h, 30)) == pytest.approx((x1, y1), abs=0.02)
        assert sign == "plus"
        strongest = first[patches["position"]].max()  # of the patches, not of the tokens
        assert opacity == pytest.approx(0.65 * first[position] / strongest, abs=2e-3)


def test_the_page_holds_every_number_and_fetches_nothing(load, tmp_path):
    _, found = shown(load("clip-llama"), heads=3, shift=0.5)
    page = found.over_picture().save(tmp_path / "view.html").read_text()
    data = json.loads(re.search(r"data = (\{.*?\});", page).group(1))
    kept = np.frombuffer(base64.b64decode(data["values"]), "<f4").reshape(data["shape"])
    np.testing.assert_array_equal(kept, found.values.to_numpy())
    assert data["sliders"] == [["0", "1", "2"]] and 'data-slider="0"' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert {sign for sign, _, _ in rects(page).values()} == {"plus", "minus"}
    # the colour of a token without scripts
    assert re.search(r'class="chip (plus|minus)" data-i="0" style="--s:0\.\d+"', page)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_view_is_read_at_every_width(browser, load, tiles, tmp_path, width):
    for number, vlm in enumerate((load("clip-llama"), tiles)):
        file = shown(vlm)[1].over_picture().save(tmp_path / f"{number}.html")
        for dark in (False, True):
            with browser.open(file, width=width, dark=dark) as page:
                assert page.errors == [] and page.fetched == []
                assert page.wider_than_screen <= 0 and page.faint == [] and page.cut == []
                assert page.out_of_reach == []


def test_a_scale_says_where_nothing_is_read(browser, load, tmp_path):
    _, found = shown(load("clip-llama"), heads=1)
    only = xr.DataArray([place.patch is not None for place in found.places()], dims="position")
    view = replace(found, values=found.values * only).over_picture()
    with browser.open(view.save(tmp_path / "view.html")) as page:
        tokens, patches = (
            page.js(f'document.querySelector(".scale.{group}").innerText').split()
            for group in ("tokens", "patches")
        )
        assert tokens == ["tokens", "all", "0"]
        assert patches == ["patches", "0", f"{float((found.values * only).max()):.4f}"]


def test_text_of_tokens_cannot_become_part_of_the_page(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("<b>&</script>\nA:")
    found = scores(
        np.ones(prompt.length), {"position": range(prompt.length)}, name="</script><i>",
        layout=prompt.layout,
    )  # fmt: skip
    page = found.plot()._repr_html_()
    assert page.count("<b>") == 1 and "<i>" not in page  # the title alone is bold
    assert page.count("</script>") == 1


def test_pictures_of_a_view_are_files(load, tiles, tmp_path):
    _, found = shown(tiles)
    view = found.over_picture()
    for ending in ("png", "svg", "pdf"):
        assert view.save(tmp_path / f"view.{ending}", head=1).stat().st_size > 4000
    with Image.open(tmp_path / "view.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    orange = (colours[:, 0] - colours[:, 2] > 80).sum()
    assert orange > 500, "patches are coloured"
    for wrong, message in (
        (lambda: view.save(tmp_path / "view.gif"), "is saved as .html"),
        (lambda: view.save(tmp_path / "view.png", head=9), "head 9 is not in this view"),
        (lambda: view.save(tmp_path / "view.png", layer=1), "no slider 'layer'"),
    ):
        with pytest.raises(VLMLensError, match=message):
            wrong()
    assert "sliders head (2)" in repr(view)


def test_too_many_numbers_are_refused_with_the_way_out(load):
    _, found = shown(load("clip-llama"), heads=500_000)
    with pytest.raises(VLMLensError, match="sum over an axis first"):
        found.over_picture()


def test_strengths_are_shares_of_the_largest():
    values, patches = np.array([1.0, -2, np.nan, 0]), [Cell(0, 0, (0, i), i) for i in range(4)]
    np.testing.assert_array_equal(strengths(values, patches), [0.5, -1, 0, 0])
    np.testing.assert_array_equal(strengths(values, ()), [0.5, -1, 0, 0])
    np.testing.assert_array_equal(strengths(values, patches[:1]), [1, -1, 0, 0])
    np.testing.assert_array_equal(strengths(values, patches[3:]), [0.5, -1, 0, 0])
    np.testing.assert_array_equal(strengths(np.zeros(4), patches), np.zeros(4))

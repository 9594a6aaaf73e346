"""The page in a real browser: nothing fetched, no error, by keyboard, at three widths, by links."""

from __future__ import annotations

import pytest
from browser import WIDTHS

from explorer import decoded
from vlm_lens import HookedVLM, explore
from vlm_lens.reading.resampled import patch_weights
from vlm_lens.tasks import Task


@pytest.fixture(scope="module")
def explored():
    vlm = HookedVLM.from_pretrained("toy-llava")
    tasks = [Task.load("country-capital"), Task.load("country-currency")]
    return explore(vlm, tasks=tasks, rows=2, progress=False)


@pytest.fixture(scope="module")
def file(explored, tmp_path_factory):
    return explored.save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def scene(explored):
    return decoded.data(explored.html)["models"][0]["scenes"][0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("show", ["attention", "lens", "patches"])
def test_it_fits_and_fetches_nothing(browser, file, width, dark, show):
    with browser.open(file, width=width, dark=dark, fragment=f"#show={show}") as page:
        assert page.errors == [] and page.fetched == []
        assert page.wider_than_screen <= 0
        assert page.narrow_cells == [] and page.out_of_reach == []
        assert page.faint == [] and page.cut == []
        assert page.js(FADED) == 0  # four heads and two columns fit at every width
        ground = page.js("getComputedStyle(document.body).backgroundColor")
        assert (max(int(v) for v in ground[4:-1].split(",")) < 60) == dark


FOCUSED = """(e => e.name || e.id || (e.dataset.key || "").replace(/\\d.*/, "")
)(document.activeElement)"""
RING = """(e => [e, e.parentElement].some(x => getComputedStyle(x).outlineStyle !== "none") ||
  e.tagName === "rect" && getComputedStyle(e).stroke === "rgb(255, 213, 0)"
)(document.activeElement)"""
FADED = """[...document.querySelectorAll("*")].filter(
  e => getComputedStyle(e).maskImage !== "none").length"""
SHADES = """[...document.querySelectorAll(".cell")].map(
  e => [+e.dataset.key.slice(5), +e.getAttribute("fill-opacity")])"""


def first_answers(page):
    return page.js(
        "[...document.querySelectorAll('.answers ol')].map(l => l.querySelector('.word').innerText)"
    )


def test_the_slider_flips_the_answer_by_keyboard(browser, file, scene):
    runs = scene["written"]["country-capital"]
    said = {int(b): next(iter(decoded.answers(run))) for b, run in runs.items()}
    with browser.open(file, fragment="#vector=country-capital&block=0") as page:
        page.js("document.getElementById('block').focus()")
        for block in range(8):
            assert first_answers(page) == [next(iter(decoded.answers(scene["plain"]))), said[block]]
            ticked = page.js("!!document.querySelectorAll('.answers ol')[1]"
                             ".firstChild.querySelector('.right')")  # fmt: skip
            assert ticked == runs[str(block)]["right"][0]
            page.press("ArrowRight")
        assert page.js("document.activeElement.id") == "block"
        assert len(set(said.values())) > 1 and page.errors == []


def test_every_control_is_reached_by_the_tab_key(browser, file):
    with browser.open(file) as page:
        reached = []
        page.press("Tab")
        while page.js("document.activeElement !== document.body") and len(reached) < 40:
            reached.append(page.js(FOCUSED))
            assert page.js(RING), reached
            page.press("Tab")
        for part in ("scene", "vector", "show", "look", "patch", "token", "head", "block", "strip",
                     "lens"):  # fmt: skip
            assert part in reached, (part, reached)


def test_arrows_go_on_through_the_choices(browser, file):
    """What is drawn anew keeps the place of the keyboard."""
    with browser.open(file) as page:
        page.js("document.querySelector('#vectors input').focus()")
        for vector in ("country-capital", "country-currency", ""):
            page.press("ArrowRight")
            assert page.js("document.activeElement.value") == vector
            assert page.js("document.querySelector('#vectors :checked').value") == vector
        page.js("document.querySelector('#scenes input').focus()")
        page.press("ArrowDown")
        assert page.js("document.querySelector('#scenes :checked').value") == "1"
        assert page.js("document.activeElement.name") == "scene" and page.errors == []


def test_a_token_is_chosen_with_enter_and_lights_its_patch(browser, file, scene):
    position = scene["drawings"][0]["cells"][5][4]
    with browser.open(file) as page:
        page.js(f"document.querySelector('[data-key=token{position - 1}]').focus()")
        page.press("ArrowRight")
        lit = page.js("[...document.querySelectorAll('.on')].map(e => e.dataset.key)")
        assert sorted(lit) == [f"patch{position}", f"token{position}"]
        assert f"patch (1, 1) at {position}" in page.js("document.getElementById('told').innerText")
        page.press("Enter")
        at = page.js("[...document.querySelectorAll('.at')].map(e => e.dataset.key)")
        assert sorted(at) == [f"patch{position}", f"token{position}"]
        assert page.js("document.activeElement.dataset.key") == f"token{position}"
        assert f"patch (1, 1) at {position}" in page.js(
            "document.getElementById('lens-about').innerText"
        )
        words, probs = decoded.lens(scene["plain"])
        shown = page.js(
            "[...document.querySelectorAll('#lens td .bar .word')].map(e => e.innerText)"
        )
        assert shown == words[:, position, 0].tolist()


def test_pointing_at_a_patch_lights_its_token(browser, file, scene):
    position = scene["drawings"][0]["cells"][6][4]
    with browser.open(file) as page:
        page.point(f"[data-key=patch{position}]")
        assert page.js(f"document.querySelector('[data-key=token{position}]').className").endswith(
            "on"
        )


def test_attention_over_the_picture_is_the_head_that_is_chosen(browser, file, scene):
    n, last = len(scene["tokens"]), scene["last"]
    theirs = decoded.attention(scene["plain"], n)[2, 1, last]
    with browser.open(file, fragment="#vector=none") as page:
        page.js("document.querySelector('[data-key=\"head2.1\"]').click()")
        drawn = dict(page.js(SHADES))
        patches = [cell[4] for cell in scene["drawings"][0]["cells"]]
        for position in patches:
            expected = 0.7 * theirs[position] / theirs[patches].max()
            assert drawn[position] == pytest.approx(expected, abs=2e-3)
        total = page.js("document.querySelector('[data-key=\"head2.1\"]').innerText")
        assert float(total.strip("<%")) == pytest.approx(100 * theirs[patches].sum(), abs=0.6)


def test_a_link_restores_what_was_shown(browser, file):
    with browser.open(file, fragment="#vector=country-currency&block=6&look=2&head=3") as page:
        page.js("document.querySelector('[data-key=token4]').click()")
        page.js("document.querySelectorAll('#scenes input')[1].click()")
        address, text = page.js("[location.hash, document.querySelector('main').innerText]")
    with browser.open(file, fragment=address) as page:
        assert page.js("document.querySelector('main').innerText") == text
        assert page.js("document.querySelector('#scenes :checked').value") == "1"
        page.js("location.hash = '#row=nothing&block=999&at=-3&vector=x&head=1e9&model=y'")
        page.wait("document.querySelector('#block')")
        assert page.errors == []


def test_the_frame_of_a_notebook_shows_the_page(browser, explored, tmp_path):
    path = tmp_path / "exported.html"
    path.write_text(f"<!doctype html><title>x</title><body>{explored._repr_html_()}", "utf-8")
    with browser.open(path) as page:
        assert page.js("document.querySelector('iframe').clientHeight") > 600
        inside = page.frame()
        inside.wait("document.getElementById('story').innerText.includes('With the vector')")
        inside.js("document.querySelector('[data-key=strip0]').click()")
        assert "after block 0" in inside.js("document.getElementById('story').innerText")
        assert inside.errors == inside.fetched == page.errors == []
        assert page.fetched in ([], ["about:srcdoc"])


def test_latents_share_their_attention_out_to_patches(browser, tmp_path):
    """A resampler's picture: attention to each latent, times what it has read of the patch."""
    vlm = HookedVLM.from_pretrained("toy-idefics2")
    prompt = vlm.prompt(Task.load("country-capital").query("Algeria", "image"))
    _, cache = vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")
    latents = list(prompt.layout.image[0].positions)
    look = vlm.attention(prompt, layers=3, heads=1).values.to_numpy()[0, 0, latents]
    weights = patch_weights(cache).flatten(1).numpy()
    file = explore(vlm, prompt, progress=False).save(tmp_path / "page.html")
    opacity = "[...document.querySelectorAll('.cell')].map(e => +e.getAttribute('fill-opacity'))"
    with browser.open(file, fragment="#look=3&head=1") as page:
        seen = look @ weights
        assert page.js(opacity) == pytest.approx(0.7 * seen / seen.max(), abs=2e-3)
        page.point(f"[data-key=token{latents[2]}]")
        assert page.js(opacity) == pytest.approx(0.7 * weights[2] / weights[2].max(), abs=2e-3)
        page.point("h1")
        assert page.js(opacity) == pytest.approx(0.7 * seen / seen.max(), abs=2e-3)
        page.point(".cell")
        assert "read most by the latent" in page.js("document.getElementById('told').innerText")
        assert page.errors == []


def test_sinks_are_marked_and_left_out(browser, tmp_path):
    from dataclasses import replace

    vlm = HookedVLM.from_pretrained("toy-llava")
    prompt = vlm.prompt(Task.load("country-capital").query("Algeria", "image"))
    page = explore(vlm, {"Algeria": prompt}, progress=False)
    [view] = page.views
    sunk = replace(view, scenes=(replace(view.scenes[0], sinks=(10,)),))
    path = type(page)((sunk,)).save(tmp_path / "page.html")
    with browser.open(path, fragment="#look=3&head=0") as opened:
        shown = "document.querySelector('[data-key=token10]').style.getPropertyValue('--s')"
        assert float(opened.js(shown)) > 0.5
        assert opened.js("document.querySelectorAll('.sink').length") == 2
        opened.js("document.getElementById('sinks').click()")
        assert float(opened.js(shown)) == 0
        assert "sinks=out" in opened.js("location.hash")

from __future__ import annotations

import base64
import html
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from vlm_lens import HookedVLM
from vlm_lens.figures.prompt_view import cell_edges, picture_uri, prompt_html, visible
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageLayout, ImageSpace
from vlm_lens.prompts.prompt import Prompt

TEXT = "Q:<image>\nA:"


@pytest.fixture
def clip(load):
    return load("clip-qwen2")


class Reader(HTMLParser):
    """What a page holds: texts, attributes by tag, and whether every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self.open = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1:] != ["style"]:
            self.texts.append(data.strip())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def pictures_in(page):
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(s))) for s in sources]


def test_tokens_stand_with_their_positions(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    texts = Reader(prompt_html(prompt)).texts
    layout = prompt.layout
    last = texts.index(str(layout.last))
    assert texts[last + 1] == ":"
    assert texts[texts.index("0") + 1] == "<s>"
    first, final = layout.image[0].positions[0], layout.image[0].positions[-1]
    run = texts.index(f"{first}..{final}")
    assert texts[run + 1] == "image 0, 4 x 4 patches"
    assert texts.count("<image>") == 0  # the run is one box


def test_every_patch_names_position_and_place_in_its_box(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    page = prompt_html(prompt)
    image = prompt.layout.image[0]
    titles = re.findall(
        r"<title>position (\d+), patch \((\d), (\d)\), pixels \(([^)]+)\)</title>"
        r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.-]+)" height="([\d.-]+)"', page
    )  # fmt: skip
    assert len(titles) == 16
    for position, row, col, _, x, y, w, h in titles:
        assert image.patch(int(row), int(col)) == int(position)
        x, y, w, h = map(float, (x, y, w, h))
        assert (x, y, x + w, y + h) == pytest.approx(image.pixels(int(position)), abs=0.03)


def test_the_picture_is_the_one_given(clip, picture):
    (shown,) = pictures_in(prompt_html(clip.prompt(TEXT, [picture])))
    assert shown.size == picture.size and shown.tobytes() == picture.tobytes()


def test_pictures_stand_in_the_order_of_their_places(clip):
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    page = prompt_html(clip.prompt("<image>:<image>", [blue, red]))
    assert [p.getpixel((0, 0)) for p in pictures_in(page)] == [(0, 0, 255), (255, 0, 0)]
    assert page.index("image 0") < page.index("image 1")


def test_a_rotation_in_the_file_is_not_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    picture.save(data, "PNG", exif=exif)
    loaded = Image.open(io.BytesIO(data.getvalue()))
    (shown,) = pictures_in(f'src="{picture_uri(loaded)}"')
    assert not shown.getexif() and shown.tobytes() == picture.tobytes()


def test_large_pictures_are_embedded_small():
    large = Image.new("P", (3000, 1500))
    (shown,) = pictures_in(f'src="{picture_uri(large, most=600)}"')
    assert shown.size == (600, 300)


def test_what_the_processor_cuts_away_is_dimmed(clip):
    wide = Image.new("RGB", (400, 100), "green")
    prompt = clip.prompt(TEXT, [wide])
    assert prompt.layout.image[0].grid.pixels_of.seen == (150, 0, 250, 100)
    page = prompt_html(prompt)
    assert 'd="M0 0H400V100H0Z M150 0H250V100H150Z"' in page
    assert "400 x 100 pixels; the model sees the box (150, 0, 250, 100)" in page
    square = prompt_html(clip.prompt(TEXT, [wide.resize((100, 100))]))
    assert "evenodd" not in square and "the model sees" not in square


def test_tokens_are_escaped(clip):
    page = prompt_html(clip.prompt('<script>alert("x")</script>&amp;'))
    reader = Reader(page)
    assert "<script" not in page
    assert all(c in reader.texts for c in "<>&")
    assert not any(tag in ("script", "link", "iframe") for tag, _ in reader.tags)


def test_special_tokens_and_padding_look_different(clip, picture):
    batch = clip.prompt(["A", "Q:Greece\nA:<image>:"], [[], [picture]])
    page = prompt_html(batch)
    padding = batch.layouts[0].start
    texts = Reader(page).texts
    assert texts[texts.index(f"0..{padding - 1}") + 1] == "padding"
    assert page.count("border-style:dotted") == 1  # padding
    assert page.count("border-style:dashed") == 2  # each row's <s>
    assert "2 rows" in page and "row 0" in page and "row 1" in page


def test_a_batch_shows_its_first_rows_and_a_count(clip):
    page = prompt_html(clip.prompt([f"Q:{c}" for c in "abcdef"]))
    assert "6 rows" in page and "row 2" in page and "row 3" not in page
    assert "... and 3 more rows" in page


def test_prompts_of_tensors_are_shown_without_picture_or_text(clip, picture):
    tensors = dict(clip.processor(text=TEXT, images=[picture], return_tensors="pt"))
    known = prompt_html(clip.as_prompt(tensors))
    assert "picture not known; 32 x 32 pixels enter the model" in known and "<img" not in known
    bare = HookedVLM(clip.hf_model).as_prompt(tensors)
    texts = Reader(prompt_html(bare)).texts
    assert texts[texts.index("0") + 1] == f"#{bare.layout.token_ids[0]}"


def test_a_padded_picture_shows_the_patches_around_it():
    square = PixelMap((400, 100), (336, 336), (0.84, 0.84), (0.0, 126.0))
    grid = PatchGrid(4, 4, tuple(range(16)), 0, square)
    assert cell_edges(grid)[1] == pytest.approx([-150, -50, 50, 150, 250])
    layout = Layout((4,) * 16, ("<image>",) * 16, ("image 0",) * 16, 0,
                    (ImageLayout(0, ImageSpace((grid,), ((0, grid.positions),))),))  # fmt: skip
    prompt = Prompt({"input_ids": torch.zeros(1, 16)}, (layout,), (), ((picture_of(400, 100),),))
    (svg,) = Reader(prompt_html(prompt)).all("svg")
    assert svg["viewbox"] == "0 -150 400 400"


def picture_of(width, height):
    return Image.new("RGB", (width, height), "white")


def test_tiles_are_drawn_beside_the_whole_picture():
    whole = PatchGrid(2, 2, (0, 1, 2, 3), 0, PixelMap((64, 64), (32, 32), (0.5, 0.5)))
    tiles = [
        PatchGrid(2, 2, tuple(range(4 * i, 4 * i + 4)), 0,
                  PixelMap((64, 64), (32, 32), (1.0, 1.0), (-32.0 * (i - 1), 0.0)))
        for i in (1, 2)
    ]  # fmt: skip
    space = ImageSpace((whole, *tiles), ((0, tuple(range(12))),))
    layout = Layout((4,) * 12, (), ("image 0",) * 12, 0, (ImageLayout(0, space),))
    prompt = Prompt({"input_ids": torch.zeros(1, 12)}, (layout,), (), ((picture_of(64, 64),),))
    page = prompt_html(prompt)
    assert "the whole picture, 2 x 2 patches" in page and "2 tiles of 2 x 2 patches" in page
    assert page.count("<svg") == 2
    assert "position 8, patch (0, 0), pixels (32, 0, 48, 16)" in page


def test_a_picture_without_a_grid_says_why():
    space = ImageSpace((), ((0, (0, 1)),), "A resampler mixes <all> patches")
    layout = Layout((4, 4), (), ("image 0",) * 2, 0, (ImageLayout(0, space),))
    prompt = Prompt({"input_ids": torch.zeros(1, 2)}, (layout,), (), ((picture_of(64, 64),),))
    page = prompt_html(prompt)
    assert "A resampler mixes &lt;all&gt; patches" in page and "<svg" not in page
    assert "image 0, 2 positions" in page


def test_nothing_is_loaded_from_elsewhere(clip, picture):
    page = prompt_html(clip.prompt(TEXT, [picture]))
    assert "http" not in page and "<script" not in page and "@import" not in page
    assert all(a["src"].startswith("data:") for a in Reader(page).all("img"))


def test_long_prompts_are_cut_in_the_middle(clip):
    prompt = clip.prompt("a" * 3000 + ":")
    page = prompt_html(prompt)
    texts = Reader(page).texts
    assert texts[texts.index(str(prompt.layout.last)) + 1] == ":"
    assert f"... {len(prompt.layout) - 400} more ..." in texts
    assert page.count("title=") == 400


@pytest.mark.parametrize("broken", [None, 3, object()])
def test_never_raises(broken):
    assert prompt_html(broken) == f"<pre>{html.escape(repr(broken))}</pre>"


def test_never_raises_even_where_repr_does():
    class Worse:
        def __repr__(self):
            raise RuntimeError

    assert "Worse" in prompt_html(Worse())


def test_a_prompt_shows_itself(clip, picture):
    prompt = clip.prompt(TEXT, [picture])
    assert prompt._repr_html_() == prompt_html(prompt)


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" Paris", "Paris"), ("\n\n", "\\n\\n"), (" ", "' '"), ("", "''"), ("it's", "it's"),
     (" it's", "it's"), ("continental", "contine\u2026"), ("<s>", "<s>")],
)  # fmt: skip
def test_visible(token, shown):
    assert visible(token, 8) == shown

"""What holds of every family, on tiny random models of the real classes."""

from __future__ import annotations

import pytest

from families import bench
from families.bench import grey
from families.every import LMS, VLMS

TEXT = "Q:<image>b<image>A:"
INVERTED = [name for name, t in VLMS.items() if t.painted and not t.second]
PAINTED = [(name, size) for name, t in VLMS.items() if name not in INVERTED for size in t.painted]


@pytest.fixture(params=VLMS)
def name(request) -> str:
    return request.param


@pytest.fixture
def vlm(name, made):
    return made(name)


def test_conforms_on_text(name, vlm):
    if not VLMS[name].text_only:
        pytest.skip("runs on nothing without a picture")
    bench.check_conforms(vlm, "Q:Greece\nA:", cold=name == "mllama")


def test_conforms_on_a_padded_batch(name, vlm):
    bench.check_conforms(vlm, bench.batch(vlm, text_only=VLMS[name].text_only))


def test_conforms_on_pictures_of_every_shape_and_mode(name, vlm):
    pictures = [p for p in bench.odd_pictures() if min(p.size) >= VLMS[name].smallest]
    prompt = vlm.prompt(["<image>a<image>" * 2, "b" + "<image>" * (len(pictures) - 4)], pictures)
    bench.check_conforms(vlm, prompt, quick=True)
    for layout, pictures in zip(prompt.layouts, prompt.images, strict=True):
        for image, picture in zip(layout.images, pictures, strict=True):
            for grid in image.text.grids or image.projector.grids:
                x0, y0, x1, y1 = grid.pixels(grid.patch(-1, -1))
                assert x1 <= picture.size[0] and y1 <= picture.size[1]
                if VLMS[name].whole:
                    assert (x1, y1) == pytest.approx(picture.size)


def test_pictures_and_image_tokens_must_match(vlm):
    bench.check_errors(vlm)


@pytest.mark.parametrize("name", [name for name, t in VLMS.items() if t.rows_alone])
def test_a_row_of_a_batch_is_that_row_alone(name, made):
    vlm = made(name)
    bench.check_batch_is_its_rows(vlm, bench.batch(vlm, text_only=VLMS[name].text_only))


def test_writes_to_tower_and_projector_act(vlm):
    bench.check_tower_writes(vlm)


@pytest.mark.parametrize("name", [name for name, t in VLMS.items() if t.boxes])
def test_a_box_is_the_same_in_projector_and_text(name, made):
    bench.check_boxes(made(name))


def test_a_pattern_edit_changes_what_heads_mix(vlm):
    prompt = bench.one(vlm)
    positions = prompt.layout.images[0].positions
    points = vlm.architecture.points
    patterns = points.match("blocks.*.attn.hook_pattern")
    shown = [n for n in patterns if n.replace("hook_pattern", "hook_z") in points]
    if not shown:
        pytest.skip("what heads mix is no point of this model, for a reason that it declares")
    bench.check_pattern_edit(vlm, prompt, shown[0], (0, positions[0]))


def test_generation_with_and_without_cache(vlm):
    prompt = vlm.prompt(TEXT, [grey((16, 16)), grey((24, 16))])
    bench.check_generation(vlm, prompt, "blocks.0.hook_resid_post")


@pytest.mark.parametrize(("name", "size"), PAINTED)
def test_painting_a_patch_changes_its_position(name, size, made):
    assert bench.check_geometry(made(name), size) >= 4


@pytest.mark.parametrize("name", [name for name, t in VLMS.items() if t.second])
def test_painting_a_patch_of_the_second_picture(name, made):
    text = "a<image>b<image>"
    size, others = VLMS[name].second, ((120, 52),)
    assert bench.check_geometry(made(name), size, text, 1, others=others) >= 4


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", INVERTED)
def test_inverting_a_patch_moves_it_alone(name, number, made):
    vlm = made(name)
    points = ["projector.hook_out"]
    points += [n for n in vlm.points("projector.deepstack.*")] if name == "qwen3_vl" else []
    points += [] if name == "mllama" else ["hook_merged"]
    pictures = [grey(size) for size in VLMS[name].painted]
    bench.check_painting(vlm, TEXT, pictures, number, points=points, exact=VLMS[name].exact)


def test_every_tiny_model_has_a_line_of_its_own():
    titles = [t.title for t in (VLMS | LMS).values()]
    assert len(set(titles)) == len(titles)

"""Idefics3 and SmolVLM: tiles, a view of the whole, four patches merged into one position."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_idefics3
from vlm_lens import Ablate, HookedVLM, Images, Patches
from vlm_lens.errors import PositionError, PromptError

SIDE, CELLS = tiny_idefics3.SIDE, tiny_idefics3.CELLS
PER_FRAME = CELLS**2


@pytest.fixture(params=["idefics3", "smolvlm"])
def vlm(request, made) -> HookedVLM:
    return made(request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> HookedVLM:
    folder = tiny_idefics3.save(tmp_path_factory.mktemp("idefics3-whole"), split=False)
    return HookedVLM.from_pretrained(folder)


def test_facts(vlm, whole):
    assert vlm.cfg.family == vlm.family.name == vlm.hf_model.config.model_type
    points = vlm.points()
    assert points["projector.hook_in"].space == "vision"
    assert points["vision.hook_out"].sizes == (None, None, 24)
    assert points["projector.hook_out"].sizes == (None, None, 32)
    assert all(p.writable for p in points.values())
    image = whole.prompt("Q:<image>A:", [tiny.noise_picture(0, (40, 30))]).layout.image[0]
    assert [len(s.grids) for s in (image.text, image.vision, image.projector)] == [1, 1, 1]
    assert len(image.positions) == PER_FRAME


@pytest.mark.parametrize("size", [(48, 32), (17, 400), (400, 17), (1, 1), (100, 61)])
def test_tiles_are_those_of_the_processor(vlm, size):
    """Each tile's box, cut out and resized by hand, is what the tower was given."""
    picture = bench.noise(size)
    prompt = vlm.prompt("Q:<image>A:", [picture])
    image = prompt.layout.image[0]
    n_frames = prompt.inputs["pixel_values"].shape[1]
    whole, mosaic = image.text.grids
    down, across = mosaic.rows // CELLS, mosaic.cols // CELLS
    assert down * across == n_frames - 1
    assert [g.row for g in image.vision.grids] == [n_frames - 1, *range(n_frames - 1)]
    names = [f"<row_{r + 1}_col_{c + 1}>" for r in range(down) for c in range(across)]
    starts = [mosaic.patch(r * CELLS, c * CELLS) for r in range(down) for c in range(across)]
    assert [prompt.layout.strings[s - 1] for s in starts] == names
    assert prompt.layout.strings[whole.positions[0] - 1] == "<global-img>"
    for grid in (whole, mosaic):
        assert grid.pixels(grid.patch(0, 0))[:2] == (0, 0)
        assert grid.pixels(grid.patch(-1, -1))[2:] == pytest.approx(size)


def test_the_text_is_laid_out_as_features_are_placed(vlm):
    """Text and projector agree on what a position shows, and hold the same vector."""
    pictures = [tiny.noise_picture(0, (48, 30)), tiny.noise_picture(1, (16, 48))]
    prompt = vlm.prompt("<image>a<image>", pictures)
    _, cache = vlm.run_with_cache(prompt, names_filter=["projector.hook_out", "hook_merged"])
    for image in prompt.layout.images:
        for grid in image.projector.grids:
            for position in grid.positions:
                box = grid.pixels(position)
                same = [
                    p for g in image.text.grids for p in g.positions
                    if g.pixels(p) == pytest.approx(box)
                ]  # fmt: skip
                vector = cache["projector.hook_out"][grid.row, position]
                assert any(torch.equal(cache["hook_merged"][0, p], vector) for p in same)


def test_replay_and_generation(vlm):
    prompt = vlm.prompt("a<image>b<image>:", [tiny.noise_picture(i, (20, 16)) for i in range(2)])
    bench.check_replay(vlm, prompt)
    for name in ("hook_merged", "blocks.1.attn.hook_z", "projector.hook_out"):
        bench.check_grown(vlm, prompt, name)


def test_markers_belong_to_the_picture_and_to_no_patch(vlm):
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (48, 32))])
    layout, image = prompt.layout, prompt.layout.image[0]
    patches = {p for g in image.text.grids for p in g.positions}
    between = set(image.positions) - patches
    strings = {layout.strings[p] for p in between}
    assert strings == {
        "\n", "<fake_token_around_image>", "<global-img>",
        "<row_1_col_2>", "<row_1_col_3>", "<row_2_col_1>", "<row_2_col_2>", "<row_2_col_3>",
    }  # fmt: skip
    assert patches == {i for i, t in enumerate(layout.token_ids) if t == 5}
    with pytest.raises(PositionError, match="no patch"):
        image.pixels(min(between))


def test_without_sizes_pixels_are_those_of_the_frames(vlm):
    prompt = vlm.prompt("a<image>b<image>", [tiny.noise_picture(i, (48, 20 + i)) for i in (0, 20)])
    given = vlm.as_prompt(prompt.inputs)
    for one, two in zip(prompt.layout.images, given.layout.images, strict=True):
        assert one.positions == two.positions
        assert one.vision.sequences == two.vision.sequences
        assert [g.positions for g in one.text.grids] == [g.positions for g in two.text.grids]
        mosaic = two.text.grid(1)
        assert mosaic.pixels_of.picture == (3 * SIDE, mosaic.rows // CELLS * SIDE)
    bare = HookedVLM(vlm.hf_model).as_prompt(prompt.inputs)
    assert [len(im.vision.grids) for im in bare.layout.images] == [1, 1]
    assert bare.layout.image[1].positions == prompt.layout.image[1].positions


def test_a_write_at_a_box_reaches_every_tile_that_sees_it(vlm):
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (48, 32))])
    at = Patches(0, box=(0, 0, 8, 8))
    by_projector = vlm.run(prompt, interventions=Ablate("projector.hook_out", at=at))
    by_text = vlm.run(prompt, interventions=Ablate("hook_merged", at=at))
    assert torch.equal(by_projector, by_text)
    assert not torch.equal(by_text, vlm.run(prompt))
    assert [row for row, _ in at.resolve(prompt.layout, "projector")] == [6, 0]
    tower = vlm.run(prompt, interventions=Ablate("vision.hook_out", at=Images()))
    entering = vlm.run(prompt, interventions=Ablate("projector.hook_in", at=Images()))
    assert torch.equal(tower, entering)


def test_errors(vlm):
    pictures = [tiny.noise_picture(i, (48, 32)) for i in range(2)]
    inputs = vlm.prompt(["<image>", "<image>"], pictures).inputs
    swapped = inputs | {"input_ids": inputs["input_ids"].clone()}
    swapped["input_ids"][0, -2] = 7
    with pytest.raises(PromptError, match=rf"7 frames .* need {7 * PER_FRAME} image tokens"):
        vlm.run(swapped)

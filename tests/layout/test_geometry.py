"""Patches and pixels, against what the processors really make of a picture."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_lens import HookedVLM
from vlm_lens.errors import PositionError
from vlm_lens.families.parts.pixels import identity_map, resize_and_crop_map
from vlm_lens.layout.geometry import PatchGrid, PixelMap

SIZES = [(1, 1), (17, 400), (400, 17), (224, 224), (31, 33), (640, 479), (5, 7)]
SIDE, PATCH = 64, 16
sides = st.integers(1, 500)


@pytest.fixture(scope="module")
def blind():
    """A tower whose patches do not see each other: what changes names the patch alone."""
    made = {}
    for tower in ("clip", "siglip"):
        vision = {"image_size": SIDE, "patch_size": PATCH}
        model = tiny.build(f"{tower}-llama", vision=vision)
        vision_tower = model.model.vision_tower
        for block in getattr(vision_tower, "vision_model", vision_tower).encoder.layers:
            torch.nn.init.zeros_(block.self_attn.out_proj.weight)
            torch.nn.init.zeros_(block.self_attn.out_proj.bias)
        made[tower] = HookedVLM(model, tiny.processor(tower, side=SIDE, patch=PATCH))
    return made


def features(vlm, picture):
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    _, cache = vlm.run_with_cache(prompt, names_filter=["projector.hook_out", "hook_merged"])
    return prompt, cache


def paint(size: tuple[int, int], box) -> Image.Image:
    """White inside a box of pixels, which must cover whole pixels, black outside."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x0, y0, x1, y1 = (round(v) for v in box)
    pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize(
    "size", [(64, 64), (224, 224), (200, 500), (500, 200), (333, 157), (97, 64)]
)
def test_painting_a_patch_changes_most_the_position_that_names_it(blind, tower, size):
    vlm = blind[tower]
    black, plain = features(vlm, Image.new("RGB", size))
    image = black.layout.image[0]
    grid = image.grid
    assert (grid.rows, grid.cols) == (4, 4)
    for row in range(grid.rows):
        for col in range(grid.cols):
            position = image.patch(row, col)
            box = image.pixels(position)
            _, cache = features(vlm, paint(size, box))
            change = (cache["hook_merged"] - plain["hook_merged"])[0].norm(dim=-1)
            assert int(change.argmax()) == position
            change = (cache["projector.hook_out"] - plain["projector.hook_out"])[0].norm(dim=-1)
            assert int(change.argmax()) == image.projector.grid().patch(row, col)


@pytest.mark.parametrize("size", [(200, 500), (500, 200), (333, 157)])
def test_what_the_crop_cuts_away_is_not_seen(blind, size):
    vlm = blind["clip"]
    prompt, plain = features(vlm, Image.new("RGB", size))
    image = prompt.layout.image[0]
    x0, y0, x1, y1 = image.grid.pixels_of.seen
    outside = [(0, 0, size[0], y0 - 8), (0, y1 + 8, size[0], size[1]),
               (0, 0, x0 - 8, size[1]), (x1 + 8, 0, size[0], size[1])]  # fmt: skip
    outside = [b for b in outside if b[0] < b[2] and b[1] < b[3] and b[2] > 0 and b[3] > 0]
    assert outside
    for box in outside:
        _, cache = features(vlm, paint(size, box))
        assert torch.equal(cache["projector.hook_out"], plain["projector.hook_out"])
        with pytest.raises(PositionError, match="covers nothing that the model sees"):
            image.box(*box)
    squashed = features(blind["siglip"], Image.new("RGB", size))[0].layout.image[0]
    assert squashed.grid.pixels_of.seen == pytest.approx((0, 0, *size))


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.sampled_from(["clip", "siglip"]))
@example(1, 1, "clip")
@example(17, 400, "clip")
@example(400, 17, "clip")
@example(400, 17, "siglip")
@example(499, 3, "clip")
def test_every_patch_has_its_own_pixels(width, height, tower):
    processor = tiny.processor(tower, side=SIDE, patch=PATCH)
    pixels = resize_and_crop_map(processor.image_processor, (width, height), (SIDE, SIDE))
    grid = PatchGrid(4, 4, tuple(range(10, 26)), 0, pixels)
    for position in grid.positions:
        box = grid.pixels(position)
        assert box[0] < box[2]
        assert box[1] < box[3]
        assert grid.box(*box) == [position]
        assert grid.patch(*grid.cell(position)) == position
    seen = pixels.seen
    assert grid.box(*seen) == list(grid.positions)
    assert 0 <= seen[0] < seen[2] <= width + 1e-9
    assert 0 <= seen[1] < seen[3] <= height + 1e-9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_odd_pictures_run(load, tower, size):
    vlm = load({"clip": "clip-llama", "siglip": "siglip-mistral"}[tower])
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(0, size)])
    image = prompt.layout.image[0]
    assert image.grid.pixels_of.picture == size
    assert all(image.box(*image.pixels(p)) == [p] for p in image.positions)
    vlm.run(prompt)


@pytest.mark.parametrize("size", [(64, 100), (100, 64), (300, 65), (65, 300), (128, 129)])
def test_the_crop_is_the_processors_own(size):
    """A one-pixel line, found again in the processor's frame where the map says."""
    processor = tiny.processor("clip", side=SIDE, patch=PATCH)
    frame = resize_and_crop_map(processor.image_processor, size, (SIDE, SIDE))
    for x in range(0, size[0], 7):
        picture = paint(size, (x, 0, x + 1, size[1]))
        values = processor.image_processor(picture, return_tensors="np")["pixel_values"][0, 0]
        left, _, right, _ = frame.to_frame((x, 0, x + 1, size[1]))
        if left < 1 or right > SIDE - 1:
            continue
        column = (values - values.min()).sum(0)
        centre = (column * (np.arange(SIDE) + 0.5)).sum() / column.sum()
        assert centre == pytest.approx((left + right) / 2, abs=0.75)


def test_a_processor_that_pads_to_a_square_first():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    reader = tiny.processor("clip")
    reader.image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    vlm = HookedVLM(tiny.build("clip-llama"), reader)
    for size in [(100, 40), (41, 100), (64, 64), (101, 38)]:
        prompt = vlm.prompt("<image>", [Image.new("RGB", size, "white")])
        pixels = prompt.layout.image[0].grid.pixels_of
        bright = prompt.inputs["pixel_values"][0, 0].numpy()
        bright = np.argwhere(bright > bright.max() - 0.05)
        x0, y0, x1, y1 = pixels.to_frame((0, 0, *size))
        assert bright[:, 1].min() == pytest.approx(x0, abs=2)
        assert bright[:, 1].max() + 1 == pytest.approx(x1, abs=2)
        assert bright[:, 0].min() == pytest.approx(y0, abs=2)
        assert bright[:, 0].max() + 1 == pytest.approx(y1, abs=2)
        assert pixels.seen == pytest.approx((0, 0, *size))


def test_the_map_forth_and_back():
    pixels = PixelMap((100, 50), (64, 64), (2.0, 0.5), (-10.0, 4.0))
    assert pixels.to_frame((10, 20, 30, 40)) == (10, 14, 50, 24)
    assert pixels.to_picture((10, 14, 50, 24)) == (10, 20, 30, 40)
    assert identity_map((3, 4)).to_frame((0, 1, 2, 3)) == (0, 1, 2, 3)


def test_errors_say_what_there_is():
    grid = PatchGrid(2, 3, tuple(range(5, 11)), 0, identity_map((30, 20)))
    assert grid.patch(-1, -1) == 10
    assert grid.box(0, 0, 10, 10) == [5]
    assert grid.box(9, 9, 11, 11) == [5, 6, 8, 9]
    assert grid.box(-100, -100, 1, 1) == [5]
    with pytest.raises(PositionError, match="2 rows and 3 columns"):
        grid.patch(2, 0)
    with pytest.raises(PositionError, match="x0 < x1"):
        grid.box(5, 5, 5, 9)
    with pytest.raises(PositionError, match="30 x 20 picture"):
        grid.box(31, 0, 40, 10)
    with pytest.raises(PositionError, match=r"stand at 5\.\.10"):
        grid.pixels(4)

"""Patches of pictures by structure: painted in other places than those that found them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from reach.builder import build
from reach.inputs import example
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from families import bench, tiny_parts
from vlm_lens import ActivationPatch, HookedVLM, Patches
from vlm_lens.families.parts.found_geometry import proved_map
from vlm_lens.families.parts.pixels import resize_and_crop_map, stretch_map

# patches of a side that one position of the text stands for
TYPES = {"cohere2_vision": 2, "deepseek_vl": 1, "video_llava": 1, "shieldgemma2": 2, "janus": 1}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_painted_patch_is_where_the_layout_says(model_type):
    side = TYPES[model_type]
    vlm = HookedVLM(build(model_type))
    inputs = example(vlm.hf_model)
    prompt = vlm.as_prompt(inputs)
    picture = prompt.layout.images[0]
    first = "vision.hook_embed"
    _, before = vlm.run_with_cache(prompt, names_filter=[first, "hook_merged"])
    for row, col in ((0, 2), (1, 1), (2, 3), (3, 0)):
        pixels = inputs["pixel_values"].clone()
        pixels[:, :, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8] -= 2.0
        painted = vlm.as_prompt(inputs | {"pixel_values": pixels})
        _, after = vlm.run_with_cache(painted, names_filter=[first, "hook_merged"])
        box = (8 * col + 1, 8 * row + 1, 8 * col + 7, 8 * row + 7)
        changed = (after[first] != before[first]).any(-1).nonzero().tolist()
        assert [tuple(c) for c in changed] == picture.vision.box(*box)
        change = (after["hook_merged"] - before["hook_merged"])[0].norm(dim=-1)
        assert [int(change.argmax())] == picture.box(*box)
        where = picture.patch(row // side, col // side)
        x0, y0, x1, y1 = picture.pixels(where)
        assert x0 <= 8 * col and y0 <= 8 * row and x1 >= 8 * col + 8 and y1 >= 8 * row + 8
        assert (x1 - x0, y1 - y0) == (8 * side, 8 * side)
    edit = ActivationPatch("hook_merged", at=Patches(0, box=(1, 1, 7, 7)), value=torch.zeros(32))
    assert edit is not None and not torch.equal(
        vlm.run(prompt), vlm.run(prompt, interventions=edit)
    )
    bench.check_conforms(vlm, prompt, only=("patch -> pixels -> patch", "every point fires"))


def test_what_has_no_grid_says_why():
    for model_type, why in (("aria", "does not change one position"), ("molmo2", "no frames")):
        vlm = HookedVLM(build(model_type))
        picture = vlm.as_prompt(example(vlm.hf_model)).layout.images[0]
        assert not picture.text.grids and why in picture.text.why_no_grid


SIZES = ((64, 48), (48, 64), (90, 333), (400, 120))


@pytest.mark.parametrize("size", SIZES)
def test_the_frame_of_a_picture_is_found_by_painting(size):
    frame = (64, 64)
    square = {"height": 64, "width": 64}
    crop = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=square)
    stretch = SiglipImageProcessorPil(size=square)
    assert proved_map(stretch, size, frame) == stretch_map(size, frame)
    expected = resize_and_crop_map(crop, size, frame)
    found = proved_map(crop, size, frame)
    x0, y0, x1, y1 = expected.seen
    if x1 - x0 > 0.8 * size[0] and y1 - y0 > 0.8 * size[1]:
        assert found == expected
    else:  # the painted boxes lie in what is cut away
        assert found in (None, expected)


def test_a_processor_that_does_something_else_has_no_map():
    class Mirrored(SiglipImageProcessorPil):
        def preprocess(self, images, *args, **kwargs):
            return super().preprocess(images.transpose(Image.Transpose.FLIP_LEFT_RIGHT), **kwargs)

    reader = Mirrored(size={"height": 64, "width": 64})
    assert proved_map(reader, (64, 48), (64, 64)) is None
    assert proved_map(object(), (64, 48), (64, 64)) is None


def test_pixels_are_those_of_the_picture_where_a_processor_is_known():
    class Reader:
        """A processor for pictures of one frame: the image token as often as there are patches."""

        image_token = "<image>"

        def __init__(self):
            self.tokenizer = tiny_parts.tokenizer("<image>")
            self.image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})

        def __call__(self, text, images=None, **options):
            made = self.tokenizer([t.replace("<image>", "<image>" * 16) for t in text], **options)
            return dict(made) | dict(self.image_processor(images, return_tensors="pt"))

    model = build("deepseek_vl")
    model.config.image_token_id = 4
    vlm = HookedVLM(model, Reader())
    grey = tiny.noise_picture(0, (64, 48))
    base = vlm.prompt("a<image>b", [grey])
    picture = base.layout.images[0]
    assert picture.pixels(picture.patch(1, 2)) == (32.0, 12.0, 48.0, 24.0)
    array = np.array(grey)
    array[12:24, 32:48] = 255
    _, one = vlm.run_with_cache(base, names_filter=["vision.hook_embed"])
    painted = vlm.prompt("a<image>b", [Image.fromarray(array)])
    _, two = vlm.run_with_cache(painted, names_filter=["vision.hook_embed"])
    change = (one["vision.hook_embed"] - two["vision.hook_embed"])[0].norm(dim=-1)
    grid = picture.vision.grids[0]
    assert int(change.argmax()) == grid.patch(1, 2)

"""Pictures of any shape in a Pixtral tower: Mistral 3, which merges patches, and LLaVA."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from families import bench
from vlm_lens import HookedVLM


@pytest.fixture(params=["mistral3", "llava-pixtral"])
def vlm(request, made) -> HookedVLM:
    return made(request.param)


def test_breaks_and_end_belong_to_the_picture(vlm):
    prompt = vlm.prompt("Q:<image>\nA:", [Image.new("RGB", (32, 24))])
    image = prompt.layout.images[0]
    merge = 8 if vlm.family.name == "mistral3" else 4
    rows, cols = 24 // merge, 32 // merge
    assert (image.grid.rows, image.grid.cols) == (rows, cols)
    line = ["[IMG]"] * cols + ["[IMG_BREAK]"]
    strings = [prompt.layout.strings[p] for p in image.positions]
    assert strings == (line * rows)[:-1] + ["[IMG_END]"]
    assert image.pixels(image.patch(1, 2)) == (2 * merge, merge, 3 * merge, 2 * merge)
    assert image.vision.pixels(8 + 3) == (12, 4, 16, 8)


def test_pictures_follow_each_other_in_the_tower(vlm):
    sizes = [(32, 24), (16, 32)]
    prompt = vlm.prompt("<image><image>", [bench.noise(s, seed=i) for i, s in enumerate(sizes)])
    _, cache = vlm.run_with_cache(prompt, names_filter="*")
    assert cache["vision.hook_embed"].shape[:2] == (1, 8 * 6 + 4 * 8)
    first, second = prompt.layout.images
    assert second.vision.grid().positions[0] == 48
    pattern = cache["vision.blocks.1.attn.hook_pattern"][0]
    assert (pattern[:, :48, 48:] == 0).all()
    assert (pattern[:, :48, :48] > 0).all()
    for image in (first, second):
        out = cache["projector.hook_out"][0, list(image.projector.grid().positions)]
        assert torch.equal(cache["hook_merged"][0, list(image.text.grid().positions)], out)

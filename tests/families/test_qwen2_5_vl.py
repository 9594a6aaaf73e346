"""Qwen2.5-VL: attention in windows, and a tower that reads window after window."""

from __future__ import annotations

import pytest
import torch

from families import bench
from vlm_lens.errors import PromptError

MODEL = "qwen2_5_vl"
SIZES = ((40, 24), (24, 32))  # windows are 16 pixels wide
TEXT = "Q:<image>b<image>A:"


def test_pictures_of_every_shape_and_mode(vlm):
    for picture in bench.odd_pictures():
        prompt = vlm.prompt("Q:<image>A:", [picture])
        image = prompt.layout.image[0]
        assert sorted(image.vision.grid().positions) == list(
            range(len(prompt.inputs["pixel_values"]))
        )


def test_geometry_in_the_order_of_windows(vlm, pictures):
    image = vlm.prompt(TEXT, pictures).layout.image[0]
    grid = image.vision.grid()
    # the first window is four by four patches: its last patch stands before the fifth column
    assert grid.patch(3, 3) == 15
    assert grid.patch(0, 4) == 16
    # text and projector are in reading order again
    assert image.projector.grid().positions == tuple(range(15))


def test_windows(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = [f"vision.blocks.{i}.attn.hook_pattern" for i in range(3)]
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    seen = [(cache[n][0] > 0).any(0) for n in names]
    image = prompt.layout.image[0]
    grid, pixels = image.vision.grid(), image.vision.pixels
    for row, col in ((0, 0), (5, 9), (2, 6)):
        query = grid.patch(row, col)
        window = {
            p for p in grid.positions
            if all(int(pixels(p)[i] // 16) == int(pixels(query)[i] // 16) for i in (0, 1))
        }  # fmt: skip
        for layer in (0, 2):
            assert set(seen[layer][query].nonzero().flatten().tolist()) == window
        assert set(seen[1][query].nonzero().flatten().tolist()) == set(grid.positions)
    for name in names:
        bench.check_pattern_edit(vlm, prompt, name, (0, grid.patch(1, 1)))
    bench.check_pattern_edit(vlm, prompt, "blocks.0.attn.hook_pattern", (0, image.patch(1, 1)))


def test_vision_writes(vlm, pictures):
    names = ["vision.hook_embed", "vision.blocks.0.attn.hook_q", "vision.blocks.1.hook_attn_out",
             "vision.blocks.2.mlp.hook_pre_linear", "vision.blocks.2.hook_resid_post",
             "vision.hook_out", "projector.hook_out"]  # fmt: skip
    bench.check_writes_act(vlm, vlm.prompt(TEXT, pictures), names)


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if not k.startswith(("pixel", "image"))}
    with pytest.raises(PromptError, match="27 image tokens but no pixel_values"):
        vlm.run(without)
    with pytest.raises(PromptError, match="2 <image> placeholders and 1 picture"):
        vlm.run(TEXT, images=pictures[:1])
    assert torch.equal(inputs["image_grid_thw"], torch.tensor([[1, 6, 10], [1, 8, 6]]))

"""Qwen2-VL: one sequence for all pictures, two by two patches merged, rotary positions in 2D."""

from __future__ import annotations

import pytest
import torch

from families import bench
from vlm_lens import Ablate, At, Patches
from vlm_lens.errors import PromptError

MODEL = "qwen2_vl"
SIZES = ((24, 16), (16, 32))
TEXT = "Q:<image>b<image>A:"


def test_pictures_of_every_shape_and_mode(vlm):
    for picture in bench.odd_pictures():
        prompt = vlm.prompt("Q:<image>A:", [picture])
        rows, cols = prompt.inputs["image_grid_thw"][0, 1:].tolist()
        image = prompt.layout.image[0]
        assert (image.grid.rows, image.grid.cols) == (rows // 2, cols // 2)
        assert (image.vision.grid().rows, image.vision.grid().cols) == (rows, cols)


def test_geometry_of_a_picture_that_is_resized(vlm, pictures):
    bench.check_painting(vlm, TEXT, [bench.grey((50, 31)), pictures[0]], 0, step=3)


def test_marks_belong_to_the_picture_and_to_no_patch(vlm, pictures):
    layout = vlm.prompt(TEXT, pictures).layout
    image = layout.image[0]
    assert [layout.strings[image.positions[i]] for i in (0, -1)] == [
        "<|vision_start|>", "<|vision_end|>",
    ]  # fmt: skip
    assert image.grid.positions == image.positions[1:-1]
    assert layout.of_kind("image 0") == list(image.positions)


def test_vision_writes(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["vision.hook_embed", "vision.blocks.0.hook_resid_mid", "vision.blocks.0.attn.hook_k",
             "vision.blocks.1.hook_resid_post", "vision.hook_out",
             "projector.hook_out"]  # fmt: skip
    bench.check_writes_act(vlm, prompt, names)


def test_a_write_at_a_patch_moves_its_picture_only(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    name, out = "vision.blocks.0.hook_resid_post", "projector.hook_out"
    plain = vlm.run_with_cache(prompt, names_filter=[out])[1][out]
    patch = Ablate(name, at=Patches(1, rows=2, cols=3))
    changed = vlm.run_with_cache(prompt, names_filter=[out], interventions=patch)[1][out]
    moved = (plain != changed).any(-1)[0].nonzero().flatten().tolist()
    assert moved == list(prompt.layout.image[1].projector.grid().positions)


def test_queries_keys_and_values_are_three_parts_of_one_layer(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    attn = vlm.hf_model.model.visual.blocks[1].attn
    seen = []
    handle = attn.qkv.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    names = [f"vision.blocks.1.attn.hook_{n}" for n in "qkv"]
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    handle.remove()
    together = torch.cat([cache[n].flatten(2) for n in names], -1)
    assert torch.equal(together[0], seen[0])


def test_patterns(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    name = "vision.blocks.0.attn.hook_pattern"
    pattern = vlm.run_with_cache(prompt, names_filter=[name])[1][name]
    first, second = (i.vision.sequences[0][1] for i in prompt.layout.images)
    assert pattern.shape == (1, 3, len(first) + len(second), len(first) + len(second))
    assert (pattern[0][:, list(first)][..., list(second)] == 0).all()
    bench.check_pattern_edit(vlm, prompt, name, (0, second[3]))
    image = prompt.layout.image[0]
    bench.check_pattern_edit(vlm, prompt, "blocks.1.attn.hook_pattern", (0, image.patch(0, 0)))


def test_a_row_without_a_picture_generates_as_alone(vlm, pictures):
    prompt = vlm.prompt(["Q:<image>A:", "x"], pictures[:1])
    both = vlm.generate(prompt, max_new_tokens=4).tokens
    assert torch.equal(both[1:], vlm.generate("x", max_new_tokens=4).tokens)


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if not k.startswith(("pixel", "image"))}
    with pytest.raises(PromptError, match="14 image tokens but no pixel_values"):
        vlm.run(without)
    with pytest.raises(PromptError, match="need 14 image tokens; the prompt holds 13"):
        vlm.run(inputs | {"input_ids": inputs["input_ids"].where(
            torch.arange(inputs["input_ids"].shape[1]) != 4, 30)})  # fmt: skip
    with pytest.raises(PromptError, match="2 <image> placeholders and 1 picture"):
        vlm.run(TEXT, images=pictures[:1])
    with pytest.raises(PromptError, match="pixel_values holds 5"):
        vlm.run(inputs | {"pixel_values": inputs["pixel_values"][:5]})
    with pytest.raises(Exception, match="sequence has 24 positions"):
        vlm.run(TEXT, images=pictures, interventions=Ablate("vision.hook_embed", at=At(30)))

"""Gemma 3: every point, pooled patches, pictures that see themselves both ways."""

from __future__ import annotations

import pytest
import torch

from families import bench, tiny_gemma3, tiny_parts
from vlm_lens import HookedVLM
from vlm_lens.errors import PromptError

MODEL = "gemma3"


def test_a_position_covers_four_patches(vlm):
    prompt = vlm.prompt("a<image>b<image>", [bench.noise((64, 64)), bench.noise((64, 32))])
    image = prompt.layout.images[1]
    tower, text = image.vision.grid(), image.text.grid()
    assert (tower.rows, tower.cols, text.rows, text.cols) == (8, 8, 4, 4)
    position = text.patch(1, 3)
    assert text.pixels(position) == (48, 8, 64, 16)
    assert image.vision.box(*text.pixels(position)) == [
        (1, tower.patch(r, c)) for r in (2, 3) for c in (6, 7)
    ]
    strings = [prompt.layout.strings[p] for p in image.positions]
    assert strings == ["<boi>", *["<img>"] * 16, "<eoi>"]

    _, cache = vlm.run_with_cache(prompt)
    four = cache["vision.hook_out"][1, [tower.patch(r, c) for r in (2, 3) for c in (6, 7)]]
    projector = vlm.hf_model.model.multi_modal_projector
    with torch.no_grad():
        mean = projector.mm_soft_emb_norm(four.mean(0)) @ projector.mm_input_projection_weight
    torch.testing.assert_close(cache["hook_merged"][0, position], mean)
    assert torch.equal(cache["projector.hook_in"], cache["vision.hook_out"])
    assert vlm.architecture.points["projector.hook_in"].space == "vision"


def test_a_picture_sees_itself_both_ways(vlm):
    prompt = vlm.prompt("a<image>b<image>", [bench.noise((64, 64)), bench.noise((64, 32))])
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.*.attn.hook_pattern")
    first, second = (im.text.grid().positions for im in prompt.layout.images)
    for layer in (0, 1):
        pattern = cache["pattern", layer][0]
        assert (pattern[:, first[0], first[0] : first[3]] > 0).all()
        assert (pattern[:, first[0], second[0] :] == 0).all()
        far = pattern[:, second[-1], : second[0] - 20]
        assert (far > 0).any() == (layer == 1)


def test_a_soft_cap_is_not_applied(vlm):
    model = tiny_parts.finish(tiny_gemma3.model(final_logit_softcapping=2.0))
    other = HookedVLM(model, vlm.processor)
    bench.check_conforms(other, bench.one(other), only=("lens reproduces logits",))


def test_pan_and_scan_is_refused(vlm, monkeypatch):
    options = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
    monkeypatch.setattr(
        type(vlm.processor), "images_kwargs", type(vlm.processor).images_kwargs | options
    )
    with pytest.raises(PromptError, match="pan and scan"):
        vlm.prompt("<image>", [bench.noise((100, 20))])

"""Qwen3-VL: DeepStack adds features of earlier tower blocks between the text model's blocks."""

from __future__ import annotations

import torch

from families import bench
from vlm_lens import Ablate, All, Patches

MODEL = "qwen3_vl"
SIZES = ((24, 16), (16, 32))
TEXT = "Q:<image>b<image>A:"
STACKED = "projector.deepstack.0.hook_out"


def test_deepstack(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", STACKED]
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    before, after, stacked = (cache[n] for n in names)
    for image in prompt.layout.images:
        places = list(image.grid.positions)
        own = list(image.projector.grid().positions)
        torch.testing.assert_close(after[0, places] - before[0, places], stacked[0, own])
    rest = [i for i, k in enumerate(prompt.layout.kinds) if not k.startswith("image")]
    assert torch.equal(after[0, rest], before[0, rest])
    assert "DeepStack" in vlm.family.residual_breaks


def test_deepstack_alone(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post", "projector.hook_out"]
    off = Ablate(STACKED, at=Patches(0, rows=1, cols=2))
    cache = vlm.run_with_cache(prompt, names_filter=names, interventions=off)[1]
    plain = vlm.run_with_cache(prompt, names_filter=names)[1]
    moved = (cache[names[0]] != plain[names[0]]).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [prompt.layout.image[0].patch(1, 2)]
    for name in names[1:]:
        assert torch.equal(cache[name], plain[name])
    assert not torch.equal(
        vlm.run(prompt, interventions=Ablate(STACKED, at=All())), vlm.run(prompt)
    )


def test_vision_writes(vlm, pictures):
    names = ["vision.hook_embed", "vision.blocks.0.attn.hook_v", "vision.blocks.1.mlp.hook_post",
             "vision.blocks.2.hook_resid_post", "vision.hook_out", "projector.hook_out",
             STACKED]  # fmt: skip
    bench.check_writes_act(vlm, vlm.prompt(TEXT, pictures), names)


def test_patterns_of_the_tower(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    image = prompt.layout.image[1]
    place = image.vision.grid().patch(1, 1)
    bench.check_pattern_edit(vlm, prompt, "vision.blocks.0.attn.hook_pattern", (0, place))

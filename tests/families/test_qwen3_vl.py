"""Qwen3-VL: DeepStack adds features of earlier tower blocks between the text model's blocks."""

from __future__ import annotations

import pytest
import torch

from families import painting, tiny_qwen3_vl
from families.tiny_words import odd_pictures
from vlm_lens import Ablate, All, HookedVLM, Patches
from vlm_lens.errors import PromptError

TEXT = "Q:<image>b<image>A:"
STACKED = "projector.deepstack.0.hook_out"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> HookedVLM:
    return HookedVLM.from_pretrained(tiny_qwen3_vl.save(tmp_path_factory.mktemp("qwen3_vl")))


@pytest.fixture(scope="module")
def pictures():
    return [painting.grey((24, 16)), painting.grey((16, 32))]


def test_conforms(vlm, pictures):
    painting.check_conforms(vlm, "Q:a\nA:")
    rows = ["Q:<image>A:", "x", "Q:<image>y<image>A:longer"]
    painting.check_conforms(vlm, rows, [*pictures, odd_pictures()[3]], cold=True)


def test_pictures_of_every_shape_and_mode(vlm):
    for picture in odd_pictures():
        prompt = vlm.prompt("Q:<image>A:", [picture])
        painting.check_conforms_geometry(vlm, prompt)
        image = prompt.layout.image[0]
        assert image.pixels(image.patch(-1, -1))[2:] == pytest.approx(picture.size)


def test_geometry(vlm, pictures):
    for number in (0, 1):
        points = ["projector.hook_out", STACKED, "hook_merged"]
        painting.check_painting(
            vlm, TEXT, pictures, number, points=points, exact=["vision.hook_embed"]
        )


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
    painting.check_writes_act(vlm, vlm.prompt(TEXT, pictures), names)


def test_patterns(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    image = prompt.layout.image[1]
    place = image.vision.grid().patch(1, 1)
    painting.check_pattern_edit(vlm, prompt, "vision.blocks.0.attn.hook_pattern", (0, place))
    painting.check_pattern_edit(vlm, prompt, "blocks.1.attn.hook_pattern", (0, image.patch(0, 0)))


def test_generation(vlm, pictures):
    painting.check_generation(vlm, vlm.prompt(TEXT, pictures), "blocks.0.hook_resid_post")


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if not k.startswith(("pixel", "image"))}
    with pytest.raises(PromptError, match="14 image tokens but no pixel_values"):
        vlm.run(without)

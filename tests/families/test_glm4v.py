"""GLM-4V: merged by a convolution; norms after each part; both MLP branches from one layer."""

from __future__ import annotations

import pytest
import torch

from families import painting, tiny_glm4v
from families.tiny_words import odd_pictures
from vlm_lens import HookedVLM
from vlm_lens.errors import PromptError

TEXT = "Q:<image>b<image>A:"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> HookedVLM:
    return HookedVLM.from_pretrained(tiny_glm4v.save(tmp_path_factory.mktemp("glm4v")))


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
        painting.check_painting(vlm, TEXT, pictures, number, exact=["vision.hook_embed"])
    layout = vlm.prompt(TEXT, pictures).layout
    image = layout.image[0]
    assert [layout.strings[image.positions[i]] for i in (0, -1)] == [
        "<|begin_of_image|>", "<|end_of_image|>",
    ]  # fmt: skip


def test_both_branches_of_the_mlp(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    mlp = vlm.hf_model.model.language_model.layers[0].mlp
    names = [f"blocks.0.{n}" for n in ("ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_pre_linear",
                                       "mlp.hook_post", "hook_mlp_out", "hook_resid_mid",
                                       "hook_resid_post")]  # fmt: skip
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    read, pre, linear, post, out, middle, end = (cache[n] for n in names)
    gate, up = mlp.gate_up_proj(read).chunk(2, -1)
    torch.testing.assert_close(pre, gate)
    torch.testing.assert_close(linear, up)
    torch.testing.assert_close(post, torch.nn.functional.silu(gate) * up)
    norm = vlm.hf_model.model.language_model.layers[0].post_mlp_layernorm
    torch.testing.assert_close(out, norm(mlp.down_proj(post)))
    torch.testing.assert_close(middle + out, end)


def test_writes(vlm, pictures):
    names = ["vision.hook_embed", "vision.blocks.0.attn.hook_k", "vision.blocks.1.hook_resid_post",
             "vision.hook_out", "projector.hook_out", "blocks.0.mlp.hook_pre_linear",
             "blocks.1.hook_resid_mid"]  # fmt: skip
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

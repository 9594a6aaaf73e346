"""GLM-4V: merged by a convolution; norms after each part; both MLP branches from one layer."""

from __future__ import annotations

import torch

from families import bench

MODEL = "glm4v"
SIZES = ((24, 16), (16, 32))
TEXT = "Q:<image>b<image>A:"


def test_marks_belong_to_the_picture(vlm, pictures):
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
    bench.check_writes_act(vlm, vlm.prompt(TEXT, pictures), names)


def test_patterns_of_the_tower(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    image = prompt.layout.image[1]
    place = image.vision.grid().patch(1, 1)
    bench.check_pattern_edit(vlm, prompt, "vision.blocks.0.attn.hook_pattern", (0, place))

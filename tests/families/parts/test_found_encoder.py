"""Encoders by structure: the types beside Florence-2, on plain hooks of torch."""

from __future__ import annotations

import pytest
import tiny
import torch
from reach.builder import build
from reach.inputs import example

from families import bench, tiny_encoders
from vlm_lens import Ablate, ActivationPatch, At, HookedVLM, Images, Last
from vlm_lens.errors import ModelError, PointError, PositionError, PromptError

# type -> a point of the encoder, its module, a point of what crosses, its module
TYPES = {
    "t5gemma2": ("encoder.blocks.1.hook_mlp_out", "model.encoder.text_model.layers.1."
                 "post_feedforward_layernorm", "blocks.1.hook_attn_out",
                 "model.decoder.layers.1.post_self_attn_layernorm"),
    "pix2struct": ("vision.blocks.1.attn.hook_v", "encoder.encoder.layer.1.attention.value",
                   "blocks.1.cross_attn.hook_k",
                   "decoder.layer.1.encoder_decoder_attention.attention.key"),
    "vision-encoder-decoder": ("vision.blocks.0.hook_resid_post", "encoder.layers.0",
                               "blocks.0.cross_attn.hook_v",
                               "decoder.bert.encoder.layer.0.crossattention.self.value"),
}  # fmt: skip


def _start(model) -> None:
    if model.generation_config.decoder_start_token_id is None:
        model.generation_config.decoder_start_token_id = 1


@pytest.mark.parametrize("model_type", TYPES)
def test_points_of_encoder_and_decoder_are_what_the_modules_give(model_type):
    model = build(model_type)
    _start(model)
    vlm = HookedVLM(model)
    prompt = vlm.as_prompt(example(model))
    seen = {}
    modules = TYPES[model_type][1::2]
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda m, i, o, p=path: seen.update({p: o if isinstance(o, torch.Tensor) else o[0]})
        )
        for path in modules
    ]
    try:
        with torch.no_grad():
            plain = model(**prompt.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    names = TYPES[model_type][::2]
    logits, cache = vlm.run_with_cache(prompt, names_filter=list(names))
    assert torch.equal(logits, plain)
    for name, path in zip(names, modules, strict=True):
        assert torch.equal(cache[name].flatten(), seen[path].flatten()), name
    bench.check_conforms(vlm, prompt, quick=True)


def test_an_encoder_of_pictures_alone_is_the_tower():
    model = build("pix2struct")
    vlm = HookedVLM(model)
    prompt = vlm.as_prompt(example(model))
    assert prompt.layout.encoder is None and len(prompt.layout.images) == 1
    with pytest.raises(PositionError, match="without an encoder"):
        Last().resolve(prompt.layout, "encoder")
    with pytest.raises(PositionError, match="its encoder reads them"):
        prompt.layout.image[0].patch(0, 0)
    write = ActivationPatch("vision.blocks.0.hook_resid_post", at=At((3,)), value=torch.zeros(32))
    assert not torch.equal(vlm.run(prompt), vlm.run(prompt, interventions=write))
    with pytest.raises(PointError, match="hook_resid_mid_cross"):
        vlm.points("blocks.0.hook_resid_mid")


def test_what_is_no_such_model_is_refused():
    with pytest.raises(ModelError, match="no token of the prompt stands for"):
        HookedVLM(build("udop"))


@pytest.mark.parametrize("model_type", tiny_encoders.MADE)
def test_a_processor_of_its_own_makes_the_prompt(model_type, tmp_path, picture):
    """Saved and loaded: pictures are found by the mark, and the answer goes on where it begins."""
    vlm = HookedVLM.from_pretrained(tiny_encoders.save(model_type, tmp_path))
    prompt = vlm.prompt("<image>Q:", [picture])
    with torch.no_grad():
        plain = vlm.hf_model(**prompt.inputs, use_cache=False).logits
    assert torch.equal(vlm.run(prompt), plain)
    space = "encoder" if model_type == "t5gemma2" else "vision"
    point = f"{space}.blocks.0.hook_resid_post"
    edit = Ablate(point, at=Images())
    changed, after = vlm.run_with_cache(prompt, names_filter=[point], interventions=edit)
    assert not torch.equal(changed, plain)
    gone = (after[point] == 0).all(-1)
    if space == "encoder":
        asked = prompt.layout.encoder
        assert gone[0].nonzero().flatten().tolist() == [*asked.image[0].positions]
        assert prompt.length == 1 and asked.find("Q")
    else:
        mask = prompt.inputs.get("attention_mask", torch.ones_like(gone))
        assert torch.equal(gone, mask.bool())
        assert prompt.inputs["decoder_input_ids"].shape == (1, 3) and prompt.layout.find("Q") == 1
        with pytest.raises(PromptError, match="once, at the beginning"):
            vlm.prompt("Q:<image>", [picture])
    vlm.generate(prompt, max_new_tokens=2)


def test_prompts_of_several_rows_where_the_processor_counts_pictures_by_text(tmp_path):
    vlm = HookedVLM.from_pretrained(tiny_encoders.save("t5gemma2", tmp_path))
    texts = ["<image>Q:", "A<image>: Q <image>Q"]
    pictures = [
        [tiny.noise_picture(0, (40, 36))],
        [tiny.noise_picture(i, (40, 36)) for i in (1, 2)],
    ]
    both = vlm.prompt(texts, pictures)
    assert [len(layout.images) for layout in both.layouts] == [1, 2]
    for row, text in enumerate(texts):
        alone = vlm.run(vlm.prompt(text, pictures[row]))
        torch.testing.assert_close(vlm.run(both)[row], alone[0], rtol=1e-4, atol=1e-4)

"""Models of no registered family: what is certain is found, and what is not is told."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Olmo2Config,
    Olmo2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from vlm_lens import Ablate, HookedVLM, Images, Patches, VLMLensError
from vlm_lens.testing import conformance

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
INPUTS = {"input_ids": torch.tensor([[1, 5, 7, 9, 11]]), "attention_mask": torch.ones(1, 5).long()}


class NewConfig(LlavaConfig):
    model_type = "new_vlm"


class NewVLM(LlavaForConditionalGeneration):
    config_class = NewConfig


def new_vlm() -> HookedVLM:
    made = tiny.llava_config("siglip", "mistral").to_dict()
    made.pop("model_type")
    return HookedVLM(tiny.randomize(NewVLM(NewConfig(**made))), tiny.reader("siglip-mistral"))


def test_a_language_model_of_a_known_form_conforms():
    vlm = HookedVLM(tiny.randomize(StableLmForCausalLM(StableLmConfig(**SIZES))))
    assert "by structure" in vlm.cfg.family
    report = conformance(vlm, INPUTS)
    assert report.passed, report.failures
    assert {p.kind for p in vlm.points().values()} >= {"resid_mid", "attn.q", "mlp.post", "merged"}


def test_a_vision_language_model_of_a_known_form_conforms(picture):
    vlm = new_vlm()
    assert vlm.family.takes_images
    prompt = vlm.prompt(["<image>Q:Greece\nA:", "<image>and<image>A:"], [picture] * 3)
    report = conformance(vlm, prompt)
    assert report.passed, report.failures
    same = HookedVLM(tiny.build("siglip-mistral"), vlm.processor)
    same.hf_model.load_state_dict(vlm.hf_model.state_dict())
    known = same.prompt(["<image>Q:Greece\nA:", "<image>and<image>A:"], [picture] * 3)
    _, mine = vlm.run_with_cache(prompt)
    _, theirs = same.run_with_cache(known)
    assert set(theirs) - set(mine) == {"vision.hook_out"}
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    for here, there in zip(prompt.layouts, known.layouts, strict=True):
        assert [i.positions for i in here.images] == [i.positions for i in there.images]


def test_what_is_not_known_is_told(picture):
    vlm = new_vlm()
    prompt = vlm.prompt("<image>A:", [picture])
    with pytest.raises(VLMLensError, match="geometry of this model's pictures is not described"):
        vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Patches(0, rows=0)))
    changed = vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Images()))
    assert not torch.equal(changed, vlm.run(prompt))
    with pytest.raises(VLMLensError, match="which of the tower's layers"):
        vlm.points("vision.hook_out")


def test_blocks_of_another_form_are_refused_with_what_they_hold():
    model = Olmo2ForCausalLM(Olmo2Config(**SIZES))
    with pytest.raises(VLMLensError, match=r"holds .*post_feedforward_layernorm.*Describe"):
        HookedVLM(model)


def test_blocks_that_scale_what_they_add_are_refused():
    model = GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.5))
    with pytest.raises(VLMLensError, match="scale what they add"):
        HookedVLM(model)


def test_a_refusal_comes_before_the_weights(tmp_path, monkeypatch):
    Olmo2ForCausalLM(Olmo2Config(**SIZES)).save_pretrained(tmp_path)
    monkeypatch.setattr(
        Olmo2ForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were read")
    )
    with pytest.raises(VLMLensError, match="none of the forms known"):
        HookedVLM.from_pretrained(tmp_path)

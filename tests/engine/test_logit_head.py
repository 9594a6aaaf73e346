"""Scale and cap of the logits are what the model does, whatever its config says."""

from __future__ import annotations

import pytest
import tiny
import torch
from families.every import FAMILIES
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlm_lens import ActivationPatch, HookedVLM, Last
from vlm_lens.engine.logit_head import _probe
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.errors import ModelError
from vlm_lens.lenses import LogitLens

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
EDIT = ActivationPatch("blocks.1.hook_resid_pre", at=Last(), value=VECTOR)


class Scaled(LlamaForCausalLM):
    """Divides its logits, as Granite does, and its config does not say so under a known name."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = self.change(out.logits)
        return out

    def change(self, logits):
        return logits / 7.3


class Capped(Scaled):
    def change(self, logits):
        return 3.0 * torch.tanh(logits / 2.0 / 3.0)


class Strange(Scaled):
    def change(self, logits):
        return logits + logits.roll(1, -1)


def gemma2(**more) -> Gemma2Config:
    return Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, **more)


def llava(text) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=36, image_size=32, patch_size=8, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    )


def capped_config() -> LlamaConfig:
    config = LlamaConfig(**SIZES)
    config.final_logit_softcapping = 3.0
    return config


MODELS = {
    "a cap that is not applied": lambda: llava(gemma2()),
    "a cap that is applied": lambda: Gemma2ForCausalLM(gemma2()),
    "a scale under no name": lambda: Scaled(LlamaConfig(**SIZES)),
    "a scale within a cap": lambda: Capped(capped_config()),
}


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 7, 8, 9, 10]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def large(model: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that a cap of 2 makes a difference."""
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    return model.eval()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", MODELS)
def test_lens_and_replay_have_the_logits_of_the_model(name, dtype):
    model = large(MODELS[name]()).to(dtype)
    vlm = HookedVLM(model)
    logits, cache = vlm.run_with_cache(inputs(), names_filter="*resid_post")
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    last = cache["blocks.1.hook_resid_post"]
    torch.testing.assert_close(vlm.unembed(vlm.ln_final(last)), logits, **close)
    swept = vlm.sweep(inputs(), [EDIT], measure="logits", engine="replay", progress=False)

    def write(module, args):
        x = args[0].clone()
        x[:, -1] = VECTOR.to(x)
        return (x, *args[1:])

    blocks = model.get_submodule(vlm.architecture.decoder.stack.path)
    handle = blocks[1].register_forward_pre_hook(write)
    with torch.no_grad():
        expected = model(**inputs()).logits[0, -1:]
    handle.remove()
    torch.testing.assert_close(swept.stack("logits")[0], expected, **close)


def test_logits_of_an_unknown_form_are_refused():
    vlm = HookedVLM(large(Strange(LlamaConfig(**SIZES))), tiny.reader("llama"))
    with pytest.raises(ModelError, match="logits are not what its output layer gives"):
        vlm.unembed(VECTOR)
    with pytest.raises(ModelError, match="logits are not"):
        LogitLens().run(vlm, inputs())
    with pytest.raises(NotReplayable, match="logits are not"):
        vlm.sweep(inputs(), [EDIT], engine="replay", progress=False)
    swept = vlm.sweep(inputs(), [EDIT], measure="logits", progress=False)
    assert swept.engines == {"full": 1} and "logits are not" in next(iter(swept.reasons))


def test_a_head_that_changes_later_is_seen_in_the_recorded_run():
    class Doubled(LlamaForCausalLM):
        def forward(self, **kwargs):
            out = super().forward(**kwargs)
            return setattr(out, "logits", 2 * out.logits) or out

    vlm = HookedVLM(large(LlamaForCausalLM(LlamaConfig(**SIZES))))
    vlm.hf_model.__class__ = Doubled
    full = vlm.sweep(inputs(), [EDIT], measure="logits", engine="full", progress=False)
    rows = vlm.sweep(inputs(), [EDIT], measure="logits", memory=1 << 24, progress=False)
    assert rows.engines == {"full": 1}
    assert "not what its final norm and output layer give" in next(iter(rows.reasons))
    swept = vlm.sweep(inputs(), [EDIT], measure="logits", progress=False)  # the model's own logits
    torch.testing.assert_close(swept.stack("logits"), full.stack("logits"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_asked(name, tmp_path):
    vlm = HookedVLM.from_pretrained(FAMILIES[name].save_to(tmp_path))
    assert _probe(vlm.hf_model, vlm.architecture) is not None
    stated = vlm.family.architecture(vlm.hf_model).decoder
    fitted = vlm.architecture.decoder
    assert (stated.logit_scale, stated.logit_softcap) == (fitted.logit_scale, fitted.logit_softcap)

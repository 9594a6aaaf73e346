"""A registered family with a text model or a tower that its file does not know."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from transformers import Dinov2Config, LlavaConfig, LlavaForConditionalGeneration

from families import bench
from families.texts import TEXTS
from vlm_lens import HookedVLM

_OWN = {"vocab_size": tiny.D_VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "pad_token_id": 3, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip


def llava(text, tower=None) -> LlavaForConditionalGeneration:
    usual = tiny.llava_config("siglip" if tower is None else "clip", "mistral")
    return tiny.randomize(
        LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tower or usual.vision_config, text_config=text, image_token_index=4,
                vision_feature_layer=-1, tie_word_embeddings=False,
                vision_feature_select_strategy=usual.vision_feature_select_strategy,
            )
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["granite", "olmo2", "phi", "phi3", "mixtral", "qwen3_moe", "gpt_oss", "stablelm"]
)
def test_a_text_model_that_is_not_described(name, picture):
    title, options, _ = TEXTS[name]
    text = getattr(transformers, f"{title}Config")(**(options | _OWN))
    vlm = HookedVLM(llava(text), tiny.reader("siglip-mistral"))
    assert vlm.family.name == "llava"
    bench.check_conforms(vlm, "<image>Q:Greece A:", [picture])
    assert vlm.prompt("<image>", [picture]).layout.image[0].grid.rows == 4


def test_a_tower_that_is_not_described(picture):
    tower = Dinov2Config(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=tiny.IMAGE_SIDE,
        patch_size=tiny.PATCH,
    )  # fmt: skip
    text = tiny.llava_config("clip", "mistral").text_config
    vlm = HookedVLM(llava(text, tower), tiny.reader("clip-llama"))
    bench.check_conforms(vlm, "<image>Q:Greece A:", [picture], cold=True)
    kinds = {p.kind for p in vlm.points("vision.*").values()}
    assert kinds == {"vision.embed", "vision.resid_pre", "vision.resid_post", "vision.out"}
    with pytest.raises(Exception, match="within the blocks of this tower"):
        vlm.points("vision.blocks.0.attn.hook_pattern")


@pytest.mark.parametrize(
    ("text", "scale", "cap"),
    [("gemma2", {}, "final_logit_softcapping"), ("cohere", {"logit_scale": 0.25}, "logit_scale")],
)
def test_a_scale_that_the_model_does_not_apply_is_not_applied(text, scale, cap, picture):
    """LLaVA takes its text model without the head that would scale or cap its logits."""
    config = transformers.AutoConfig.for_model(
        text, **(_OWN | {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "head_dim": 8} | scale)
    )  # fmt: skip
    assert getattr(config, cap) not in (None, 1.0)
    vlm = HookedVLM(llava(config), tiny.reader("siglip-mistral"))
    prompt = vlm.prompt("<image>Q:Greece A:", [picture])
    plain, cache = vlm.run_with_cache(prompt)
    decoded = vlm.unembed(vlm.ln_final(cache["resid_post", 1]))
    torch.testing.assert_close(decoded, plain, rtol=1e-4, atol=1e-4)
    alone = HookedVLM(
        tiny.randomize(transformers.AutoModelForCausalLM.from_config(config)),
        tiny.tokenizer(),
    )
    plain, cache = alone.run_with_cache("Q:Greece A:")
    decoded = alone.unembed(alone.ln_final(cache["resid_post", 1]))
    torch.testing.assert_close(decoded, plain, rtol=1e-4, atol=1e-4)

"""PaliGemma: every point, the geometry, prompts that are read both ways."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import Gemma2Config

from families import bench, tiny_paligemma, tiny_parts
from vlm_lens import AttentionKnockout, HookedVLM, Images, Text
from vlm_lens.measures import Logits

MODEL = "paligemma"


def test_what_the_projector_reads(vlm):
    prompt = bench.one(vlm)
    _, cache = vlm.run_with_cache(prompt)
    norm = vlm.hf_model.model.vision_tower.post_layernorm
    with torch.no_grad():
        expected = norm(cache["vision.blocks.1.hook_resid_post"])
    assert torch.equal(cache["vision.hook_out"], expected)
    assert torch.equal(cache["projector.hook_in"], expected)


@pytest.mark.parametrize("which", ["text", "one"])
def test_the_prompt_sees_itself_both_ways(vlm, which):
    prompt = bench.one(vlm) if which == "one" else vlm.prompt("Q:Greece\nA:")
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.0.attn.hook_pattern")
    assert (cache["blocks.0.attn.hook_pattern"] > 0).all()
    start = 0 if which == "text" else 18
    assert prompt.layout.token_ids[start] == 1
    assert prompt.layout.strings[-3:] == ("A", ":", "\n")


def test_gemma_2(vlm):
    model = tiny_parts.finish(tiny_paligemma.model(Gemma2Config, sliding_window=6))
    other = HookedVLM(model, vlm.processor)
    assert other.architecture.decoder.logit_softcap == 30.0
    bench.check_conforms(other, bench.one(other))


def test_pictures_can_be_kept_from_seeing_the_words_after_them(vlm):
    """A prompt's positions see each other both ways, so edges to later ones can be cut."""
    prompt = vlm.prompt("<image>Q:Greece\nA:", [tiny.noise_picture(3, (64, 40))])
    pictures = list(prompt.layout.image[0].positions)
    words = [i for i, kind in enumerate(prompt.layout.kinds) if kind == "text"]
    twin = tiny.eager_copy(vlm.hf_model)

    def cut(module, args, kwargs):
        mask = torch.zeros(1, 1, len(prompt.layout), len(prompt.layout))
        mask[0, 0, torch.tensor(pictures)[:, None], torch.tensor(words)] = -torch.inf
        return args, kwargs | {"attention_mask": mask}

    for block in twin.model.language_model.layers:
        block.self_attn.register_forward_pre_hook(cut, with_kwargs=True)
    expected = tiny.plain_logits(twin, prompt.inputs)
    edit = AttentionKnockout(Images(), Text())
    found = vlm.run(prompt, interventions=edit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    swept = vlm.sweep(prompt, [edit], measure=Logits(), progress=False).records[0]["logits"][-1]
    torch.testing.assert_close(swept, expected[0, -1], rtol=1e-4, atol=1e-3)

"""PaliGemma: every point, the geometry, prompts that are read both ways."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config

from families import bench, tiny_paligemma, tiny_parts
from vlm_lens import HookedVLM

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

"""PaliGemma: every point, the geometry, prompts that are read both ways."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config

from families import pictures, tiny_paligemma, tiny_parts
from vlm_lens import HookedVLM


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return HookedVLM.from_pretrained(tiny_paligemma.save(tmp_path_factory.mktemp("paligemma")))


@pytest.mark.parametrize("which", pictures.prompts())
def test_conformance(vlm, which):
    pictures.check_conformance(vlm, which)


def test_errors(vlm):
    pictures.check_errors(vlm)


def test_batch(vlm):
    pictures.check_batch_is_its_rows(vlm)


@pytest.mark.parametrize("size", [(64, 48), (90, 333)])
def test_geometry(vlm, size):
    assert pictures.check_geometry(vlm, size) == 12


def test_writes(vlm):
    pictures.check_tower_writes(vlm)
    pictures.check_boxes(vlm)


def test_what_the_projector_reads(vlm):
    prompt = vlm.prompt(*pictures.prompts()["one"])
    _, cache = vlm.run_with_cache(prompt)
    norm = vlm.hf_model.model.vision_tower.post_layernorm
    with torch.no_grad():
        expected = norm(cache["vision.blocks.1.hook_resid_post"])
    assert torch.equal(cache["vision.hook_out"], expected)
    assert torch.equal(cache["projector.hook_in"], expected)


@pytest.mark.parametrize("which", ["text", "one"])
def test_the_prompt_sees_itself_both_ways(vlm, which):
    prompt = vlm.prompt(*pictures.prompts()[which])
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.0.attn.hook_pattern")
    assert (cache["blocks.0.attn.hook_pattern"] > 0).all()
    start = 0 if which == "text" else 18
    assert prompt.layout.token_ids[start] == 1
    assert prompt.layout.strings[-3:] == ("A", ":", "\n")


def test_gemma_2(vlm):
    model = tiny_parts.finish(tiny_paligemma.model(Gemma2Config, sliding_window=6))
    other = HookedVLM(model, vlm.processor)
    assert other.architecture.decoder.logit_softcap == 30.0
    pictures.check_conformance(other, "one", cold=False)

"""Every point of plain language models."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import conformance
from vlm_lens import Ablate, All
from vlm_lens.errors import PointError, PromptError


@pytest.fixture
def prompt(lm):
    return lm.prompt(["Q:Greece\nA:Athens\n\nQ:Peru\nA:", "Q:Japan\nA:"])


def test_reads(lm, prompt):
    conformance.check_reads(lm, prompt)


def test_writes(lm):
    prompt = lm.prompt("Q:Greece\nA:Athens\n\nQ:Peru\nA:")
    conformance.check_writes(lm, prompt)


def test_patching_back(lm):
    conformance.check_patching_back(lm, lm.prompt(["Q:Greece\nA:", "Q:France\nA:"]))


@pytest.mark.parametrize("name", tiny.LMS)
def test_the_first_forward(name):
    conformance.check_cold(
        tiny.build(name), tiny.reader(name), lambda vlm: vlm.prompt("Q:Greece\nA:")
    )


def test_everything_is_writable(lm, prompt):
    assert conformance.check_read_only(lm, prompt) == []


def test_sum_of_parts(lm, prompt):
    _, cache = lm.run_with_cache(prompt)
    assert torch.equal(cache["hook_merged"], cache["hook_embed"])
    total = cache["hook_merged"].double()
    total = total + cache.stack("attn_out").double().sum(0) + cache.stack("mlp_out").double().sum(0)
    torch.testing.assert_close(total, cache["resid_post", 1].double(), rtol=1e-5, atol=1e-5)


def test_no_vision(lm, picture, no_forward):
    assert lm.cfg.vision is None
    no_forward(lm)
    for name in ("vision.hook_out", "vision.*", "projector.hook_out"):
        with pytest.raises(PointError, match="without vision"):
            lm.points(name)
    for text in ("Q:Greece", "Q:<image>"):
        with pytest.raises(PromptError, match="without vision"):
            lm.run(text, images=[picture])
    with pytest.raises(PromptError, match="<image>"):
        lm.run("Q:<image>")


def test_grouped_heads(lm):
    assert (lm.cfg.n_heads, lm.cfg.n_key_value_heads, lm.cfg.d_head) == (4, 2, 8)
    assert lm.points("blocks.0.attn.hook_k")["blocks.0.attn.hook_k"].sizes == (None, None, 2, 8)
    with pytest.raises(PointError, match=r"heads 0\.\.1"):
        lm.run("Q:Greece", interventions=Ablate("blocks.0.attn.hook_k", at=All(), heads=2))

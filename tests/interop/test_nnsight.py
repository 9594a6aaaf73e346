"""Beside nnsight: the same model traced, the same activations, and neither disturbs the other."""

from __future__ import annotations

import copy

import nnsight
import pytest
import tiny
import torch

from vlm_lens import HookedVLM

pytestmark = pytest.mark.slow  # nnsight takes seconds to import


@pytest.fixture
def vlm(load):
    """A model of its own, that nnsight may wrap."""
    shared = load("clip-llama")
    return HookedVLM(copy.deepcopy(shared.hf_model), shared.processor)


@pytest.fixture
def prompt(vlm, picture):
    return vlm.prompt("Q:<image>\nA:", [picture])


def first(value):
    return value if isinstance(value, torch.Tensor) else value[0]


def test_a_trace_saves_what_the_cache_holds(vlm, prompt):
    logits, cache = vlm.run_with_cache(prompt)
    traced = nnsight.NNsight(vlm.hf_model)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        tower = traced.model.vision_tower.encoder.layers[1].output.save()
        projected = traced.model.multi_modal_projector.output.save()
        block = traced.model.language_model.layers[0].output.save()
        q = traced.model.language_model.layers[1].self_attn.q_proj.output.save()
        normed = traced.model.language_model.norm.output.save()
        there = traced.lm_head.output.save()
    assert torch.equal(first(tower), cache["vision.blocks.1.hook_resid_post"])
    assert torch.equal(first(projected), cache["projector.hook_out"].flatten(0, 1)) or torch.equal(
        first(projected), cache["projector.hook_out"]
    )
    assert torch.equal(first(block), cache["blocks.0.hook_resid_post"])
    assert torch.equal(q, cache["blocks.1.attn.hook_q"].flatten(2))
    assert torch.equal(normed, cache["ln_final.hook_normalized"])
    assert torch.equal(there, logits)


def test_a_hooked_model_works_after_a_trace_and_the_other_way_round(vlm, prompt):
    plain, before = vlm.run_with_cache(prompt)
    traced = nnsight.NNsight(vlm.hf_model)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        traced.model.language_model.layers[0].output[:] = 0
        emptied = traced.lm_head.output.save()
    hooks = [("blocks.0.hook_resid_post", lambda x, hook: torch.zeros_like(x))]
    assert not torch.equal(emptied, plain)
    assert torch.equal(vlm.run_with_hooks(prompt, fwd_hooks=hooks), emptied)
    logits, after = vlm.run_with_cache(prompt)
    assert torch.equal(logits, plain)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in after)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        there = traced.lm_head.output.save()
    assert torch.equal(there, plain)


def test_nothing_of_this_package_is_on_a_model_that_is_traced(vlm, prompt):
    vlm.run_with_cache(prompt)
    assert tiny.hook_state(vlm.hf_model) == tiny.hook_state(copy.deepcopy(vlm.hf_model))
    fresh = nnsight.NNsight(copy.deepcopy(vlm.hf_model))
    with torch.no_grad(), fresh.trace(**prompt.inputs):
        there = fresh.lm_head.output.save()
    assert torch.equal(there, vlm.run(prompt))

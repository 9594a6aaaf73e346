from __future__ import annotations

import random

import pytest
import tiny
import torch
from differential import assert_same, compare, random_prompt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_lens import Ablate, ActivationPatch, HookedVLM, Last
from vlm_lens.engine.baseline import NotReplayable, record
from vlm_lens.engine.hooks import count_hooks
from vlm_lens.engine.replay import start_of
from vlm_lens.interventions import Target

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
MANY = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@MANY
@given(seed=SEEDS)
@pytest.mark.parametrize("name", (*tiny.VLMS, *tiny.LMS))
def test_replay_equals_full_forward(load, name, seed):
    vlm = load(name)
    assert compare(vlm, seed, pictures=name in tiny.VLMS) == 8


@pytest.mark.parametrize("name", ("clip-llama", "siglip-mistral"))
def test_sliding_window_and_eager_attention(name):
    model = tiny.build(name, attention="eager")
    if name == "siglip-mistral":
        model = tiny.build(name, decoder={"sliding_window": 5})
    vlm = HookedVLM(model, tiny.reader(name))
    for seed in range(12):
        assert compare(vlm, seed, pictures=True) == 8


def test_start_is_where_the_first_op_acts(clip):
    prompt = random_prompt(clip, random.Random(0), pictures=False)
    baseline = record(clip.hf_model, clip.architecture, prompt.inputs)
    target = Target(clip.architecture.points, prompt.layouts, clip.facts)

    def start(edit):
        return start_of(edit.lower(target), baseline)

    last = prompt.length - 1
    here = start(ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=0.0))
    assert (here.layer, here.position) == (1, last)
    both = start(
        ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=0.0)
        + ActivationPatch("blocks.0.mlp.hook_post", at=-3, value=0.0)
    )
    assert (both.layer, both.position) == (0, last - 2)
    mean = start(Ablate("blocks.1.hook_mlp_out", at=Last(), by="mean"))
    assert mean.position == 0  # a mean over the prompt needs every position
    assert start(ActivationPatch("hook_logits", at=Last(), value=0.0)).layer == clip.cfg.n_layers


def test_tower_is_refused_by_name(clip, picture):
    prompt = clip.prompt("<image>A:", [picture])
    edit = Ablate("projector.hook_out", at=[0])
    with pytest.raises(NotReplayable, match="before the language model"):
        clip.sweep(prompt, [edit], engine="replay", progress=False)
    result = clip.sweep(prompt, [edit], measure="logits", progress=False)
    assert result.engines == {"full": 1}
    assert any("projector.hook_out" in reason for reason in result.reasons)
    by_hand = clip.run(prompt, interventions=edit)[:, -1:]
    assert_same(result.stack("logits"), by_hand)


def test_recording_leaves_the_model_as_it_was(clip, picture):
    prompt = clip.prompt("<image>A:", [picture])
    before, plain = count_hooks(clip.hf_model), clip.run(prompt)
    baseline = record(clip.hf_model, clip.architecture, prompt.inputs)
    assert count_hooks(clip.hf_model) == before
    assert torch.equal(baseline.logits, plain)
    assert len(baseline.keys) == clip.cfg.n_layers
    assert baseline.keys[0].shape[-2] == prompt.length

"""Eager attention runs in the layers whose pattern is asked, in the run that asks, nowhere else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama

from vlm_lens import Ablate, ActivationPatch, Last

PATCH = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=1.0)
TEXT = "<image>Q:Greece\nA:"


@pytest.fixture
def calls(clip, monkeypatch):
    """How often each attention module runs eager attention, and sdpa."""
    names = {module: name for name, module in clip.hf_model.named_modules()}
    seen: dict[str, Counter] = {"eager": Counter(), "sdpa": Counter()}

    def counted(kind, function):
        def call(module, *args, **kwargs):
            seen[kind][names[module]] += 1
            return function(module, *args, **kwargs)

        return call

    for modeling in (modeling_llama, modeling_clip):
        eager = modeling.eager_attention_forward
        monkeypatch.setattr(modeling, "eager_attention_forward", counted("eager", eager))
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", counted("sdpa", sdpa))
    return seen


def attention_of(clip, *layers):
    return {f"{clip.architecture.decoder.stack.path}.{layer}.self_attn" for layer in layers}


def test_runs_that_ask_no_pattern_never_run_eager(clip, picture, calls):
    prompt = clip.prompt(TEXT, [picture])
    clip.run(prompt)
    clip.run_with_cache(prompt)
    clip.run(prompt, interventions=Ablate("blocks.0.attn.hook_z", Last(), heads=[1]))
    clip.generate(prompt, max_new_tokens=2)
    for engine in ("replay", "full"):
        clip.sweep(prompt, PATCH.each_layer(), engine=engine, progress=False)
    assert not calls["eager"]
    n_layers = clip.cfg.n_layers + clip.cfg.vision.n_layers
    assert len(calls["sdpa"]) == n_layers and min(calls["sdpa"].values()) > 4


@pytest.mark.parametrize("layer", (0, 1))
def test_a_pattern_asked_runs_eager_in_its_layer_only(clip, picture, calls, layer):
    prompt = clip.prompt(TEXT, [picture])
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = clip.run_with_cache(prompt, names_filter=name)
    assert torch.allclose(cache[name].sum(-1), torch.ones(()), atol=1e-5)
    assert calls["eager"] == dict.fromkeys(attention_of(clip, layer), 1)
    clip.run(prompt)
    assert sum(calls["eager"].values()) == 1


def test_a_pattern_of_the_tower_runs_eager_there(clip, picture, calls):
    prompt = clip.prompt(TEXT, [picture])
    clip.run_with_cache(prompt, names_filter="vision.blocks.1.attn.hook_pattern")
    (name,) = calls["eager"]
    assert "vision" in name and ".1." in name


def test_a_replayed_write_runs_eager_from_no_other_layer(clip, picture, calls):
    prompt = clip.prompt(TEXT, [picture])
    edit = Ablate("blocks.1.attn.hook_pattern", at=Last(), heads=[0])
    result = clip.sweep(prompt, [edit], engine="replay", measure="logits", progress=False)
    assert calls["eager"] == dict.fromkeys(attention_of(clip, 1), 1)
    full = clip.run(prompt, interventions=edit)[:, -1:]
    assert torch.allclose(result.stack("logits"), full, atol=1e-4)

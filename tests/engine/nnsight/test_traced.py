"""Runs that nnsight calls equal those of torch hooks bit for bit, and leave nothing behind."""

from __future__ import annotations

import random
from collections import Counter

import nnsight
import pytest
import tiny
import torch
from families.every import FAMILIES
from fuzzing_changes import Changes

from vlm_lens import AttentionKnockout, Generated, HookedVLM, Images, Last, Scale, Steer
from vlm_lens.errors import InterventionError

pytestmark = pytest.mark.slow  # nnsight takes seconds to import

NAMES = ("clip-llama", "gemma3", "qwen2_vl", "idefics2", "blip2", "mllama")
N_CHANGES = 12


@pytest.fixture(scope="module", params=[*NAMES, "toy-llava"])
def vlm(request, load, tmp_path_factory):
    if request.param in FAMILIES:
        folder = FAMILIES[request.param].save_to(tmp_path_factory.mktemp(request.param))
        return HookedVLM.from_pretrained(folder)
    return (
        HookedVLM.from_pretrained(request.param) if "toy" in request.param else load("clip-llama")
    )


@pytest.fixture(scope="module")
def prompt(vlm):
    pictures = [tiny.noise_picture(n, (40, 30)) for n in range(2)]
    return vlm.prompt(["Q:<image>\nA:", "Q: what? <image>A:"], [pictures[:1], pictures[1:]])


def state(model):
    """What stands on a model's modules: hooks, and attributes of the instances."""
    on = [sorted(m.__dict__) for m in model.modules()]
    return tiny.hook_state(model), on


def test_everything_that_is_read_is_the_same(vlm, prompt):
    vlm.run(prompt)  # transformers puts hooks of its own on at the first forward
    before = state(vlm.hf_model)
    logits, cache = vlm.run_with_cache(prompt, names_filter="*")
    there, traced = vlm.run_with_cache(prompt, names_filter="*", engine="nnsight")
    assert torch.equal(there, logits)
    assert list(traced) and set(traced) == set(cache)
    for name in cache:
        assert torch.equal(traced[name], cache[name]), name
    assert state(vlm.hf_model) == before


def test_random_changes_of_every_kind_are_the_same(vlm, prompt):
    rows = [vlm.prompt([t], [list(p)]) for t, p in zip(prompt.texts, prompt.images, strict=True)]
    source, done = random.Random(3), Counter()
    while done.total() < N_CHANGES:
        changes = [c.intervention for c in Changes(vlm, False, source, rows, False).variant()]
        try:
            expected = vlm.run(prompt, interventions=changes)
        except InterventionError:  # what this prompt has not the places for
            continue
        there = vlm.run(prompt, interventions=changes, engine="nnsight")
        assert torch.equal(there, expected), changes
        done.update(type(c).__name__ for c in changes)
    assert len(done) > 3


def test_generation_reads_and_changes_the_same(vlm, prompt):
    last = vlm.cfg.n_layers - 1
    vector = torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0)) * 3
    edits = [
        Steer(f"blocks.{last}.hook_resid_post", Last() + Generated(), vector),
        AttentionKnockout(queries=Last() + Generated(), keys=Images(), layers=[0])
        if vlm.family.name != "mllama" else Scale("blocks.0.hook_mlp_out", Last(), 2.0),
    ]  # fmt: skip
    asked = {
        "interventions": edits, "names_filter": ["blocks.0.hook_resid_post", "hook_embed"],
        "max_new_tokens": 4, "scores": True, "eos_token_id": None,
    }  # fmt: skip
    here = vlm.generate(prompt, **asked)
    there = vlm.generate(prompt, **asked, engine="nnsight")
    assert torch.equal(there.tokens, here.tokens)
    assert torch.equal(there.scores, here.scores)
    for name in here.cache:
        assert torch.equal(there.cache[name], here.cache[name]), name
    assert not torch.equal(here.scores, vlm.generate(prompt, max_new_tokens=4, scores=True,
                                                     eos_token_id=None).scores)  # fmt: skip


def test_functions_and_gradients_are_the_same(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    seen = []

    def double(x, hook):
        seen.append((hook.name, clip.run(prompt)[0, -1, 0]))  # runs of its own are no part of it
        return x * 2

    hooks = [(["vision.blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"], double)]
    expected = clip.run_with_hooks(prompt, fwd_hooks=hooks)
    here, seen[:] = list(seen), []
    assert torch.equal(clip.run_with_hooks(prompt, fwd_hooks=hooks, engine="nnsight"), expected)
    assert seen == here and len(here) == 2
    names = ["blocks.0.attn.hook_pattern", "blocks.0.hook_resid_mid", "projector.hook_out"]
    found = []
    for engine in ("hooks", "nnsight"):
        logits, cache = clip.run_with_cache(prompt, names_filter=names, grad=True, engine=engine)
        found.append(torch.autograd.grad(logits[0, -1, 7], [cache[n] for n in names]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0


def test_open_contexts_act_on_every_engine(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    edit = Scale("blocks.0.hook_resid_post", Last(), -1.0)
    with clip.intervening(edit), clip.hooks([("blocks.1.attn.hook_q", lambda x, hook: x * 0)]):
        expected = clip.run(prompt)
        assert torch.equal(clip.run(prompt, engine="nnsight"), expected)
    assert not torch.equal(clip.run(prompt), expected)


def test_a_failure_in_the_run_leaves_nothing_behind(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    clip.run(prompt)
    before = state(clip.hf_model)

    def fail(x, hook):
        raise ZeroDivisionError("on purpose")

    for name in ("blocks.0.hook_resid_pre", "hook_logits", "blocks.1.attn.hook_pattern"):
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            clip.run_with_hooks(prompt, fwd_hooks=[(name, fail)], engine="nnsight")
        assert state(clip.hf_model) == before
    assert torch.equal(clip.run(prompt, engine="nnsight"), clip.run(prompt))


def test_another_wrapper_of_nnsight_stays(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    other = nnsight.NNsight(clip.hf_model)
    with torch.no_grad(), other.trace(**prompt.inputs):
        expected = other.lm_head.output.save()
    plain = clip.run(prompt, interventions=Scale("hook_merged", Last(), 1.0), engine="nnsight")
    with torch.no_grad(), other.trace(**prompt.inputs):
        there = other.lm_head.output.save()
    assert torch.equal(there, expected) and torch.equal(plain, expected)
    for module in clip.hf_model.modules():  # as it was, for other tests
        for name in [n for n in module.__dict__ if "nnsight" in n]:
            del module.__dict__[name]
        module.__dict__.pop("forward", None)


def test_an_engine_that_there_is_not(clip, no_forward):
    prompt = clip.prompt("Q:")
    no_forward(clip)
    with pytest.raises(InterventionError, match="hooks, nnsight"):
        clip.run(prompt, engine="jax")
    edits = Scale("blocks.*.hook_resid_post", Last(), 2.0).each_layer()
    with pytest.raises(InterventionError, match="run them one by one"):
        clip.sweep(prompt, edits, engine="nnsight")

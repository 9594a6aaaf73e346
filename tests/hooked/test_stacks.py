"""Stacks of a cache, on models that TransformerLens does not compare: pictures, DeepStack."""

from __future__ import annotations

import gc

import pytest
import tiny
import torch

from vlm_lens import HookedVLM, Last, VLMLensError


def test_a_stack_begins_with_the_picture_and_sums_to_the_stream(clip, picture):
    prompt = clip.prompt("a<image>b", [picture])
    logits, cache = clip.run_with_cache(prompt)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert labels == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    torch.testing.assert_close(stack.sum(0), cache["resid_post", 1], rtol=1e-4, atol=1e-5)
    assert torch.equal(stack[0], cache["hook_merged"])
    shares = cache.logit_attrs(stack, [45])
    torch.testing.assert_close(shares.sum(0), logits[..., 45], rtol=1e-4, atol=1e-4)
    normed = cache.apply_ln_to_stack(stack, layer=1)
    first, _ = cache.decompose_resid(layer=1, apply_ln=True, return_labels=True)
    torch.testing.assert_close(
        first.sum(0), cache["blocks.1.ln1.hook_normalized"], rtol=1e-4, atol=1e-5
    )
    assert normed.shape == stack.shape
    heads, names = cache.stack_head_results(return_labels=True)
    assert names[5] == "L1H1" and len(heads) == 8
    torch.testing.assert_close(heads[4:].sum(0), cache["attn_out", 1], rtol=1e-4, atol=1e-5)


def test_a_cache_of_some_positions_stacks_them(llama):
    _, whole = llama.run_with_cache("Q:Greece\nA:")
    _, last = llama.run_with_cache("Q:Greece\nA:", positions=Last())
    torch.testing.assert_close(last.decompose_resid(), whole.decompose_resid(pos_slice=[-1]))
    torch.testing.assert_close(
        last.to("cpu").stack_head_results(), whole.stack_head_results(pos_slice=slice(-1, None))
    )


def test_what_is_missing_is_told(llama):
    _, cache = llama.run_with_cache("Q:Greece\nA:", names_filter="blocks.*.hook_resid_post")
    with pytest.raises(VLMLensError, match="resid_pre was not read"):
        cache.decompose_resid()
    with pytest.raises(VLMLensError, match="mode is one of"):
        cache.decompose_resid(mode="both")
    with pytest.raises(VLMLensError, match="blocks are 0 to 1"):
        cache.accumulated_resid(layer=3)
    with pytest.raises(VLMLensError, match="2 tokens were given for 1 row"):
        cache.logit_attrs(torch.zeros(1, 1, 1, 32), [4, 5])
    lonely = HookedVLM(tiny.build("llama"), llama.processor)
    _, cache = lonely.run_with_cache("Q:Greece\nA:")
    del lonely
    gc.collect()
    with pytest.raises(VLMLensError, match="model of this cache is gone"):
        cache.decompose_resid()


# ---------------------------------------------------------------------- TransformerLens itself


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The same text through a tiny Llama here and there, and what each has read."""
    vlm = HookedVLM.from_pretrained(tiny.save("llama", tmp_path_factory.mktemp("llama")))
    ids = vlm.prompt("Q:Greece\nA:").inputs["input_ids"]
    from vlm_lens.interop.transformer_lens import to_bridge

    bridge = to_bridge(vlm)
    theirs = bridge.run_with_cache(ids)[1]
    mine = vlm.run_with_cache({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[1]
    return vlm, mine, theirs, ids


STACKS = {
    "accumulated_resid": [{}, {"incl_mid": True}, {"layer": 1, "mlp_input": True},
                          {"apply_ln": True}, {"pos_slice": -1}],
    "decompose_resid": [{}, {"layer": 1}, {"mode": "attn"}, {"mode": "mlp", "incl_embeds": False},
                        {"layer": 1, "mlp_input": True}, {"pos_slice": -1}],
    "stack_head_results": [{}, {"layer": 1}, {"incl_remainder": True}, {"pos_slice": -1}],
}  # fmt: skip


@pytest.mark.slow  # transformer_lens takes seconds to import
@pytest.mark.parametrize("name", STACKS)
def test_stacks_of_a_cache_are_those_of_transformer_lens(caches, name):
    _, mine, theirs, _ = caches
    for options in STACKS[name]:
        here, labels = getattr(mine, name)(**options, return_labels=True)
        there, names = getattr(theirs, name)(**options, return_labels=True)
        assert list(labels) == list(names), options
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_shares_of_logits_are_those_of_transformer_lens(caches):
    """There the norm's weight is folded into the unembedding first."""
    vlm, mine, _, ids = caches
    from vlm_lens.interop.transformer_lens import to_bridge

    folded = to_bridge(vlm)
    folded.enable_compatibility_mode(center_unembed=False, center_writing_weights=False)
    theirs = folded.run_with_cache(ids)[1]
    stack = mine.decompose_resid()
    for tokens, wrong in ((45, None), (45, 20)):
        here = mine.logit_attrs(stack, tokens, wrong)
        there = theirs.logit_attrs(theirs.decompose_resid(), tokens, wrong)
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    logits = vlm.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    total = mine.logit_attrs(stack, 45).sum(0)
    torch.testing.assert_close(total, logits[..., 45], rtol=1e-4, atol=1e-4)

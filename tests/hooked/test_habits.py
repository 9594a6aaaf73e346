"""What users of TransformerLens type is served, or answered with what it is called here."""

from __future__ import annotations

import copy

import pytest
import torch

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.habits import ATTRIBUTES, CACHE_ATTRIBUTES, KEYWORDS

METHODS = {
    "run": ("remove_batch_dim", "stop_at_layer", "return_type", "fwd_hooks", "padding_side"),
    "run_with_cache": ("pos_slice", "incl_bwd", "remove_batch_dim", "return_cache_object"),
    "run_with_hooks": ("bwd_hooks", "reset_hooks_end", "clear_contexts"),
    "generate": ("use_past_kv_cache", "freq_penalty", "prepend_bos", "verbose"),
    "prompt": ("prepend_bos", "move_to_device"),
}


@pytest.mark.parametrize("method", METHODS)
def test_keywords_are_answered(llama, no_forward, method):
    no_forward(llama)
    for keyword in METHODS[method]:
        with pytest.raises(VLMLensError) as said:
            getattr(llama, method)("Q:", **{keyword: True})
        assert isinstance(said.value, TypeError)
        assert f"{method} takes no {keyword}=: {KEYWORDS[keyword]}" in str(said.value)


def test_misspelt_keywords_are_near_matches(llama, no_forward):
    no_forward(llama)
    with pytest.raises(VLMLensError, match="Did you mean 'interventions'"):
        llama.run("Q:", intervention=())
    with pytest.raises(VLMLensError, match="It takes prompt, images"):
        llama.run_with_cache("Q:", zzz=1)
    with pytest.raises(VLMLensError, match="Did you mean 'measure'"):
        llama.sweep("Q:", [], measures="top1")


def test_attributes_are_answered(llama):
    for name, answer in ATTRIBUTES.items():
        with pytest.raises(VLMLensError) as said:
            getattr(llama, name)
        assert isinstance(said.value, AttributeError)
        assert answer in str(said.value)
        assert not hasattr(llama, name)
    with pytest.raises(AttributeError, match="Did you mean 'tokenizer'"):
        _ = llama.tokeniser
    assert copy.copy(llama).cfg == llama.cfg


def test_attributes_of_caches_are_answered(llama):
    cache = llama.run_with_cache("Q:", names_filter="hook_embed")[1]
    for name, answer in CACHE_ATTRIBUTES.items():
        with pytest.raises(AttributeError, match="ActivationCache has no") as said:
            getattr(cache, name)
        assert answer in str(said.value)
    with pytest.raises(VLMLensError, match="Did you mean 'select'"):
        _ = cache.selct
    assert copy.copy(cache) == copy.deepcopy(cache) == cache


def test_a_call_is_a_run(llama):
    assert torch.equal(llama("Q:Greece"), llama.run("Q:Greece"))
    assert llama.to_string(llama.to_tokens("Q:Greece")) == "Q:Greece"

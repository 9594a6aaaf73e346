"""What users of TransformerLens type is served, or answered with what it is called here."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from typecheck import unchecked

import vlm_lens
from vlm_lens import Ablate, HookedVLM, Last
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


def test_guesses_are_answered_with_what_it_is_called_here(clip, picture):
    """What people type who know torch, pandas and xarray; what is proposed is there."""
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    _, cache = clip.run_with_cache(prompt)
    look = clip.attention(prompt)
    image = prompt.layout.image[0]
    for owner, name, answer in (
        (clip, "n_layers", "vlm.cfg.n_layers"),
        (clip, "decode", "vlm.to_string"),
        (clip, "logit_lens", "LogitLens().run(vlm, prompt)"),
        (cache, "resid_post", "cache.stack('resid_post')"),
        (prompt.layout, "tokens", "layout.strings"),
        (prompt.layout, "lasst", "Did you mean 'last'"),
        (image, "rows", "image.grid.rows"),
        (image, "size", "image.grid.pixels_of.picture"),
        (look, "argmax", "scores.top(1)"),
        (look, "iloc", "scores.sel(layer=4, head=2)"),
        (look, "marcked", "Did you mean 'marked'"),
    ):
        with pytest.raises(AttributeError, match=re.escape(answer)):
            getattr(owner, name)
        assert not hasattr(owner, "_repr_svg_")
    with pytest.raises(VLMLensError, match=r"take cache\['resid_post', 3\]"):
        cache["resid_post"]
    with pytest.raises(VLMLensError, match="interventions="):
        unchecked(HookedVLM.run)(clip, prompt, Ablate("blocks.1.hook_mlp_out", Last()))
    shares = look.sum("head", "position")
    assert float(shares.sel(layer=1)) == pytest.approx(clip.cfg.n_heads)
    with pytest.raises(VLMLensError, match="2 numbers by .'layer'."):
        float(shares)
    for value in (look, prompt.layout, image):
        assert type(pickle.loads(pickle.dumps(copy.deepcopy(value)))) is type(value)


def test_classes_of_a_room_are_found_from_the_package():
    with pytest.raises(AttributeError, match="from vlm_lens.recipes import CausalTracing"):
        vlm_lens.CausalTracing  # noqa: B018
    with pytest.raises(AttributeError, match="Did you mean 'AttentionKnockout'"):
        vlm_lens.Knockout  # noqa: B018

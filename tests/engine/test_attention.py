"""Attention scores and patterns: what they are, and that edits of them act."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from reach.causal_changes import CHANGES
from reach.shrunk import tiny_config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    AttentionEdit,
    AttentionKnockout,
    Find,
    Generated,
    HookedVLM,
    Last,
    Text,
)
from vlm_lens.attention import attention, generated_attention
from vlm_lens.errors import PointError


@pytest.fixture
def prompt(vlm):
    pictures = [tiny.noise_picture(i) for i in range(2)]
    return vlm.prompt(["Q:<image>\nA:red\n\nQ:Greece\nA:", "Q:<image>"], pictures)


def patterns(vlm, prompt):
    _, cache = vlm.run_with_cache(prompt, names_filter=["*attn.hook_pattern", "*hook_attn_scores"])
    return cache


def test_patterns_are_those_of_eager_attention(vlm, prompt):
    cache = patterns(vlm, prompt)
    eager = tiny.eager_copy(vlm.hf_model)
    with torch.no_grad():
        text = eager(**prompt.inputs, output_attentions=True, use_cache=False).attentions
        tower = eager.model.vision_tower(
            prompt.inputs["pixel_values"], output_attentions=True
        ).attentions
    mask = prompt.inputs["attention_mask"].bool()
    for layer, expected in enumerate(text):
        for row in range(2):
            mine = cache["pattern", layer][row][:, mask[row]]
            torch.testing.assert_close(mine, expected[row][:, mask[row]], rtol=1e-4, atol=1e-5)
    for layer, expected in enumerate(tower):
        mine = cache[f"vision.blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_scores_are_scaled_and_masked_queries_times_keys(clip):
    prompt = clip.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    _, cache = clip.run_with_cache(prompt, names_filter="*")
    length = prompt.length
    rotary = clip.hf_model.model.language_model.rotary_emb
    cos, sin = rotary(cache["hook_merged"], torch.arange(length)[None])
    for layer in range(clip.cfg.n_layers):
        q, k = (cache[n, layer].transpose(1, 2) for n in ("q", "k"))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        scores = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2) / 8**0.5
        causal = torch.ones(length, length).tril().bool().expand_as(scores)
        mine = cache["attn_scores", layer]
        torch.testing.assert_close(mine[causal], scores[causal], rtol=1e-5, atol=1e-5)
        assert (mine[~causal] < -1e30).all()
        torch.testing.assert_close(cache["pattern", layer], mine.softmax(-1), rtol=1e-5, atol=1e-7)
        mixed = cache["pattern", layer] @ cache["v", layer].transpose(1, 2).repeat_interleave(2, 1)
        torch.testing.assert_close(mixed.transpose(1, 2), cache["z", layer], rtol=1e-4, atol=1e-5)


def test_a_model_loaded_with_eager_attention(vlm, prompt):
    eager = HookedVLM(tiny.eager_copy(vlm.hf_model), vlm.processor)
    logits, cache = eager.run_with_cache(prompt, names_filter="*")
    assert torch.equal(logits, tiny.plain_logits(eager.hf_model, prompt.inputs))
    with torch.no_grad():
        attentions = eager.hf_model(**prompt.inputs, output_attentions=True).attentions
    for layer, expected in enumerate(attentions):
        assert torch.equal(cache["pattern", layer], expected)
    edit = Ablate("blocks.0.attn.hook_pattern", at=Last(), heads=1)
    same = Ablate("blocks.0.attn.hook_z", at=Last(), heads=1)
    torch.testing.assert_close(
        eager.run(prompt, interventions=edit), eager.run(prompt, interventions=same)
    )


@pytest.mark.parametrize("block", ["blocks.1", "vision.blocks.0", "vision.blocks.1"])
def test_no_pattern_is_no_mixed_values(vlm, prompt, block):
    where = {"heads": (0, 2)}
    by_pattern = vlm.run(
        prompt, interventions=Ablate(f"{block}.attn.hook_pattern", at=All(), **where)
    )
    by_values = vlm.run(prompt, interventions=Ablate(f"{block}.attn.hook_z", at=All(), **where))
    real = prompt.inputs["attention_mask"].bool()
    torch.testing.assert_close(by_pattern[real], by_values[real], rtol=1e-4, atol=1e-5)
    plain = vlm.run(prompt)
    assert (by_pattern - plain)[real].abs().max() > 1e-2


def test_queries_that_are_not_edited_keep_their_bits(vlm, prompt):
    name = "blocks.1.attn.hook_z"
    _, plain = vlm.run_with_cache(prompt, names_filter=name)
    edit = Ablate("blocks.1.attn.hook_pattern", at=Last(), heads=2)
    logits, edited = vlm.run_with_cache(prompt, names_filter=name, interventions=edit)
    changed = (plain[name] != edited[name]).any(-1)  # [batch, pos, head]
    expected = torch.zeros_like(changed)
    expected[:, -1, 2] = True
    assert torch.equal(changed, expected)
    assert torch.equal(logits[:, :-1], vlm.run(prompt)[:, :-1])
    assert not torch.equal(logits[:, -1], vlm.run(prompt)[:, -1])


def test_writing_scores_back_changes_nothing(vlm, prompt):
    plain = vlm.run(prompt)
    for stage in ("hook_pattern", "hook_attn_scores"):
        hooks = [(f"*attn.{stage}", lambda x, hook: None if "vision" in hook.name else x.clone())]
        assert torch.equal(vlm.run_with_hooks(prompt, fwd_hooks=hooks), plain)


def test_knockout_of_a_key_is_an_attention_mask(llama):
    """Scores of minus infinity at one key, everywhere, equal a mask that hides that token."""
    prompt = llama.prompt("Q:Greece\nA:Athens\n\nQ:Peru\nA:")
    key = 2

    def cut(scores, hook):
        scores[:, :, key + 1 :, key] = -torch.inf

    logits = llama.run_with_hooks(prompt, fwd_hooks=[("blocks.*.attn.hook_attn_scores", cut)])
    length = prompt.length
    mask = torch.ones(length, length).tril().bool()
    mask[key + 1 :, key] = False
    with torch.no_grad():
        expected = llama.hf_model(
            input_ids=prompt.inputs["input_ids"], attention_mask=mask[None, None], use_cache=False
        ).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    plain = llama.run(prompt)
    assert torch.equal(logits[:, : key + 1], plain[:, : key + 1])
    assert (logits - plain).abs().max() > 1e-2


def test_a_patched_pattern_is_used_as_it_is(clip):
    prompt = clip.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    only_first = torch.zeros(4, prompt.length)
    only_first[:, 0] = 1
    patch = ActivationPatch("blocks.0.attn.hook_pattern", at=Last(), value=only_first)
    _, cache = clip.run_with_cache(prompt, names_filter="blocks.0.attn.*", interventions=patch)
    assert torch.equal(cache["pattern", 0][0, :, -1], only_first)
    values = cache["v", 0][0, 0].repeat_interleave(2, 0)
    torch.testing.assert_close(cache["z", 0][0, -1], values)


def test_a_single_query_and_generation(clip):
    """With a cache of keys there is one query, and no mask."""
    prompt = clip.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    seen = []
    with clip.hooks([("blocks.0.attn.hook_pattern", lambda x, hook: seen.append(x.clone()))]):
        tokens = clip.generate(prompt, max_new_tokens=3, eos_token_id=None).tokens
    assert [tuple(x.shape[2:]) for x in seen] == [
        (prompt.length, prompt.length), (1, prompt.length + 1), (1, prompt.length + 2),
    ]  # fmt: skip
    inputs = prompt.inputs | {
        "input_ids": torch.cat([prompt.inputs["input_ids"], tokens[:, :2]], 1),
        "attention_mask": torch.ones(1, prompt.length + 2, dtype=torch.long),
    }
    _, whole = clip.run_with_cache(inputs, names_filter="blocks.0.attn.hook_pattern")
    full = whole["pattern", 0]
    torch.testing.assert_close(seen[2][:, :, 0], full[:, :, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[1][:, :, 0], full[:, :, -2, :-1], rtol=1e-4, atol=1e-5)


def test_attention_without_patterns_is_refused(monkeypatch, no_forward):
    model = tiny.build("llama")
    vlm = HookedVLM(model, tiny.reader("llama"))
    no_forward(vlm)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    assert model.config._attn_implementation == "flash_attention_2"
    before = tiny.hook_state(model)
    with pytest.raises(PointError, match="attn_implementation='sdpa' or 'eager'"):
        vlm.run_with_cache("Q:Greece", names_filter="blocks.0.attn.hook_pattern")
    with pytest.raises(PointError, match="forms none"):
        vlm.run("Q:Greece", interventions=Ablate("blocks.0.attn.hook_pattern", at=Last()))
    assert tiny.hook_state(model) == before


def test_overrides_by_others_are_used_and_put_back(llama):
    calls = []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def mine(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
    try:
        plain = llama.run("Q:Greece")
        _, cache = llama.run_with_cache("Q:Greece", names_filter="blocks.*.attn.hook_pattern")
        assert len(calls) == 2 * llama.cfg.n_layers
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is mine
        assert torch.equal(plain, llama.run("Q:Greece"))
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is original
    assert "eager" not in ALL_ATTENTION_FUNCTIONS


def test_runs_may_nest(llama):
    """A function called at a pattern may itself run a model and read patterns."""
    inner = []

    def look(x, hook):
        if not inner:
            inner.append(None)
            _, cache = llama.run_with_cache("Q:Peru", names_filter="blocks.0.attn.hook_pattern")
            inner[0] = cache["pattern", 0]

    plain = llama.run("Q:Greece")
    with llama.hooks([]):
        logits = llama.run_with_hooks("Q:Greece", fwd_hooks=[("blocks.0.attn.hook_pattern", look)])
    assert torch.equal(logits, plain)
    assert inner[0].dim() == 4


@pytest.mark.parametrize("at", [Find("Greece"), At((1, 2)), Text()])
def test_positions_of_patterns_are_queries(clip, at):
    prompt = clip.prompt("Q:Greece\nA:")
    places = [p for _, p in at.resolve(prompt.layout)]
    _, cache = clip.run_with_cache(
        prompt, names_filter="blocks.1.attn.hook_pattern",
        interventions=Ablate("blocks.1.attn.hook_pattern", at=at),
    )  # fmt: skip
    dead = (cache["pattern", 1] == 0).all(-1).all(1)[0].nonzero().flatten().tolist()
    assert dead == places


@pytest.mark.parametrize(
    ("model_type", "name"), [("gpt_oss", "GptOss"), ("mimo_v2_flash", "MiMoV2Flash")]
)
def test_a_sink_beside_the_keys_of_a_sliding_window(model_type, name):
    """While tokens are generated the cache holds the last keys alone, and a sink after them."""
    config = tiny_config(model_type, {**CHANGES.get(model_type, {}), "sliding_window": 5})
    vlm = HookedVLM(tiny.randomize(getattr(transformers, f"{name}ForCausalLM")(config)))
    ids = torch.arange(5, 17)[None]
    last, read = len(ids[0]) - 1, {"max_new_tokens": 4, "eos_token_id": -1}
    for change, options in (
        (AttentionKnockout, {}), (AttentionKnockout, {"renormalise": False}),
        (AttentionEdit, {"value": 0.4}),
    ):  # fmt: skip
        edit = change(Last() + Generated(), At(10), **options)
        made = vlm.generate(
            {"input_ids": ids}, interventions=edit, names_filter="hook_logits", **read
        )
        whole = torch.cat([ids, made.tokens[:, :-1]], 1)
        edit = change(At(range(last, whole.shape[1])), At(10), **options)
        logits = vlm.run({"input_ids": whole}, interventions=edit)[0, last:]
        torch.testing.assert_close(made.cache["hook_logits"][0], logits, rtol=1e-4, atol=1e-4)
    found = generated_attention(vlm, {"input_ids": ids}, **read)
    whole = torch.cat([ids, vlm.generate({"input_ids": ids}, **read).tokens[:, :-1]], 1)
    rows = attention(vlm, {"input_ids": whole}, at=At(range(last, whole.shape[1])))
    expected = rows.values.to_numpy()[..., : last + 1]
    assert abs(found.values.to_numpy() - expected).max() < 1e-5

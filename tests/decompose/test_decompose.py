"""Shares of a logit against plain Hugging Face and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from families import texts
from families.texts import TEXTS

from vlm_lens import All, At, HookedVLM, Images, Last, VLMLensError
from vlm_lens.decompose import Decomposition
from vlm_lens.testing.gradients import _Double, in_double

IDS = {"input_ids": torch.tensor([[1, 33, 21, 40, 12, 6, 8]]),
       "attention_mask": torch.ones(1, 7).long()}  # fmt: skip
TOKENS = [10, 20, 45]


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_model_by_structure_is_the_sum_of_its_parts(name):
    vlm = HookedVLM(texts.build(name))
    found = vlm.decompose(IDS, at=All(), tokens=TOKENS)
    expected = tiny.plain_logits(vlm.hf_model, IDS)[0][:, TOKENS].double().numpy()
    error = np.abs(found.values.sum("component").to_numpy() - expected).max()
    assert error < 1e-5 * np.abs(expected).max()
    assert "head" in found.values["part"] or found.about["taken whole"]


def test_heads_by_hand(llama):
    """RMSNorm, grouped heads: z, columns of the output projection, the norm's scale."""
    prompt = llama.prompt("Q:Greece\nA:")
    seen = tiny.plain_read(
        llama.hf_model, prompt.inputs,
        ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "blocks.1.hook_resid_post",
         "blocks.1.hook_mlp_out"],
    )  # fmt: skip
    norm, head = llama.hf_model.model.norm, llama.hf_model.lm_head.weight[45].double()
    end = seen["blocks.1.hook_resid_post"][0, -1].double()
    scale = (end.square().mean() + norm.variance_epsilon).sqrt()
    direction = head * norm.weight.double() / scale
    found = llama.decompose(prompt, token=45)
    assert isinstance(found, Decomposition) and found.axes == ("component",)
    for layer in range(2):
        weight = llama.hf_model.model.layers[layer].self_attn.o_proj.weight.double()
        z = seen[f"blocks.{layer}.attn.hook_z"][0, -1].double().unflatten(0, (4, 8))
        for h in range(4):
            expected = float((weight[:, 8 * h : 8 * h + 8] @ z[h]) @ direction)
            assert float(found.sel(component=f"L{layer}H{h}").values) == pytest.approx(
                expected, rel=1e-4, abs=1e-5
            )
            assert float(found.heads().sel(layer=layer, head=h).values) == pytest.approx(
                expected, rel=1e-4, abs=1e-5
            )
    mlp = float(seen["blocks.1.hook_mlp_out"][0, -1].double() @ direction)
    assert float(found.sel(component="L1 mlp").values) == pytest.approx(mlp, rel=1e-4)
    by_part = found.by_part()
    assert by_part.values["component"].to_numpy().tolist() == ["input", "head", "mlp"]
    assert float(by_part.values.sum()) == pytest.approx(float(seen["logits"][0, -1, 45]), rel=1e-4)
    assert float(found.by_layer().values.sum()) == pytest.approx(float(found.values.sum()))


def test_layer_norm_takes_off_the_mean_and_biases_are_parts():
    vlm = HookedVLM(texts.build("gpt2"))
    found = vlm.decompose(IDS, token=5)
    block = vlm.hf_model.transformer.h[1].attn.c_proj
    norm, head = vlm.hf_model.transformer.ln_f, vlm.hf_model.lm_head.weight[5]
    seen = {}
    handle = norm.register_forward_pre_hook(lambda m, args: seen.update(end=args[0][0, -1]))
    tiny.plain_logits(vlm.hf_model, IDS)
    handle.remove()
    scale = (seen["end"].var(unbiased=False) + norm.eps).sqrt()

    def share(x: torch.Tensor) -> float:
        return float(((x - x.mean()) * norm.weight / scale) @ head)

    assert float(found.sel(component="L1 attention bias").values) == pytest.approx(
        share(block.bias), rel=1e-4
    )
    assert float(found.sel(component="final norm bias").values) == pytest.approx(
        float(norm.bias @ head), rel=1e-4
    )


def test_image_positions_begin_with_what_stands_there(clip, picture):
    prompt = clip.prompt("a<image>b", [picture])
    seen = tiny.plain_read(clip.hf_model, prompt.inputs, ["hook_merged", "blocks.0.hook_attn_out"])
    found = clip.decompose(prompt, at=Images())
    positions = list(prompt.layout.image[0].positions)
    assert found.values["query"].to_numpy().tolist() == positions
    expected = seen["hook_merged"][0, positions].double().numpy()
    np.testing.assert_allclose(found.sel(component="input").values, expected, rtol=1e-6)
    heads = found.heads().sel(layer=0).sum("head").values.transpose("query", "feature")
    added = seen["blocks.0.hook_attn_out"][0, positions].double().numpy()
    np.testing.assert_allclose(heads, added, rtol=1e-4, atol=1e-5)


def test_by_source_is_pattern_times_values(clip, picture):
    prompt = clip.prompt("a<image>b", [picture])
    found = clip.decompose(prompt, token=45, by="source")
    assert found.axes == ("layer", "head", "position")
    total = clip.decompose(prompt, token=45).heads()
    np.testing.assert_allclose(
        found.values.sum("position"), total.values.to_numpy(), rtol=1e-5, atol=1e-6
    )
    eager = tiny.eager_copy(clip.hf_model)
    with torch.no_grad():
        patterns = eager(**prompt.inputs, output_attentions=True).attentions
    seen = tiny.plain_read(
        clip.hf_model, prompt.inputs, ["blocks.1.attn.hook_v", "blocks.1.hook_resid_post"]
    )
    norm, key = clip.hf_model.model.language_model.norm, prompt.layout.image[0].positions[3]
    end = seen["blocks.1.hook_resid_post"][0, -1]
    direction = clip.hf_model.lm_head.weight[45] * norm.weight
    direction = direction / (end.square().mean() + norm.variance_epsilon).sqrt()
    v = seen["blocks.1.attn.hook_v"][0, key].unflatten(-1, (2, 8))[1]  # of query heads 2 and 3
    weight = clip.hf_model.model.language_model.layers[1].self_attn.o_proj.weight
    expected = float(patterns[1][0, 2, -1, key] * ((weight[:, 16:24] @ v) @ direction))
    assert float(found.sel(layer=1, head=2, position=key).values) == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )
    assert found.over_picture(layer=1, head=2) is not None


def test_norms_after_attention_are_held_and_gamma_is_one_plus_weight(load_family):
    vlm = load_family("gemma3")
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    found = vlm.decompose(prompt, token=45)
    text = vlm.hf_model.model.language_model
    seen = {}
    handles = [
        text.layers[1].self_attn.o_proj.register_forward_pre_hook(
            lambda m, args: seen.update(z=args[0][0, -1])),
        text.norm.register_forward_pre_hook(lambda m, args: seen.update(end=args[0][0, -1])),
    ]  # fmt: skip
    tiny.plain_logits(vlm.hf_model, prompt.inputs)
    for handle in handles:
        handle.remove()
    o, after = text.layers[1].self_attn.o_proj, text.layers[1].post_attention_layernorm
    d = vlm.cfg.d_head
    alone = torch.zeros_like(seen["z"])
    alone[d : 2 * d] = seen["z"][d : 2 * d]
    whole, head = o(seen["z"]), o(alone)
    head = head * (1 + after.weight) / (whole.square().mean() + after.eps).sqrt()
    scale = (seen["end"].square().mean() + text.norm.eps).sqrt()
    expected = float((head * (1 + text.norm.weight) / scale) @ vlm.hf_model.lm_head.weight[45])
    assert float(found.sel(component="L1H1").values) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def load_family(tmp_path_factory):
    from families.every import VLMS

    return lambda name: VLMS[name].load(tmp_path_factory.mktemp(name))


def test_scaled_additions_are_scaled():
    vlm = HookedVLM(texts.build("granite"))
    found = vlm.decompose(IDS)
    with torch.no_grad():
        hidden = vlm.hf_model.model(**IDS, output_hidden_states=True).hidden_states
    merged = vlm.hf_model.model.embed_tokens.weight[8] * 2.0  # embedding_multiplier
    np.testing.assert_allclose(found.sel(component="input").values, merged.detach(), rtol=1e-5)
    first = found.by_layer().sel(component=0).values
    np.testing.assert_allclose(first, (hidden[1] - hidden[0])[0, -1].double(), atol=1e-5)


def test_a_soft_cap_is_said_and_left_off():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0,
        max_position_embeddings=64,
    )  # fmt: skip
    vlm = HookedVLM(tiny.randomize(Gemma2ForCausalLM(config)))
    found = vlm.decompose(IDS, token=5)
    assert "soft cap 5" in repr(found)
    logit = float(tiny.plain_logits(vlm.hf_model, IDS)[0, -1, 5])
    assert 5 * np.tanh(float(found.values.sum()) / 5) == pytest.approx(logit, rel=1e-4)


def test_in_double_precision_the_sum_is_exact(llama):
    twin, prompt = in_double(llama), llama.prompt("Q:Greece\nA:")
    vlm = HookedVLM(twin.hf_model, llama.processor)
    with _Double():
        found = vlm.decompose(prompt, token=45)
        expected = float(tiny.plain_logits(vlm.hf_model, prompt.inputs)[0, -1, 45])
    assert float(found.values.sum()) == pytest.approx(expected, rel=1e-9)


def test_an_earlier_layer_is_what_the_logit_lens_reads(llama):
    prompt = llama.prompt("Q:Greece\nA:")
    cache = llama.run_with_cache(prompt, names_filter="blocks.0.hook_resid_post")[1]
    lens = llama.unembed(llama.ln_final(cache["resid_post", 0]))[0, -1, 45]
    found = llama.decompose(prompt, token=45, layer=0)
    assert float(found.values.sum()) == pytest.approx(float(lens), rel=1e-4)
    raw = llama.decompose(prompt, token=45, layer=0, apply_norm=False)
    assert float(raw.values.sum()) == pytest.approx(
        float(cache["resid_post", 0][0, -1] @ llama.W_U[:, 45]), rel=1e-4
    )
    along = llama.decompose(prompt, direction=llama.W_U[:, 45], layer=0)
    assert float(along.values.sum()) == pytest.approx(float(lens), rel=1e-4)


def test_shares_are_written_and_read_again(llama, tmp_path):
    found = llama.decompose("Q:Greece\nA:", tokens=["A", "B"])
    again = Decomposition.load(found.save(tmp_path / "shares"))
    np.testing.assert_array_equal(again.values, found.values)
    assert again.heads().axes == ("layer", "head", "token")


def test_what_cannot_be_asked_is_told(llama, no_forward):
    no_forward(llama)
    for options, words in (
        ({"token": 5, "tokens": [5]}, "one of token="),
        ({"tokens": "Paris"}, "token='Paris'"),
        ({"by": "patch", "token": 5}, "'patch' is not among"),
        ({"by": "source"}, "say which"),
        ({"token": 5, "layer": 7}, "blocks are 0 to 1"),
        ({"direction": torch.zeros(3)}, r"\[32\] here"),
        ({"token": 5, "part": "vision"}, "no vision tower|vision"),
        ({"token": 99999}, "ids are 0 to"),
        ({"token": 5, "at": At(99)}, "99"),
    ):
        with pytest.raises(VLMLensError, match=words):
            llama.decompose("Q:Greece\nA:", **options)
    with pytest.raises(VLMLensError, match="batch of 2"):
        llama.decompose(llama.prompt(["a", "b"]), at=Last())

"""Weights under names: the model's own memory, and what runs make of them."""

from __future__ import annotations

import pytest
import torch
from families import texts

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.stream.weights import Factored, HeadWeights

IDS = {"input_ids": torch.tensor([[1, 33, 21, 40, 12]]), "attention_mask": torch.ones(1, 5).long()}


def shares_memory(view: torch.Tensor, model: torch.nn.Module) -> bool:
    where = view.untyped_storage().data_ptr()
    return any(p.untyped_storage().data_ptr() == where for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "granite", "falcon"])
def test_projections_are_views_and_give_what_their_points_hold(name):
    """One layer for all in GPT-2 (`[in, out]`), NeoX (by head), Phi-3 and Falcon (grouped)."""
    vlm = HookedVLM(texts.build(name))
    cache = vlm.run_with_cache(IDS)[1]
    for layer in range(vlm.cfg.n_layers):
        x = cache[f"blocks.{layer}.ln1.hook_normalized"][0]
        for letter in "qkv":
            point = f"blocks.{layer}.attn.hook_{letter}"
            if point not in vlm.architecture.points:
                continue
            weights = getattr(vlm, f"W_{letter.upper()}")
            seen = cache[point][0]
            n_heads, repeated = seen.shape[1], vlm.cfg.n_heads // seen.shape[1]
            assert weights[layer].shape == (n_heads, vlm.cfg.d_model, vlm.cfg.d_head)
            for head in range(vlm.cfg.n_heads):
                weight = weights[layer, head]
                assert shares_memory(weight, vlm.hf_model)
                constant = seen[:, head // repeated] - x @ weight  # a bias at the most
                torch.testing.assert_close(
                    constant, constant[:1].expand_as(constant), rtol=1e-4, atol=1e-4
                )


def test_the_llama_by_its_own_names(llama):
    model, d = llama.hf_model, llama.cfg.d_head
    attention = model.model.layers[1].self_attn
    assert llama.W_U.data_ptr() == model.lm_head.weight.data_ptr()
    assert llama.W_E.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(llama.W_O[1, 3], attention.o_proj.weight.T[3 * d : 4 * d])
    assert torch.equal(llama.W_K[1, 3], attention.k_proj.weight.T[:, d : 2 * d])  # 4 on 2
    assert torch.equal(llama.W_V[-1][0], attention.v_proj.weight.T[:, :d])
    assert llama.W_O[1, 3].data_ptr() == attention.o_proj.weight[:, 3 * d :].data_ptr()
    assert llama.b_U is None and len(llama.W_O) == 2 and len(list(llama.W_Q)) == 2


def test_circuits_are_products(llama):
    for circuit, a, b in (
        (llama.OV[0, 1], llama.W_V[0, 1], llama.W_O[0, 1]),
        (llama.QK[0, 1], llama.W_Q[0, 1], llama.W_K[0, 1].T),
    ):
        full = a @ b
        assert circuit.a.data_ptr() == a.data_ptr()
        torch.testing.assert_close(circuit.full(), full)
        torch.testing.assert_close(circuit.T.full(), full.T)
        torch.testing.assert_close(circuit.norm(), full.norm())
        u, s, vh = circuit.svd()
        torch.testing.assert_close(u @ s.diag() @ vh, full, rtol=1e-4, atol=1e-5)
        total = circuit.eigenvalues().sum()
        torch.testing.assert_close(total.real, full.trace(), rtol=1e-4, atol=1e-4)
        other = torch.randn(full.shape[1], 3)
        torch.testing.assert_close((circuit @ other).full(), full @ other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((other.T @ circuit).full(), other.T @ full, rtol=1e-4, atol=1e-4)
    assert isinstance(llama.OV[0, 1] @ llama.OV[1, 0], Factored)


def test_the_tower_has_weights_too(clip):
    weights = HeadWeights("W_O", clip.hf_model, clip.architecture, "vision.")
    module = clip.hf_model.model.vision_tower.vision_model.encoder.layers[1].self_attn.out_proj \
        if hasattr(clip.hf_model.model.vision_tower, "vision_model") \
        else clip.hf_model.model.vision_tower.encoder.layers[1].self_attn.out_proj  # fmt: skip
    assert torch.equal(weights[1, 2], module.weight.T[2 * 8 : 3 * 8])


def test_what_is_not_there_is_told(llama):
    with pytest.raises(VLMLensError, match="heads are 0 to 3"):
        llama.W_O[0, 4]
    with pytest.raises(VLMLensError, match="blocks are 0 to 1"):
        llama.W_Q[2]
    with pytest.raises(VLMLensError, match="of one head"):
        llama.OV[0]
    with pytest.raises(VLMLensError, match="no two parts"):
        HookedVLM(texts.build("mamba2")).W_O[0]

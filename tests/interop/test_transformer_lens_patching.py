"""TransformerLens's patching functions on prompts with pictures, against plain hooks."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens.errors import ModelError
from vlm_lens.interop.transformer_lens_patching import patching_model

patching = pytest.importorskip("transformer_lens.patching")
pytestmark = pytest.mark.slow  # transformer_lens takes seconds to import


@pytest.fixture(scope="module")
def runs(load):
    """A LLaVA, and two pictures in one prompt: the clean run's cache, and the corrupted prompt."""
    vlm = load("clip-llama")
    clean, corrupt = (
        vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(n, (40, 30))]) for n in range(2)
    )
    names = [*vlm.points("blocks.*")]
    return vlm, vlm.run_with_cache(clean, names_filter=names)[1], corrupt


def metric(logits):
    return logits[0, -1, 7] - logits[0, -1, 20]


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "attn_out", "mlp_out"])
def test_positions(runs, kind):
    vlm, clean, corrupt = runs
    model = patching_model(vlm, corrupt)
    patch = getattr(patching, f"get_act_patch_{kind}")
    found = patch(model, model.tokens, clean, metric)
    plain = tiny.plain_logits(vlm.hf_model, corrupt.inputs)
    _, before = vlm.run_with_cache(corrupt, names_filter="blocks.*.hook_resid_pre")
    moved = 0.0
    for layer in range(vlm.cfg.n_layers):
        name = f"blocks.{layer}.hook_{kind}"
        for place in range(0, found.shape[1], 4):

            def write(x, place=place, name=name, layer=layer):
                x = x.clone()
                x[:, place] = clean[name][:, place]
                if kind == "resid_mid":  # what attention gives, so that the stream is that
                    x[:, place] -= before[f"blocks.{layer}.hook_resid_pre"][:, place]
                return x

            at = name.replace("resid_mid", "attn_out")
            want = metric(tiny.plain_write(vlm.hf_model, corrupt.inputs, at, write))
            torch.testing.assert_close(found[layer, place], want, atol=1e-4, rtol=1e-4)
            moved = max(moved, float((want - metric(plain)).abs()))
    assert moved > 0.1


def test_heads_and_patterns(runs):
    vlm, clean, corrupt = runs
    model = patching_model(vlm, corrupt)
    every = patching.get_act_patch_attn_head_all_pos_every(model, model.tokens, clean, metric)
    heads = vlm.cfg.n_heads
    assert every.shape == (5, vlm.cfg.n_layers, heads)  # z, q, k, v, pattern
    for kind, name in ((0, "z"), (4, "pattern")):
        point = f"blocks.1.attn.hook_{name}"
        for head in range(heads):

            def write(x, hook, head=head, point=point, kind=kind):
                where = (slice(None), head) if kind else (slice(None), slice(None), head)
                x[where] = clean[point][where]

            logits = vlm.run_with_hooks(corrupt, fwd_hooks=[(point, write)])
            torch.testing.assert_close(every[kind, 1, head], metric(logits), atol=1e-5, rtol=1e-4)
    assert every.std() > 0.05
    kept = patching.get_act_patch_resid_pre(
        model, model.tokens, clean, lambda logits: logits[:, -1, 7], reduce="none", baseline=True
    )
    torch.testing.assert_close(kept.baseline, vlm.run(corrupt)[:, -1, 7])


def test_what_is_not_served_is_told(runs):
    vlm, clean, corrupt = runs
    model = patching_model(vlm, corrupt)
    with pytest.raises(ModelError, match="not the tokens"):
        patching.get_act_patch_resid_pre(model, model.tokens[:, 1:], clean, metric)
    with pytest.raises(ModelError, match="not the tokens"):
        model.run_with_hooks("Q:<image>")
    with pytest.raises(ModelError, match="patch_paths"):
        patching.get_act_patch_direct_path(
            model, model.tokens, clean, clean, metric, src_layer=0, src_head=0
        )
    with pytest.raises(ModelError, match="takes no return_type"):
        model.run_with_hooks(model.tokens, return_type="loss")

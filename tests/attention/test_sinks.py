from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens import HookedVLM, Patches, Steer, VLMLensError
from vlm_lens.attention import attention, find_sinks, relative_attention
from vlm_lens.attention.parts import AttentionError
from vlm_lens.interventions.base import compose

PICTURE = Image.effect_noise((48, 36), 90).convert("RGB")


def test_a_planted_sink_is_found_and_marked(load):
    vlm: HookedVLM = load("clip-llama")
    prompt = vlm.prompt("<image>\nWhat is the capital?\nA:", images=[PICTURE])
    assert find_sinks(vlm, prompt).positions == ()
    patch = prompt.layout.image[0].patch(1, 1)
    width = vlm.cfg.d_model
    push = torch.zeros(width)
    push[5] = 1e4  # rms of such a state is 1e4 / sqrt(width): the ratio is sqrt(width)
    edit = compose([Steer("blocks.0.hook_resid_post", at=[0, patch], vector=push)])
    tau = 0.9 * width**0.5
    with vlm.intervening(edit):
        found = find_sinks(vlm, prompt, tau=tau)
    assert found.positions == (0, patch) and found.dimensions == (5,)
    assert found.strength[patch] == pytest.approx(width**0.5, rel=1e-2)
    assert found.share[patch] == 1.0
    assert found.to_dataframe()["position"].tolist() == [0, patch]


def test_strengths_are_those_of_plain_hooks(load):
    vlm = load("siglip-mistral")
    prompt = vlm.prompt("<image>\nA:", images=[PICTURE])
    seen = {}
    layers = vlm.hf_model.model.language_model.layers
    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: seen.__setitem__(
                i, (args[0] if args else kwargs["hidden_states"])[0]
            ),
            with_kwargs=True,
        )
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        vlm.hf_model(**prompt.inputs)
    for handle in handles:
        handle.remove()
    ratio = {
        i: (x.abs() / x.pow(2).mean(-1, keepdim=True).sqrt()) for i, x in seen.items() if i > 0
    }
    tau = 2.5
    found = find_sinks(vlm, prompt, tau=tau)
    hit = torch.stack([(r >= tau) for r in ratio.values()])  # [block, position, dimension]
    dims = [d for d in range(hit.shape[-1]) if hit[:, :, d].any(1).sum() >= max(1, len(hit) // 2)]
    assert list(found.dimensions) == dims and dims
    expected = sorted(hit[:, :, dims].any(2).any(0).nonzero().flatten().tolist())
    assert list(found.positions) == expected
    for p in expected:
        largest = max(float(r[p, dims].max()) for r in ratio.values())
        assert found.strength[p] == pytest.approx(largest, rel=1e-4)


def test_attention_without_sinks_leaves_them_out(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("<image>\nA:", images=[PICTURE])
    push = torch.zeros(vlm.cfg.d_model)
    push[3] = 1e6
    vlm_edit = Steer("blocks.0.hook_resid_post", at=0, vector=push)
    found = attention(vlm, prompt, interventions=vlm_edit)
    if vlm.cfg.d_model**0.5 > 20:
        assert found.marked["sinks"] == (0,)
    rest = found.without_sinks()
    assert rest.shape[-1] == found.shape[-1] - len(found.marked["sinks"])


def test_relative_attention_divides_shares_of_the_picture(load):
    vlm = load("clip-llama")
    asked = attention(vlm, vlm.prompt("<image>\nWhat is the capital?\nA:", images=[PICTURE]))
    plain = attention(vlm, vlm.prompt("<image>\nDescribe the picture.", images=[PICTURE]))
    found = relative_attention(asked, plain)
    mine, theirs = (
        s.values.to_numpy()[..., list(s.layout.image[0].positions)] for s in (asked, plain)
    )
    mine, theirs = (v / v.sum(-1, keepdims=True) + 1e-6 for v in (mine, theirs))
    expected = mine / theirs
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    np.testing.assert_allclose(relative_attention(asked, asked).values, 1, rtol=1e-5)
    two = attention(vlm, vlm.prompt("<image><image>", images=[PICTURE, PICTURE]))
    with pytest.raises(AttentionError, match="same pictures"):
        relative_attention(asked, two)
    with pytest.raises(AttentionError, match="other blocks"):
        relative_attention(asked, plain.sel(layer=[0]))
    with pytest.raises(VLMLensError, match="No position here is of kind 'image'"):
        relative_attention(attention(vlm, "Q:Peru\nA:"), plain)


def test_registers_are_those_of_the_picture_asked(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("<image> <image>\nA:", images=[PICTURE, PICTURE.rotate(90)])
    width = vlm.cfg.vision.d_model
    push = torch.zeros(width)
    push[3] = 1e4
    edit = Steer("vision.blocks.0.hook_resid_post", at=Patches(1, rows=1, cols=0), vector=push)
    patch = prompt.layout.image[1].vision.grid().patch(1, 0)
    tau = 0.9 * width**0.5
    with vlm.intervening(edit):
        found = [find_sinks(vlm, prompt, part="vision", image=i, tau=tau) for i in (0, 1)]
    assert [f.positions for f in found] == [(), (patch,)]

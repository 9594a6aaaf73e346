"""Steering."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Last, Steer, Text


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_adds_a_multiple(model, scale):
    prompt = model.prompt("Q:Greece\nA:")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for at in (Last(), Text()):
        places = [p for _, p in at.resolve(prompt.layout)]

        def add(x, places=places):
            x = x.clone()
            x[:, places] = x[:, places] + scale * vector
            return x

        name = "blocks.0.hook_resid_mid" if at == Last() else "blocks.0.hook_resid_post"
        steer = Steer(name, at=at, vector=vector, scale=scale)
        if name.endswith("post"):
            expected = tiny.plain_write(model.hf_model, prompt.inputs, name, add)
            assert torch.equal(model.run(prompt, interventions=steer), expected)
        else:
            _, before = model.run_with_cache(prompt, names_filter="blocks.0.*")
            _, after = model.run_with_cache(prompt, names_filter="blocks.0.*", interventions=steer)
            assert torch.equal(after["resid_mid", 0], add(before["resid_mid", 0]))
            total = after["resid_mid", 0] + after["mlp_out", 0]
            assert torch.equal(after["resid_post", 0], total)


def test_twice_is_one_after_the_other(clip):
    vector = torch.ones(32) / 3
    one = Steer("hook_merged", at=Last(), vector=vector)
    prompt = clip.prompt("Q:Peru")
    _, plain = clip.run_with_cache(prompt, names_filter="hook_merged")
    _, twice = clip.run_with_cache(prompt, names_filter="hook_merged", interventions=one + one)
    expected = (plain["hook_merged"][0, -1] + vector) + vector
    assert torch.equal(twice["hook_merged"][0, -1], expected)

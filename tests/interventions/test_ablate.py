"""Ablation by zero, by a mean, by a value."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Ablate, All, At, Images, Last
from vlm_lens.errors import InterventionError

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Peru\nA:", "Q:<image>\nA:"]


@pytest.fixture
def batch(vlm):
    return vlm.prompt(TEXTS, [tiny.noise_picture(i) for i in range(3)])


def test_zero(vlm, batch):
    def cut(x):
        x = x.clone()
        x[:, -1] = 0
        return x

    for name in ("blocks.0.hook_attn_out", "blocks.1.mlp.hook_pre", "hook_merged"):
        expected = tiny.plain_write(vlm.hf_model, batch.inputs, name, cut)
        assert torch.equal(vlm.run(batch, interventions=Ablate(name, at=Last())), expected)


def test_the_mean_is_that_of_each_row_without_padding(vlm, batch):
    name = "blocks.0.hook_mlp_out"
    _, plain = vlm.run_with_cache(batch, names_filter=name)
    for at in (Last(), All(), At(-2)):
        _, made = vlm.run_with_cache(
            batch, names_filter=name, interventions=Ablate(name, at, "mean")
        )
        for row, layout in enumerate(batch.layouts):
            mean = plain[name][row, layout.start :].mean(0)
            places = [p for _, p in at.resolve(layout)]
            torch.testing.assert_close(
                made[name][row, places], mean.expand(len(places), -1), rtol=1e-5, atol=1e-6
            )
            rest = [p for p in range(batch.length) if p not in places]
            assert torch.equal(made[name][row, rest], plain[name][row, rest])


def test_the_mean_in_the_tower_is_that_of_each_picture(vlm, batch):
    name = "vision.blocks.0.attn.hook_z"
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])
    _, plain = vlm.run_with_cache(prompt, names_filter=name)
    edit = Ablate(name, at=Images(1), by="mean", heads=2)
    _, made = vlm.run_with_cache(prompt, names_filter=name, interventions=edit)
    expected = plain[name].clone()
    expected[1, :, 2] = plain[name][1, :, 2].mean(0)
    torch.testing.assert_close(made[name], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(made[name][0], plain[name][0])


def test_a_mean_of_patterns_is_refused(vlm, batch, no_forward):
    no_forward(vlm)
    with pytest.raises(InterventionError, match="mixes queries"):
        vlm.run(batch, interventions=Ablate("blocks.0.attn.hook_pattern", at=Last(), by="mean"))

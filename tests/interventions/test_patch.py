"""Patching with what another run has read."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import ActivationPatch, Find, Last, Patches
from vlm_lens.errors import VectorError

ONE, TWO = "Q:Greece\nA:Athens\n\nQ:Peru\nA:", "Q:Japan\nA:Tokyo\n\nQ:France\nA:"


@pytest.mark.parametrize(
    "point", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"]
)
def test_from_another_prompt_at_the_same_place(model, point):
    source, target = model.prompt(ONE), model.prompt(TWO)
    at = Find(":", -3)
    _, cache = model.run_with_cache(source, names_filter=point)
    there, here = source.layout.find(":", -3), target.layout.find(":", -3)
    value = tiny.plain_read(model.hf_model, source.inputs, [point])[point][0, there]

    def write(x):
        x = x.clone()
        x[0, here] = value
        return x

    expected = tiny.plain_write(model.hf_model, target.inputs, point, write)
    for read in (cache, model.run_with_cache(source, names_filter=point, positions=at)[1]):
        patch = ActivationPatch(point, at=at, value=read)
        assert torch.equal(model.run(target, interventions=patch), expected)


def test_every_layer_has_its_own_value(clip):
    _, cache = clip.run_with_cache(ONE)
    patch = ActivationPatch("blocks.*.hook_mlp_out", at=Last(), value=cache)
    _, after = clip.run_with_cache(TWO, interventions=patch)
    for layer in range(2):
        assert torch.equal(after["mlp_out", layer][:, -1], cache["mlp_out", layer][:, -1])


def test_a_patch_of_one_picture_into_another(vlm):
    one, two = (vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(i)]) for i in range(2))
    name = "vision.blocks.0.hook_resid_post"
    _, cache = vlm.run_with_cache(one, names_filter=name)
    first = vlm.cfg.vision.n_class_tokens

    def write(x):
        x = x.clone()
        x[0, first + 5] = cache[name][0, first + 5]
        return x

    expected = tiny.plain_write(vlm.hf_model, two.inputs, name, write)
    patch = ActivationPatch(name, at=Patches(rows=1, cols=1), value=cache)
    assert torch.equal(vlm.run(two, interventions=patch), expected)


def test_what_the_cache_has_not_read(clip):
    _, cache = clip.run_with_cache(ONE, names_filter="blocks.0.hook_mlp_out")
    with pytest.raises(VectorError, match="holds none of"):
        ActivationPatch("blocks.1.hook_mlp_out", at=Last(), value=cache)
    with pytest.raises(VectorError, match="was not read at blocks.1.hook_mlp_out"):
        clip.run(
            TWO, interventions=ActivationPatch("blocks.*.hook_mlp_out", at=Last(), value=cache)
        )

"""A model whose settings were changed after it was wrapped is refused, until it is wrapped anew."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from vlm_lens import Ablate, HookedVLM, Images
from vlm_lens.errors import ModelError


def test_another_layer_of_the_tower(load):
    vlm = load("clip-llama")
    vlm = HookedVLM(copy.deepcopy(vlm.hf_model), vlm.processor)
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    plain, config = vlm.run(prompt), vlm.hf_model.config
    layer = config.vision_feature_layer
    config.vision_feature_layer = layer - 1
    last = vlm.cfg.vision.n_layers_read - 1
    edit = Ablate(f"vision.blocks.{last}.hook_mlp_out", at=Images())
    for ask in (
        lambda: vlm.run(prompt, interventions=edit),
        lambda: vlm.run_with_cache(prompt),
        lambda: vlm.sweep(prompt, [edit], progress=False),
        lambda: vlm.generate(prompt, max_new_tokens=1),
    ):
        with pytest.raises(ModelError, match=f"vision_feature_layer was {layer} .*wrap it again"):
            ask()
    again = HookedVLM(vlm.hf_model, vlm.processor)
    assert again.cfg.vision.n_layers_read == last
    other = again.prompt("<image>A:", [tiny.noise_picture()])
    assert not torch.equal(again.run(other), plain)
    config.vision_feature_layer = layer
    assert torch.equal(vlm.run(prompt), plain)
    config.text_config.num_hidden_layers = 1
    with pytest.raises(ModelError, match="text_config.num_hidden_layers was 2 .* is 1 now"):
        vlm.run(prompt)

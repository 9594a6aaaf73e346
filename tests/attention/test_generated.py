"""Attention of new tokens, against one run over prompt and answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny_mllama
from PIL import Image

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.attention import generated_attention

PICTURE = Image.effect_noise((48, 36), 90).convert("RGB")
GREEDY = {"max_new_tokens": 4, "eos_token_id": None}


@pytest.mark.parametrize("part", ["language", "cross"])
def test_rows_are_those_of_a_run_over_prompt_and_answer(load, tmp_path, part):
    if part == "cross":
        tiny_mllama.save(folder=tmp_path)
        vlm = HookedVLM.from_pretrained(tmp_path)
    else:
        vlm = load("clip-llama")
    prompt = vlm.prompt("<image>\nA:", images=[PICTURE])
    found = generated_attention(vlm, prompt, part=part, heads=[1, 3], **GREEDY)
    tokens = vlm.generate(prompt, **GREEDY).tokens
    assert found.axes == ("layer", "head", "token", "position") and found.shape[1:3] == (2, 4)
    assert found.about["answer"] == vlm.generate(prompt, **GREEDY).text[0]
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens[:, :-1]], 1)
    more = torch.ones_like(tokens[:, :-1])
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], more], 1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([mask, *[mask[:, -1:]] * 3], 1)
    keys = found.values["position"].to_numpy().tolist()
    for layer in found.values["layer"].to_numpy().tolist():
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern = vlm.run_with_cache(inputs, names_filter=name)[1][name][0]
        expected = pattern[[1, 3], prompt.length - 1 :][..., keys]
        np.testing.assert_allclose(found.sel(layer=layer).values, expected.numpy(), atol=2e-6)
    if part == "language":
        page = found.over_picture()._repr_html_()
        assert "token" in page and "data-i" in page
        assert keys == list(range(prompt.length))


def test_what_is_refused(load, no_forward):
    vlm = load("clip-llama")
    no_forward(vlm)
    for prompt, options, says in (
        ("Q:", {"part": "vision"}, "'language' or 'cross'"),
        (["Q:", "Q:Peru"], {}, "batch of 2 rows"),
        ("Q:", {"layers": 9}, "block 9"),
        ("Q:", {"num_beams": 2}, "num_beams"),
    ):
        with pytest.raises(VLMLensError, match=says):
            generated_attention(vlm, prompt, **options)

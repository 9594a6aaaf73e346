"""Every family in half precision: tensors in the model's dtype, plain transformers' numbers."""

from __future__ import annotations

import pytest
import tiny
import torch

from families.every import FAMILIES
from vlm_lens import HookedVLM


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_read_in_half_precision(name, tmp_path):
    folder = FAMILIES[name].save_to(tmp_path)
    given = ("<image>What?", tiny.noise_picture(1, (40, 56)))
    full = HookedVLM.from_pretrained(folder)
    plain = full.prompt(*given).inputs
    for dtype in (torch.float16, torch.bfloat16):
        vlm = HookedVLM.from_pretrained(folder, dtype=dtype)
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain.items()}
        prompt = vlm.prompt(*given)
        assert {k: v.dtype for k, v in prompt.inputs.items()} == {
            k: v.dtype for k, v in cast.items()
        }
        logits, cache = vlm.run_with_cache(prompt)
        assert torch.equal(logits, tiny.plain_logits(vlm.hf_model, cast))
        assert all(v.dtype == dtype for n, v in cache.items() if n.startswith("blocks."))
        made = vlm.generate(prompt, max_new_tokens=2, eos_token_id=None).tokens
        assert made[0, 0] == logits[0, -1].argmax()

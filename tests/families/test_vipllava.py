"""ViP-LLaVA: every point, a projector that reads several layers."""

from __future__ import annotations

import pytest
import torch

from families import bench, tiny_parts, tiny_vipllava
from vlm_lens import Ablate, All, HookedVLM
from vlm_lens.errors import PointError

MODEL = "vipllava"


def test_the_projector_reads_several_layers(vlm):
    prompt = bench.one(vlm)
    _, cache = vlm.run_with_cache(prompt)
    read = [cache["vision.resid_post", i][:, 1:] for i in (2, 1, 0)]  # -2, -3 and 1 of 0..4
    assert torch.equal(cache["projector.hook_in"], torch.cat(read, -1))
    with pytest.raises(PointError, match="reads several layers at once"):
        vlm.points("vision.hook_out")
    assert vlm.cfg.vision.n_layers_read == 3
    with pytest.raises(PointError, match="the projector reads block 2"):
        vlm.run(prompt, interventions=Ablate("vision.blocks.3.hook_attn_out", at=All()))


def test_one_layer(vlm):
    other = HookedVLM(tiny_parts.finish(tiny_vipllava.model(-2)), vlm.processor)
    bench.check_conforms(other, bench.one(other))
    assert "vision.hook_out" in other.architecture.points

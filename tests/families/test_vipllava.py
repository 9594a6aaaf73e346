"""ViP-LLaVA: every point, a projector that reads several layers."""

from __future__ import annotations

import pytest
import torch

from families import pictures, tiny_parts, tiny_vipllava
from vlm_lens import Ablate, All, HookedVLM
from vlm_lens.errors import PointError


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return HookedVLM.from_pretrained(tiny_vipllava.save(tmp_path_factory.mktemp("vipllava")))


@pytest.mark.parametrize("which", pictures.prompts())
def test_conformance(vlm, which):
    pictures.check_conformance(vlm, which)


def test_errors(vlm):
    pictures.check_errors(vlm)


def test_batch(vlm):
    pictures.check_batch_is_its_rows(vlm)


@pytest.mark.parametrize("size", [(64, 48), (90, 333)])
def test_geometry(vlm, size):
    """The processor crops the middle of the picture."""
    assert pictures.check_geometry(vlm, size) == 12


def test_writes(vlm):
    pictures.check_tower_writes(vlm)
    pictures.check_boxes(vlm)


def test_the_projector_reads_several_layers(vlm):
    prompt = vlm.prompt(*pictures.prompts()["one"])
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
    pictures.check_conformance(other, "one", cold=False)
    assert "vision.hook_out" in other.architecture.points

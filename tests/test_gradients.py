"""Gradients within torch's modes: recorded, or refused in words."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch.testing import assert_close

from vlm_lens import HookedVLM, Images, Pair
from vlm_lens.attribution.between import bound_to, gradients
from vlm_lens.errors import ModelError
from vlm_lens.lenses import JacobianLens, TunedLens
from vlm_lens.measures import Custom

P = "blocks.1.attn.hook_z"


@pytest.fixture
def pair(clip):
    prompts = [clip.prompt("<image>A:", [tiny.noise_picture(seed)]) for seed in (0, 1)]
    return Pair(*prompts, answer="red", other="one")


def test_inference_mode_is_refused_where_gradients_are_needed(clip, pair):
    prompt = clip.prompt("Q:Greece")
    along = torch.ones(clip.cfg.d_model)
    asks = (
        lambda: clip.attribute(prompt, baseline="zero"),
        lambda: pair.attribute(clip, P),
        lambda: pair.edges(clip),
        lambda: clip.run_with_cache(prompt, names_filter=P, grad=True),
        lambda: TunedLens.fit(clip, [prompt] * 4, steps=1, progress=False),
        lambda: JacobianLens.fit(clip, [prompt], progress=False),
        lambda: clip.decompose(prompt, token="red"),
        lambda: clip.decompose(pair.clean, at=Images(), part="vision", direction=along),
    )
    for ask in asks:
        with torch.inference_mode(), pytest.raises(ModelError, match=r"use torch.no_grad\(\)"):
            ask()
        with torch.no_grad():
            ask()


def test_what_is_made_in_inference_mode_is_used_outside(clip, picture, tmp_path):
    with torch.inference_mode():
        prompt = clip.prompt("Q:<image>\nA:", [picture])
        other = HookedVLM.from_pretrained(clip.loaded_as[0])
        logits, cache = other.run_with_cache(prompt)
    assert_close(logits.clone(), clip.run(prompt))
    assert_close(
        other.attribute(prompt).values.to_numpy(), clip.attribute(prompt).values.to_numpy()
    )
    again = other.run_with_cache(prompt)[1]
    assert all(torch.equal(again[name], value) for name, value in cache.items())


def test_weights_made_in_inference_mode_are_refused(clip):
    with torch.inference_mode():
        config = clip.hf_model.config
        model = type(clip.hf_model)(config)
    other = HookedVLM(model, clip.processor)
    other.run("Q:Greece")
    with pytest.raises(ModelError, match="Load it outside"):
        other.run("Q:Greece", grad=True)


def test_a_small_probability_has_its_gradient_in_float16(clip, pair):
    """Its derivative by the logits is less than the least number of float16."""
    half = HookedVLM(copy.deepcopy(clip.hf_model).half(), clip.processor)
    wide = HookedVLM(copy.deepcopy(half.hf_model).float(), clip.processor)
    token = int(wide.run(pair.clean)[0, -1].argmin())
    least = Custom(lambda x: 1e-4 * x.float().softmax(-1)[token], differentiable=True)
    for point in ("projector.hook_out", P):
        names = [point]
        found, true = (
            gradients(vlm, pair.clean, names, bound_to(vlm, pair.clean, least))[0][point]
            for vlm in (half, wide)
        )
        assert float(true.abs().max()) < 6e-8
        assert float((found - true).norm() / true.norm()) < 0.03


def test_a_model_that_records_nothing_is_told(clip, pair):
    plain = copy.deepcopy(clip.hf_model)
    plain.forward = torch.no_grad()(plain.forward)
    vlm = HookedVLM(plain, clip.processor)
    for ask in (lambda: vlm.attribute(pair.clean), lambda: pair.attribute(vlm, P)):
        with pytest.raises(ModelError, match="own code keeps them"):
            ask()

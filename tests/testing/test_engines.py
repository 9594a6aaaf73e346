"""Checks of replay, of pictures apart and of half precision fail where these are wrong."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
from families.every import FAMILIES

from vlm_lens import HookedVLM
from vlm_lens.engine import baseline
from vlm_lens.prompts.maker import PromptMaker
from vlm_lens.testing import conformance

REPLAY, PICTURES, HALF = (
    "variants equal runs in full",
    "pictures stand on their own",
    "half precision equals Hugging Face",
)


@pytest.fixture(scope="module", params=["qwen2_vl", "fuyu", "llava_next"])
def vlm(request, tmp_path_factory) -> HookedVLM:
    return HookedVLM.from_pretrained(FAMILIES[request.param].save_to(tmp_path_factory.mktemp("m")))


@pytest.fixture
def prompt(vlm):
    sizes = [(40, 32)] * 3
    pictures = [tiny.noise_picture(n, size) for n, size in enumerate(sizes)]
    return vlm.prompt(["Q:<image>A:", "<image>x<image>A:"], [pictures[:1], pictures[1:]])


def outcome(vlm, prompt, check):
    return conformance(vlm, prompt, only=(check,)).results[0]


def test_what_is_right_passes(vlm, prompt):
    for check in (REPLAY, PICTURES, HALF):
        assert outcome(vlm, prompt, check).outcome == "passed"


def test_pictures_taken_apart_wrongly(vlm, prompt, monkeypatch):
    right = type(vlm.family).select_pictures

    def other(self, *args):
        return right(self, *args[:-1], [0] * len(args[-1]))

    monkeypatch.setattr(type(vlm.family), "select_pictures", other)
    assert outcome(vlm, prompt, PICTURES).outcome == "failed"
    assert outcome(vlm, prompt, REPLAY).outcome == "failed"


def test_pictures_counted_wrongly(vlm, prompt):
    layouts = list(prompt.layouts)
    layouts[1] = dataclasses.replace(layouts[1], images=layouts[1].images * 2)
    wrong = dataclasses.replace(prompt, layouts=tuple(layouts))
    assert "4 pictures in row 1, which was given 2" in outcome(vlm, wrong, PICTURES).detail


def test_a_replay_that_is_off(vlm, prompt, monkeypatch):
    call = baseline.Baseline.prefix

    def shifted(self, layer, start, owners):
        keys, values = call(self, layer, start, owners)
        return keys, values * 1.01

    monkeypatch.setattr(baseline.Baseline, "prefix", shifted)
    result = outcome(vlm, prompt, REPLAY)
    assert result.outcome == "failed"
    assert "replayed is not what it is in full" in result.detail


def test_inputs_that_keep_their_dtype(vlm, prompt, monkeypatch):
    """Some models cast pixels themselves, some do not."""
    made = PromptMaker.from_text

    def single(self, *args, **kwargs):
        prompt = made(self, *args, **kwargs)
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in prompt.inputs.items()}
        return dataclasses.replace(prompt, inputs=tensors)

    monkeypatch.setattr(PromptMaker, "from_text", single)
    result = outcome(vlm, prompt, HALF)
    if vlm.family.name == "fuyu":
        assert "runs in bfloat16, and here: mat1 and mat2" in result.detail

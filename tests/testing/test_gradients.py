"""The check of gradients passes where they are right, and fails where one is cut or doubled."""

from __future__ import annotations

import pytest
import tiny
import torch
from families.every import VLMS

from vlm_lens import HookedVLM
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.points.sites import HeadView
from vlm_lens.testing import conformance
from vlm_lens.testing.checks import Subject
from vlm_lens.testing.gradients import TOLERANCE, in_double, worst_gradient

CHECK = "gradients equal finite differences"


QUICK = ("qwen2_vl", "blip2", "fuyu")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in VLMS]
)
def test_gradients_at_every_point_of_every_family(name, attention, tmp_path):
    if VLMS[name].also and attention == "eager" and not ("moe" in name or "gpt_oss" in name):
        pytest.skip("a second model of a family")
    if "gpt_oss" in name and attention == "sdpa":
        pytest.skip("sinks in its softmax, which transformers computes in eager attention only")
    folder = VLMS[name].save_to(tmp_path)
    vlm = HookedVLM.from_pretrained(folder, attn_implementation=attention)
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(1, (24, 16))])
    report = conformance(vlm, prompt, only=(CHECK,))
    assert [r.outcome for r in report.results] == ["passed"], str(report)
    assert set(Subject(vlm, prompt).names) == set(vlm.points())


def test_a_padded_batch_with_several_pictures(load):
    vlm = load("clip-llama")
    texts = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Peru\nA:"]
    prompt = vlm.prompt(texts, [tiny.noise_picture(i) for i in range(2)])
    worst = worst_gradient(in_double(vlm), prompt, Subject(vlm, prompt).names)
    assert max(worst.values()) < TOLERANCE
    assert len(worst) == len(vlm.points())


@pytest.mark.parametrize("factor", [0.0, 1.001])
def test_a_wrong_gradient_is_found(load, monkeypatch, factor):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return factor * gradient

    join = HeadView.join
    monkeypatch.setattr(HeadView, "join", lambda self, v, x: join(self, Wrong.apply(v), x))
    vlm = load("llama")
    prompt = vlm.prompt("Q:Greece\nA:")
    report = conformance(vlm, prompt, only=(CHECK,))
    assert "the gradient at blocks.1.attn.hook_z is off by" in report.failures[0].detail
    worst = worst_gradient(in_double(vlm), prompt, ["blocks.0.attn.hook_z", "hook_embed"])
    assert worst["blocks.0.attn.hook_z"] > 1e-4


def test_the_model_keeps_its_dtype_and_no_gradients(load):
    vlm = load("llama")
    conformance(vlm, "Q:Greece\nA:", only=(CHECK,))
    assert vlm.dtype == torch.float32
    assert all(p.grad is None for p in vlm.hf_model.parameters())
    with HookedRun(vlm.hf_model, vlm.architecture.points, {}):
        pass

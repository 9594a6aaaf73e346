"""The Jacobian lens against Jacobians of plain transformers, entry by entry."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import HookedVLM, LogitLens
from vlm_lens.lenses import JacobianLens, LensError
from vlm_lens.prompts.template import RawPrompt

POINT = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def prompts():
    return ["Q:Greece\nA:", "red", RawPrompt("Q:<image>\nA:", [tiny.noise_picture(1)])]


@pytest.fixture(scope="module")
def fitted(load, prompts):
    return JacobianLens.fit(load("clip-llama"), prompts, kinds="each", batch_size=2, progress=False)


def jacobian(vlm, inputs):
    """d h_last[t'] / d h_0[t] of one prompt, `[t', d, t, d]`, with hooks on plain transformers."""
    first, _ = tiny.where(vlm.hf_model, POINT)
    last, _ = tiny.where(vlm.hf_model, "blocks.1.hook_resid_post")
    held = {}

    def cut(module, args, out):
        held["source"] = tiny.first(out).detach().requires_grad_()
        return (held["source"], *out[1:]) if isinstance(out, tuple) else held["source"]

    def keep(module, args, out):
        held["target"] = tiny.first(out)

    hooks = [first.register_forward_hook(cut), last.register_forward_hook(keep)]
    try:
        vlm.hf_model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    rows = [
        torch.autograd.grad(value, held["source"], retain_graph=True)[0][0]
        for value in held["target"][0].reshape(-1)
    ]
    length, width = held["target"][0].shape
    return torch.stack(rows).unflatten(0, (length, width))


def test_is_the_mean_over_sources_of_the_sum_over_targets(clip, prompts, fitted):
    found = {"text": [], "image": []}
    for one in prompts:
        prompt = clip.prompt(one)
        whole = jacobian(clip, prompt.inputs)
        for t, kind in enumerate(prompt.layout.kinds):
            assert not whole[:t, :, t].any()  # what comes before it does not see a source
            summed = sum(whole[later, :, t] for later in range(t, len(prompt.layout)))
            found["image" if kind.startswith("image") else "text"].append(summed)
    for group, parts in found.items():
        exact = torch.stack(parts).mean(0)
        mine = fitted.weights[f"{POINT}/{group}"].data
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-4)
        assert fitted.about["sources"][group] == len(parts)
    pooled = JacobianLens.fit(clip, prompts, progress=False).weights[f"{POINT}/all"].data
    exact = torch.stack(found["text"] + found["image"]).mean(0)
    torch.testing.assert_close(pooled, exact, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_reads_the_state_through_it(clip, prompts, fitted):
    prompt = clip.prompt(prompts[2])
    seen = fitted.run(clip, prompt).rows[0]
    hidden = tiny.plain_read(clip.hf_model, prompt.inputs, [POINT])[POINT][0]
    norm, _ = tiny.where(clip.hf_model, "ln_final.hook_normalized")
    for i, kind in enumerate(prompt.layout.kinds):
        matrix = fitted.weights[f"{POINT}/{'image' if kind.startswith('image') else 'text'}"].data
        probs = clip.hf_model.lm_head(norm(matrix @ hidden[i])).softmax(-1)
        torch.testing.assert_close(
            seen.top_probs[0, i], probs.topk(10).values, rtol=1e-4, atol=1e-6
        )
    assert torch.equal(seen.top_probs[-1], LogitLens().run(clip, prompt).rows[0].top_probs[-1])


def test_weights_that_are_frozen_and_a_killed_fit_give_the_same(
    clip, prompts, fitted, tmp_path, monkeypatch
):
    from vlm_lens.lenses import jacobian as module

    frozen = tiny.build("clip-llama")
    frozen.load_state_dict(clip.hf_model.state_dict())
    frozen = HookedVLM(frozen.eval().requires_grad_(False), clip.processor)
    add, calls = module._add, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*args)

    options = {"kinds": "each", "batch_size": 2, "progress": False, "save": tmp_path / "fit"}
    monkeypatch.setattr(module, "_add", dies)
    with pytest.raises(KeyboardInterrupt):
        JacobianLens.fit(frozen, prompts, **options)
    again = JacobianLens.fit(frozen, prompts, **options)
    assert len(calls) == 3  # of two batches, one was done
    assert again.weights == fitted.weights
    again.save(tmp_path / "lens")
    assert JacobianLens.load(tmp_path / "lens") == again
    assert all(p.grad is None for p in clip.hf_model.parameters())


def test_what_cannot_be_fitted_is_refused(clip, prompts, no_forward, load, fitted):
    no_forward(clip)
    with pytest.raises(LensError, match="at least one prompt"):
        JacobianLens.fit(clip, [])
    with pytest.raises(LensError, match="needs no map"):
        JacobianLens.fit(clip, prompts, points="blocks.1.hook_resid_post")
    with pytest.raises(LensError, match="kinds is None"):
        JacobianLens.fit(clip, prompts, kinds="both")
    with pytest.raises(LensError, match="output layer"):
        fitted.run(load("siglip-mistral"), "Q:Greece\nA:")

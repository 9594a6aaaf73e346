"""Resampling, against patching with what other prompts' runs read."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import ActivationPatch, Generated, Images, Last, Patches, Resample, Samples, Text
from vlm_lens.errors import InterventionError, VectorError

P, Z = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"
TEXTS = ["Q:<image>\nA:", "Q:Peru <image>\nA:"]


@pytest.fixture(scope="module")
def case(load):
    vlm = load("clip-llama")
    others = [vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(n)]) for n in range(5, 9)]
    return vlm, others, Samples.of(vlm, others, [P, Z, "hook_merged"], at=Images())


def patched(vlm, prompt, other, point, at, heads=None):
    _, cache = vlm.run_with_cache(other, names_filter=point)
    return vlm.run(prompt, interventions=ActivationPatch(point, at, cache, heads=heads))


def test_each_sample_is_a_patch_from_that_prompt(case):
    vlm, others, samples = case
    assert len(samples) == 4
    prompt = vlm.prompt(TEXTS[1], [tiny.noise_picture(1)])
    for point, heads in ((P, None), (Z, (1,)), ("hook_merged", None)):
        edit = Resample(point, Images(), samples, heads=heads)
        swept = vlm.sweep(prompt, edit.each_sample(), measure="logits", progress=False)
        assert [r["sample"] for r in swept.records] == [0, 1, 2, 3]
        assert swept.engines == {"replay": 4}
        for other, logits in zip(others, swept.stack("logits"), strict=True):
            expected = patched(vlm, prompt, other, point, Images(), heads)[0, -1]
            torch.testing.assert_close(logits.reshape(-1), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_draw_by_the_seed_and_points_draw_together(case):
    vlm, others, samples = case
    batch = vlm.prompt(TEXTS, [[tiny.noise_picture(1)], [tiny.noise_picture(2)]])
    draws = {Resample(P, Images(), samples, seed=s).drawn(4, 2) for s in range(40)}
    assert len(draws) > 6 and all(len(set(d)) == 2 for d in draws)
    edit = Resample([P, Z], Images(), samples, seed=3)
    drawn = edit.drawn(4, 2)
    found = vlm.run(batch, interventions=edit)
    singles = [vlm.prompt(t, [tiny.noise_picture(n + 1)]) for n, t in enumerate(TEXTS)]
    for row, (single, which) in enumerate(zip(singles, drawn, strict=True)):
        _, cache = vlm.run_with_cache(others[which], names_filter=[P, Z])
        alone = vlm.run(single, interventions=ActivationPatch([P, Z], Images(), cache))
        torch.testing.assert_close(found[row, -1], alone[0, -1], rtol=1e-4, atol=1e-4)
    assert torch.equal(found, vlm.run(batch, interventions=edit))
    chosen = Resample([P, Z], Images(), samples, which=drawn)
    assert torch.equal(found, vlm.run(batch, interventions=chosen))


def test_from_a_cache_and_in_generation_and_files(case, tmp_path):
    vlm, _, samples = case
    texts = ["Q:Greece\nA:", "Q:Peru\nA:"]
    _, cache = vlm.run_with_cache(texts, names_filter=P)
    prompt = vlm.prompt("Q:Japan\nA:")
    edit = Resample(P, Last(), cache, which=1)
    expected = patched(vlm, prompt, texts[1], P, Last())
    torch.testing.assert_close(vlm.run(prompt, interventions=edit), expected, rtol=1e-5, atol=1e-5)
    new = vlm.generate(prompt, max_new_tokens=4, interventions=edit).tokens
    plain = ActivationPatch(P, Last(), vlm.run_with_cache(texts[1], names_filter=P)[1])
    assert torch.equal(new, vlm.generate(prompt, max_new_tokens=4, interventions=plain).tokens)
    for one in (edit, Resample(P, Images(), samples, seed=7)):
        one.save(tmp_path / "one")
        assert Resample.load(tmp_path / "one") == one
    samples.save(tmp_path / "samples")
    assert Samples.load(tmp_path / "samples") == samples


def test_what_is_refused(case, load):
    vlm, others, samples = case
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(1)])
    for edit, says in (
        (Resample(P, Patches(0, rows=0), samples), "have 16 positions .* holds 4"),
        (Resample(P, Images(), samples, which=9), "4 other prompts; 9"),
        (Resample(P, Images(), samples, which=(0, 1)), "names 2 prompts; this prompt has 1"),
        (Resample(P, Last(), torch.zeros(32)), r"\[prompts, positions, ...\]; it got \[32\]"),
    ):
        with pytest.raises(InterventionError, match=says):
            vlm.run(prompt, interventions=edit)
    with pytest.raises(InterventionError, match="no counterpart"):
        Resample(P, Last() + Generated(), samples)
    with pytest.raises(VectorError, match="not read at blocks.1.hook_resid_post"):
        vlm.run(prompt, interventions=Resample("blocks.1.hook_resid_post", Images(), samples))
    with pytest.raises(VectorError, match="another model|other weights|read on"):
        load("clip-qwen2").run("Q:", interventions=Resample(P, Last(), samples))
    for prompts, options, says in (
        ([], {"at": Last()}, "at least one prompt"),
        (others, {"at": Last(), "points": "blocks.0.attn.hook_pattern"}, "other keys"),
        (["Q:Peru", "Q:Greece and Peru"], {"at": Text()}, "places that correspond"),
    ):
        with pytest.raises(VectorError, match=says):
            Samples.of(vlm, prompts, options.pop("points", P), **options)

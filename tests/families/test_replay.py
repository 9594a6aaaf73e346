"""Replay equals the full forward on every family, or the family says why it cannot be."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch
from differential import (
    assert_captured_alike,
    assert_same,
    captured,
    compare,
    random_intervention,
    random_prompt,
)

from vlm_lens import HookedVLM, Scale, Steer
from vlm_lens.engine import joint
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.recorder import record
from vlm_lens.engine.start import start_of
from vlm_lens.interventions import Target
from vlm_lens.layout.positions import At
from vlm_lens.measures import Capture, GeneratedTokens
from vlm_lens.sweep import runner as run_module

N_SEEDS, N_TOWER_SEEDS = 10, 6


def least(vlm: HookedVLM) -> int:
    """How many pictures every row of a prompt must have."""
    return vlm.family.name == "blip-2"


def test_replay_equals_full_forward(family):
    reason = family.family.not_replayable
    for seed in range(2 if reason else N_SEEDS):
        replayed = compare(family, seed, pictures=True, least=least(family))
        assert replayed == (0 if reason else 8), seed
    if reason:
        check_refused(family, reason, "top1")


def test_replay_from_tower_and_projector_equals_full_forward(family):
    reason = family.family.not_replayable or family.family.not_separable
    for seed in range(1 if reason else N_TOWER_SEEDS):
        replayed = compare(family, seed, pictures=True, tower=True)
        assert replayed == (0 if reason else 8), seed


def test_few_variants_in_the_run_itself(family, monkeypatch):
    """One forward pass for all, but where positions see later ones or features are added."""
    if family.family.not_replayable:
        return
    done = []
    inner = run_module.run_jointly

    def noted(*args, **kwargs):
        found = inner(*args, **kwargs)
        done.append(1)
        return found

    monkeypatch.setattr(run_module, "run_jointly", noted)
    points = ("hook_resid_pre", "attn.hook_z", "hook_mlp_out", "hook_resid_post")
    points = [f"blocks.{i}.{p}" for i in range(family.cfg.n_layers) for p in points]
    points = [p for p in points if p in family.points()]
    for seed in range(2):
        source = random.Random(seed)
        prompt = random_prompt(family, source, pictures=True, least=least(family))
        edits = [Scale(p, At((-source.randint(1, 2),)), -1.5) for p in points]
        result = family.sweep(prompt, edits, measure="logits", progress=False)
        full = family.sweep(prompt, edits, measure="logits", engine="full", progress=False)
        assert_same(result.stack("logits"), full.stack("logits"))
        assert_same(result.baseline[0]["logits"][None], full.baseline[0]["logits"][None])
    refused = set(joint._refused.get(family.hf_model, {}).values())
    assert refused <= {"some positions see later ones"}  # within a picture, or a whole prompt
    assert len(done) == 2 or refused or family.family.adds_between_blocks


def test_a_llava_whose_tower_packs_pictures(made):
    vlm = made("llava-pixtral")
    for seed in range(4):
        assert compare(vlm, seed, pictures=True, tower=True) == 8, seed
    pictures = [tiny.noise_picture(i, (40, 36)) for i in (0, 1, 0)]
    prompt = vlm.prompt("<image>A:<image>B:<image>C:", pictures)
    with vlm.reusing_pictures():
        shared = vlm.run(prompt)
    assert_same(shared, vlm.run(prompt))


def test_captured_activations_equal_those_of_full_runs(family):
    if family.family.not_replayable:
        check_refused(family, family.family.not_replayable, Capture("blocks.0.hook_resid_pre", -1))
        return
    source, tower = random.Random(1), not family.family.not_separable
    prompt = random_prompt(family, source, pictures=True, least=1)
    variants = [random_intervention(family, prompt, source, tower=tower) for _ in range(6)]
    points = family.points().values()
    text = tuple(p.name for p in points if p.space == "text" and p.name != "hook_embed")
    assert_captured_alike(*captured(family, prompt, variants, text, (-1, -3)))
    before = tuple(p.name for p in points if p.space != "text" and not p.on_demand)
    assert_captured_alike(*captured(family, prompt, variants, before, (1, 0)))


def test_tokens_generated_after_a_replay(family):
    reason = family.family.not_replayable or family.family.not_continued
    if reason:
        check_refused(family, reason, GeneratedTokens(2))
        return
    for seed in range(4):
        source = random.Random(seed)
        prompt = random_prompt(family, source, pictures=True)
        variants = [random_intervention(family, prompt, source) for _ in range(5)]
        replayed, full = (
            family.sweep(
                prompt, variants, engine=engine, measure=GeneratedTokens(4), progress=False
            ).records
            for engine in ("replay", "full")
        )
        for one, two in zip(replayed, full, strict=True):
            n = min(len(one["tokens"]), len(two["tokens"]))
            assert one["tokens"][:n] == two["tokens"][:n], seed


def check_refused(vlm: HookedVLM, reason: str, measure: Any) -> None:
    source = random.Random(0)
    prompt = random_prompt(vlm, source, pictures=True, least=1)
    edit = random_intervention(vlm, prompt, source)
    options = {"measure": measure, "progress": False}
    result = vlm.sweep(prompt, [edit], **options)
    assert result.engines == {"full": 1} and result.reasons == {reason: 1}
    with pytest.raises(NotReplayable, match=reason[:20]):
        vlm.sweep(prompt, [edit], engine="replay", **options)


@pytest.mark.parametrize("name", ("gemma3", "paligemma"))
def test_a_change_in_a_picture_reaches_back(name, made):
    """To the picture's first position in Gemma 3, to the whole prompt in PaliGemma."""
    vlm = made(name)
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(0)])
    positions = prompt.layout.image[0].text.grids[0].positions
    edit = Steer("blocks.0.hook_resid_post", At((positions[-1],)), torch.randn(32))
    baseline = record(vlm.hf_model, vlm.architecture, prompt.inputs)
    start = start_of(edit.lower(Target(vlm.points(), prompt.layouts, lambda: vlm.facts)), baseline)
    assert start.position == (0 if name == "paligemma" else positions[0])
    after = positions[-1] + 1
    assert baseline.reached[after] == (0 if name == "paligemma" else after)
    result = vlm.sweep(prompt, [edit], measure="logits", engine="replay", progress=False)
    assert_same(result.stack("logits")[0], vlm.run(prompt, interventions=edit)[0, -1:])

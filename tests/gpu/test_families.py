"""On a GPU every family reads, changes, sweeps and generates what it does on the CPU."""

from __future__ import annotations

import pytest
import torch
from families import bench

from gpu.same import same
from vlm_lens import (
    Ablate,
    ActivationPatch,
    AttentionEdit,
    AttentionKnockout,
    Clamp,
    Generated,
    HookedVLM,
    Images,
    Interchange,
    Intervention,
    Last,
    Mean,
    Patches,
    Project,
    ProjectAway,
    Remove,
    Resample,
    Samples,
    Scale,
    Steer,
    TaskVector,
    Text,
    VLMLensError,
)
from vlm_lens.interventions.base import Target
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.testing import conformance

RESID, Z, EMBED = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.0.hook_resid_pre"
FAMILIES = (
    "llava-clip", "idefics2", "idefics3", "qwen2_5_vl", "qwen3_vl", "gemma3", "mllama", "fuyu",
    "chameleon", "qwen3_5", "llama",
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, twins):
    """The model on both devices."""
    return twins(request.param)


def asked(vlm: HookedVLM, shift: int = 0) -> Prompt:
    if not vlm.architecture.image_token_id:
        return vlm.prompt(["Q:Peru\nA:", "longer text: Lima\nA:"][shift:])
    pictures = [bench.noise((64, 48), seed=n + shift) for n in range(2)]
    return vlm.prompt(["Q:<image>\nA:", "a longer text:<image>\nA:"], [[p] for p in pictures])


def one(vlm: HookedVLM, seed: int = 0) -> Prompt:
    if not vlm.architecture.image_token_id:
        return vlm.prompt(("Q:Peru\nA:", "Q:Lima\nA:")[seed])
    return vlm.prompt("Q:<image>\nA:", [bench.noise((64, 48), seed=seed)])


def test_every_point(both):
    read = []
    for vlm in both:
        prompt = asked(vlm)
        names = [n for n, p in vlm.points().items()
                 if not p.on_demand or n.endswith("hook_pattern")]  # fmt: skip
        logits, cache = vlm.run_with_cache(prompt, names_filter=names)
        read.append({"logits": logits, **{name: cache[name] for name in cache}})
    assert len(read[0]) > 20
    same(*read)
    assert {x.device for x in read[1].values()} == both.devices
    _, held = both.far.run_with_cache(asked(both.far), device="cpu")
    same({n: held[n] for n in held}, {n: read[1][n] for n in held})


def changes(vlm: HookedVLM, device: torch.device) -> list:
    """An intervention of every kind, its tensors on a device."""
    d, other = vlm.cfg.d_model, one(vlm, 1)
    draw = torch.Generator().manual_seed(0)
    vector, basis = (torch.randn(s, generator=draw).to(device) for s in ((d,), (2, d)))
    _, cache = vlm.run_with_cache(other, names_filter=[RESID], device=str(device))
    found = [
        ActivationPatch(RESID, Last(), vector),
        ActivationPatch(RESID, Last(), cache),
        Steer(RESID, Text(), vector, 0.5),
        Ablate(RESID, [1, 2], by="zero"),
        Ablate(RESID, Last(), by="prompt_mean"),
        Scale(Z, Last(), 0.3, heads=[0, 2]),
        Clamp(RESID, Text(), low=-0.1, high=0.4),
        Remove(RESID, Last(), directions=basis),
        Project(RESID, Last(), directions=basis),
        ProjectAway(RESID, Text(), direction=vector, gamma=0.7),
        Interchange(RESID, Last(), basis=basis, source=cache),
        Resample(RESID, Last(), Samples.of(vlm, [other], RESID, at=Last())),
        Ablate(RESID, Last(), by=Mean.of(vlm, [other, one(vlm)], RESID, at=Last())),
        AttentionKnockout(Last(), [0, 1]),
        AttentionEdit(Last(), [0, 1], scale=2.0),
    ]
    points = vlm.points()
    if "projector.hook_out" in points:
        found += [
            Scale("projector.hook_out", Images(), 0.5),
            Ablate("projector.hook_out", Images(), by="picture_mean"),
        ]
    if "vision.blocks.0.hook_resid_post" in points:
        found += [
            Ablate("vision.blocks.0.hook_resid_post", Patches(0)),
            Ablate("vision.blocks.1.hook_mlp_out", Patches(0, rows=0)),
        ]
    return [f for f in found if fits(vlm, f)]


def fits(vlm: HookedVLM, change: Intervention) -> bool:
    """Whether the model has what it changes."""
    try:
        change.lower(Target(vlm.points(), one(vlm).layouts, lambda: vlm.facts))
    except VLMLensError:
        return False
    return True


def test_every_kind_of_change(both):
    near = changes(both.near, torch.device("cpu"))
    assert len(near) > 11
    expected = [both.near.run(one(both.near), interventions=c) for c in near]
    for device in (both.far.device, torch.device("cpu")):
        far = changes(both.far, device)
        same(expected, [both.far.run(one(both.far), interventions=c) for c in far], str(device))


def test_sweeps(both):
    found = []
    for vlm in both:
        variants = [c for c in changes(vlm, vlm.device) if not isinstance(c, Interchange)]
        variants += [ActivationPatch(f"blocks.{n}.hook_resid_post", Last(), 0.3) for n in (0, 1)]
        prompt, options = one(vlm), {"measure": "logits", "progress": False}
        swept = vlm.sweep(prompt, variants, **options)
        full = vlm.sweep(prompt, variants, engine="full", **options)
        few = vlm.sweep(prompt, variants, memory=1, **options)
        top = vlm.sweep(prompt, variants, progress=False)
        said = vlm.sweep(prompt, variants[:3], measure="generate", progress=False)
        same(full.stack("logits"), swept.stack("logits"), "replayed")
        same(full.stack("logits"), few.stack("logits"), "one by one")
        found.append((swept, top, said))
    near, far = found
    same(near[0].stack("logits"), far[0].stack("logits"))
    assert near[0].engines == far[0].engines
    same([r["token_id"] for r in near[1].records], [r["token_id"] for r in far[1].records])
    assert str(near[2].records) == str(far[2].records)


def test_generation(both):
    said = []
    for vlm in both:
        vector = torch.ones(vlm.cfg.d_model, device=vlm.device)
        edits = [
            (), Steer(RESID, Generated(), vector), Steer(RESID, Last() + Generated(), vector),
            AttentionKnockout(Last() + Generated(), [0, 1]),
        ]  # fmt: skip
        said.append([vlm.generate(one(vlm), max_new_tokens=4, interventions=e) for e in edits])
        said[-1].append(vlm.generate(asked(vlm), max_new_tokens=3))
    assert [str(s) for s in said[0]] == [str(s) for s in said[1]]


def test_task_vectors(both):
    found = []
    for vlm in both:
        vector = TaskVector.read(vlm, [one(vlm), one(vlm, 1)], at=Last())
        edit = ActivationPatch(RESID, Last(), vector)
        found.append((vector.layer(0), vector.layer(1), vlm.run(one(vlm), interventions=edit)))
    same(*found)


def test_learned_values_get_gradients(both):
    found = []
    for vlm in both:
        vector = torch.zeros(vlm.cfg.d_model, device=vlm.device, requires_grad=True)
        near = torch.zeros(vlm.cfg.d_model, requires_grad=True)  # of the CPU, also in a run there
        for value in (vector, near):
            logits = vlm.run(one(vlm), interventions=Steer(EMBED, Text(), value), grad=True)
            logits[0, -1].log_softmax(-1)[7].backward()
        assert near.grad.device.type == "cpu" and vector.grad.device == vlm.device
        same(vector.grad, near.grad)
        found.append(near.grad)
        vlm.hf_model.zero_grad()
    same(*found)


def test_attribution_attention_and_decomposition(both):
    found = []
    for vlm in both:
        prompt = one(vlm)
        here = {"attention": vlm.attention(prompt)} if "hook_pattern" in str(vlm.points()) else {}
        for method in ("gradient", "ig"):
            here[method] = vlm.attribute(
                prompt, answer=7, to="hook_merged", method=method, steps=3, baseline="zero"
            )
        if RESID in vlm.points():
            here["decompose"] = vlm.decompose(prompt, token=7)
        found.append(here)
    same(*found)


def test_half_precision_and_every_check(both):
    vlm = both.far
    only = ("forward equals Hugging Face", "half precision equals Hugging Face",
            "variants equal runs in full", "pictures stand on their own")  # fmt: skip
    report = conformance(vlm, one(vlm), only=only, cold=True)
    assert report.passed, str(report)

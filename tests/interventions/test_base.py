"""Interventions as values: what they are, how they compose, which shapes they take."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, All, At, Generated, Images, Last, Patches, Steer
from vlm_lens.errors import InterventionError, PointError
from vlm_lens.interventions import Composed, Intervention, Target, compose

P = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"


@pytest.fixture
def batch(clip):
    return clip.prompt(["Q:Greece\nA:", "Q:Peru\nA:", "Q:France\nA:"])


def after(vlm, prompt, edit, name=P):
    return vlm.run_with_cache(prompt, names_filter=name, interventions=edit)[1][name]


MAKERS = [
    lambda: ActivationPatch(P, at=Last(), value=torch.ones(32)),
    lambda: Steer(P, at=Last(), vector=torch.ones(32), scale=2),
    lambda: Ablate(P, at=Last()),
    lambda: Ablate([P, Z], at=[0, 1], by=torch.ones(1), heads=None),
]


@pytest.mark.parametrize("make", MAKERS)
def test_are_frozen_values(make):
    one, two = make(), make()
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1
    assert type(one).__name__ in repr(one)
    assert P in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.at = All()
    assert one != dataclasses.replace(one, at=All())


def test_a_value_given_is_copied():
    value = torch.ones(32)
    patch = ActivationPatch(P, at=Last(), value=value)
    value.zero_()
    assert patch.value.data.sum() == 32
    assert patch != ActivationPatch(P, at=Last(), value=value)


def test_ways_to_write_the_same():
    assert ActivationPatch(("resid_post", 1), Last(), 1.0) == ActivationPatch(P, Last(), 1)
    assert Ablate([P], at=0) == Ablate(P, at=At((0,)))
    assert Ablate(Z, at=Last(), heads=1) == Ablate(Z, at=Last(), heads=[1])
    assert Steer(P, Last(), 1.0, scale=1) == Steer(P, Last(), torch.tensor(1.0))


def test_composition(clip):
    a, b, c = (make() for make in MAKERS[:3])
    both = a + b
    assert isinstance(both, Composed)
    assert list(both) == [a, b]
    assert (a + b) + c == a + (b + c) == Composed((a, b, c))
    assert len(a + b + c) == 3
    assert repr(both) == f"{a!r} + {b!r}"
    assert compose(None) == compose(()) == Composed(())
    assert compose(a) == compose([a]) == Composed((a,))
    assert compose(x for x in [a + b, c]) == a + b + c
    assert issubclass(Composed, Intervention)
    with pytest.raises(TypeError):
        a + 1


def test_lowering_is_plain(clip, batch):
    target = Target(clip.architecture.points, batch.layouts, lambda: clip.facts)
    edit = Steer("blocks.*.hook_resid_post", at=Last(), vector=torch.ones(32), scale=3)
    ops = edit.lower(target)
    last = batch.length - 1
    assert [op.point for op in ops] == ["blocks.0.hook_resid_post", P]
    for op in ops:
        assert (op.kind, op.rows, op.positions) == ("add", (0, 1, 2), (last,) * 3)
        assert op.heads is None
        assert op.since is None
        assert torch.equal(op.tensors["value"], torch.full((1, 32), 3.0))
    later = Ablate(Z, at=Generated(), heads=(1, 3)).lower(target)
    assert (later[0].since, later[0].rows, later[0].heads) == (batch.length, (), (1, 3))


def test_a_pattern_of_another_length(clip):
    before = tiny.hook_state(clip.hf_model)
    with pytest.raises(InterventionError, match="3 entries on its last axis"):
        clip.run(
            "Q:Greece\nA:",
            interventions=ActivationPatch(
                "blocks.0.attn.hook_pattern", at=Last(), value=torch.zeros(4, 3)
            ),
        )
    assert tiny.hook_state(clip.hf_model) == before


def test_places_of_pictures(clip):
    pictures = [tiny.noise_picture(i) for i in range(3)]
    prompt = clip.prompt(["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:<image>"], pictures)
    name = "projector.hook_out"
    value = torch.randn(16, 32)
    made = after(clip, prompt, ActivationPatch(name, at=Patches(0), value=value), name)
    plain = after(clip, prompt, None, name)
    assert torch.equal(made[0], value)
    assert torch.equal(made[1], plain[1])  # the first row's second picture
    assert torch.equal(made[2], value)
    made = after(clip, prompt, Ablate(name, at=Images()), name)
    assert torch.equal(made, torch.zeros_like(made))


def test_no_point_is_an_error():
    with pytest.raises(PointError, match="No point was given"):
        Ablate([], at=Last())

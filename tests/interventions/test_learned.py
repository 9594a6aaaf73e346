"""Values that are learned: gradients against finite differences, training, and what is saved."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import (
    ActivationPatch,
    All,
    Images,
    Intervention,
    Last,
    Project,
    Remove,
    Scale,
    Steer,
    VLMLensError,
)
from vlm_lens.interventions import AttentionEdit
from vlm_lens.testing.gradients import _Double, in_double

R = "blocks.0.hook_resid_post"


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EDITS = {
    "patch": (values(0, 32), lambda v: ActivationPatch(R, Last(), v)),
    "patch of one head": (
        values(1, 8), lambda v: ActivationPatch("blocks.1.attn.hook_z", Last(), v, heads=(1,))),
    "patch at pictures": (
        values(2, 32), lambda v: ActivationPatch("projector.hook_out", Images(), v)),
    "steer": (values(3, 32), lambda v: Steer(R, Last(), v, scale=2.0)),
    "strength of steering": (
        values(4, 1)[0], lambda v: Steer(R, Last(), values(3, 32), scale=v)),
    "scale": (values(5, 1)[0], lambda v: Scale("blocks.1.attn.hook_z", All(), v, heads=(0, 2))),
    "project": (values(6, 32), lambda v: Project(R, Last(), v)),
    "project on equally long directions": (
        torch.eye(32, dtype=torch.float64)[:3], lambda v: Project(R, Last(), v)),
    "remove": (values(7, 2, 32), lambda v: Remove(R, All(), v)),
    "strength of a knockout": (
        torch.tensor(0.4, dtype=torch.float64),
        lambda v: AttentionEdit(Last(), Images(), scale=v)),
    "weight of an edge": (
        torch.tensor(0.01, dtype=torch.float64),
        lambda v: AttentionEdit(Last(), Images(), value=v, layers=(1,))),
    "strength without renormalising": (
        torch.tensor(0.4, dtype=torch.float64),
        lambda v: AttentionEdit(Last(), Images(), scale=v, renormalise=False)),
}  # fmt: skip


@pytest.fixture(scope="module")
def double(load):
    return in_double(load("clip-llama"))


def objective(vlm, prompt, edit, grad: bool) -> torch.Tensor:
    with _Double():
        logits = vlm.run(prompt, interventions=edit, grad=grad)
    weights = torch.linspace(-1, 1, logits.shape[-1], dtype=torch.float64)
    return (logits[0, -1] * weights).sum()


@pytest.mark.parametrize("name", EDITS)
def test_the_gradient_of_a_value_is_that_of_finite_differences(name, double, picture):
    start, make = EDITS[name]
    prompt = double.prompt("a<image>b", [picture])
    learned = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(double, prompt, make(learned), True), learned)
    direction = values(99, *start.shape)
    step = 1e-5
    ends = [
        float(objective(double, prompt, make(start + sign * step * direction), False))
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    analytic = float((gradient * direction).sum())
    assert analytic == pytest.approx(numeric, rel=1e-4, abs=1e-6)
    assert abs(analytic) > 1e-9


@pytest.mark.parametrize("name", EDITS)
def test_without_grad_a_learned_value_is_refused_and_named(name, double, picture, tmp_path):
    start, make = EDITS[name]
    prompt = double.prompt("a<image>b", [picture])
    edit = make(start.clone().requires_grad_())
    with pytest.raises(VLMLensError, match="requires grad"):
        double.run(prompt, interventions=edit)
    # saved, it is a plain value
    again = Intervention.load(edit.save(tmp_path / "edit"))
    assert again == make(start) and hash(again) == hash(make(start))
    with torch.no_grad():
        same = objective(double, prompt, again, False)
        assert float(same) == pytest.approx(float(objective(double, prompt, make(start), False)))


def test_a_steering_vector_and_its_strength_are_trained(clip, picture, tmp_path):
    prompt = clip.prompt("a<image>b", [picture])
    vector = torch.zeros(32, requires_grad=True)
    strength = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([vector, strength], lr=0.3)
    losses = []
    for _ in range(12):
        edit = Steer(R, Last(), vector, scale=strength)
        logits = clip.run(prompt, interventions=edit, grad=True)
        loss = -logits[0, -1].log_softmax(-1)[45]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and float(strength.detach()) != 1.0
    edit = Steer(R, Last(), vector, scale=strength)
    plain = Steer.load(edit.save(tmp_path / "trained"))
    assert isinstance(plain.scale, float)
    assert plain.scale == pytest.approx(float(strength.detach()))
    with torch.no_grad():
        mine = clip.run(prompt, interventions=edit)
    torch.testing.assert_close(clip.run(prompt, interventions=plain), mine)


def test_learned_directions_that_depend_on_each_other_are_refused(clip, picture):
    prompt = clip.prompt("a<image>b", [picture])
    row = torch.randn(32)
    edit = Project(R, Last(), torch.stack([row, 2 * row]).requires_grad_())
    with pytest.raises(VLMLensError, match="span 1 dimensions only"):
        clip.run(prompt, interventions=edit, grad=True)

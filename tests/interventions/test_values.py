"""Values that are being learned: they get their gradient, or the run is refused."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, All, At, Images, Last, Steer
from vlm_lens.errors import InterventionError
from vlm_lens.interventions import Intervention
from vlm_lens.serial import FrozenTensor

P = "blocks.0.hook_resid_post"
TEXT = "Q:<image>\nA:"


def prompts(vlm):
    return vlm.prompt(TEXT, [tiny.noise_picture(3)])


MAKERS = [
    lambda v: Steer(P, Last(), v, scale=0.5),
    lambda v: ActivationPatch(P, All(), v),
    lambda v: Ablate("projector.hook_out", Images(), by=v),
    lambda v: ActivationPatch("blocks.1.attn.hook_z", At((1, -1)), v.view(4, 8), heads=(1, 3)),
    lambda v: Steer("blocks.0.attn.hook_attn_scores", Last(), v[:21] * 0.1, heads=2),
]


@pytest.mark.parametrize("number", range(len(MAKERS)))
def test_a_learned_value_gets_its_gradient(clip, number):
    """Against a finite difference along the gradient itself."""
    prompt, make = prompts(clip), MAKERS[number]
    assert prompt.length == 21
    value = torch.nn.Parameter(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    edit = make(value)
    clip.run(prompt, interventions=edit, grad=True)[0, -1].square().sum().backward()
    gradient = value.grad
    assert gradient.norm() > 0
    step = 2e-2 * gradient / gradient.norm()
    with torch.no_grad():
        ends = [
            clip.run(prompt, interventions=make(value + sign * step))[0, -1].double().square().sum()
            for sign in (1, -1)
        ]
    slope = float(ends[0] - ends[1]) / 2
    assert slope == pytest.approx(float((gradient * step).sum()), rel=5e-3)


def test_twenty_steps_of_adam_lower_the_loss(clip):
    prompt = prompts(clip)
    vector = torch.nn.Parameter(torch.zeros(32))
    steer = Steer(P, at=Last(), vector=vector)  # made once, and trained
    optimizer = torch.optim.Adam([vector], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -clip.run(prompt, interventions=steer, grad=True)[0, -1].log_softmax(-1)[7]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    assert clip.hf_model.lm_head.weight.grad is not None  # the model's own weights get theirs too
    clip.hf_model.zero_grad()


def test_a_learned_value_is_its_content_when_compared_and_saved(clip, tmp_path):
    vector = torch.nn.Parameter(torch.ones(32))
    steer = Steer(P, at=Last(), vector=vector)
    plain = Steer(P, at=Last(), vector=torch.ones(32))
    assert steer == plain
    assert hash(steer) == hash(plain)
    assert "learned tensor[32]" in repr(steer)
    with torch.no_grad():
        vector.mul_(2)
    assert steer != plain
    steer.save(tmp_path / "steer")
    loaded = Intervention.load(tmp_path / "steer")
    assert loaded == steer
    assert type(loaded.vector) is FrozenTensor
    with torch.no_grad():
        assert torch.equal(
            clip.run("Q:", interventions=steer), clip.run("Q:", interventions=loaded)
        )


def test_a_learned_value_in_a_run_without_gradients_is_refused(clip, no_forward):
    vector = torch.nn.Parameter(torch.ones(32))
    steer = Steer(P, at=Last(), vector=vector)
    expected = clip.run("Q:", interventions=Steer(P, at=Last(), vector=vector.detach()))
    with torch.no_grad():  # whoever says so uses it as it is
        assert torch.equal(clip.run("Q:", interventions=steer), expected)
        last = clip.run("Q:", interventions=steer, last_logits=1)
    assert clip.generate("Q:", max_new_tokens=2, interventions=steer).tokens.shape[1] <= 2
    swept = clip.sweep("Q:", [steer], measure="logits", engine="full", progress=False)
    assert torch.equal(swept.stack("logits")[0], last[:, -1])
    no_forward(clip)
    for ask in (
        lambda: clip.run("Q:", interventions=steer),
        lambda: clip.run_with_cache("Q:", interventions=Ablate(P, Last()) + steer),
        lambda: clip.run_with_hooks("Q:", interventions=[steer]),
    ):
        with pytest.raises(InterventionError, match="pass grad=True"):
            ask()


def test_gradients_flow_from_one_run_into_another(clip):
    """What is patched from a cache of a run with gradients carries that run's graph."""
    source, target = prompts(clip), clip.prompt(TEXT, [tiny.noise_picture(4)])
    _, cache = clip.run_with_cache(source, names_filter=[P, "hook_merged"], grad=True)
    patch = ActivationPatch(P, at=Last(), value=cache)
    logits = clip.run(target, interventions=patch, grad=True)
    (gradient,) = torch.autograd.grad(logits[0, -1, 5], cache["hook_merged"])
    assert gradient[0, -1].norm() > 0
    assert torch.equal(clip.run(target, interventions=patch), logits.detach())

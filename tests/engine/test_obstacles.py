"""What keeps hooks from acting is named before a run, or as soon as it shows."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from vlm_lens import Ablate, HookedVLM, Last
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.errors import ModelError, PointError

P = "blocks.1.hook_resid_post"


@pytest.fixture
def fresh(load):
    """A copy of the tiny LLaVA that a test may spoil."""
    vlm = load("clip-llama")
    return HookedVLM(copy.deepcopy(vlm.hf_model), vlm.processor)


def asks(vlm):
    """Every way to ask for a point."""
    yield lambda: vlm.run_with_cache("Q:Greece", names_filter=P)
    yield lambda: vlm.run_with_hooks("Q:Greece", fwd_hooks=[(P, lambda x, hook: None)])
    yield lambda: vlm.run("Q:Greece", interventions=Ablate(P, at=Last()))
    yield lambda: vlm.generate(
        "Q:Greece", max_new_tokens=2, interventions=Ablate("blocks.*.attn.hook_pattern", at=Last())
    )


@pytest.mark.parametrize("part", ["", "model.language_model", "model.language_model.layers.1"])
def test_compiled_modules_are_named(fresh, part):
    plain = fresh.run("Q:Greece")
    fresh.hf_model.get_submodule(part).compile(backend="eager")
    for ask in asks(fresh):
        with pytest.raises(ModelError, match=f"{part or 'The model'} is compiled"):
            ask()
    assert torch.equal(fresh.run("Q:Greece"), plain)  # a run without hooks is the model's own


def test_a_compiled_wrapper_is_named(fresh):
    layers = fresh.hf_model.model.language_model.layers
    layers[1] = torch.compile(layers[1], backend="eager")
    with pytest.raises(ModelError, match="layers.1 is compiled"):
        fresh.run_with_cache("Q:Greece", names_filter=P)
    other = fresh.run_with_cache("Q:Greece", names_filter="blocks.0.hook_resid_pre")[1]
    assert len(other) == 1


def test_what_does_not_fire_is_an_error(fresh):
    mlp = fresh.hf_model.model.language_model.layers[1].mlp
    fresh.hf_model.model.language_model.layers[1].forward = lambda x, **kwargs: x
    names = ["blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"]
    with pytest.raises(PointError, match="hook_z did not fire in this run, nor did 1 others of"):
        fresh.run_with_cache("Q:Greece", names_filter=names)
    with pytest.raises(PointError, match="blocks.1.hook_mlp_out did not fire"):
        fresh.run_with_hooks("Q:Greece", fwd_hooks=[(names[0], lambda x, hook: None)])
    with pytest.raises(PointError, match="did not fire"), fresh.hooks([("*", lambda x, hook: x)]):
        fresh.generate("Q:Greece", max_new_tokens=2)
    read = fresh.run_with_cache("Q:Greece", names_filter="blocks.*.hook_resid_post")[1]
    assert len(read) == 2
    assert not mlp._forward_hooks


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused(fresh, reentrant):
    model = fresh.hf_model
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    picture = tiny.noise_picture()
    with torch.no_grad():
        plain = fresh.run("<image>A:", [picture])
    model.train()
    for ask in (
        lambda: fresh.run_with_cache("<image>A:", [picture], names_filter=P, grad=True),
        lambda: fresh.run("<image>A:", [picture], interventions=Ablate(P, Last()), grad=True),
    ):
        with pytest.raises(ModelError, match="gradient_checkpointing_disable"):
            ask()
    # without hooks there is nothing to lose, nor without gradients
    fresh.run("<image>A:", [picture], grad=True).sum().backward()
    assert torch.equal(fresh.run_with_cache("<image>A:", [picture], names_filter=P)[0], plain)
    model.eval()
    logits, cache = fresh.run_with_cache("<image>A:", [picture], names_filter=P, grad=True)
    assert torch.autograd.grad(logits.sum(), cache[P])[0].abs().sum() > 0


def test_dropout_in_training_mode_is_said(fresh, recwarn):
    """Dropout of attention is a number in a module, not a module."""
    model = fresh.hf_model
    model.model.language_model.layers[1].self_attn.attention_dropout = 0.5
    fresh.run("Q:Greece")
    model.train()
    for ask in asks(fresh):
        with pytest.warns(UserWarning, match="training mode and has dropout .*layers.1.self_attn"):
            ask()
    model.model.language_model.layers[1].self_attn.attention_dropout = 0.0
    recwarn.clear()
    fresh.run("Q:Greece")
    model.model.norm = torch.nn.BatchNorm1d(4)
    with pytest.warns(UserWarning, match="batch norms .model.norm., which such a run also changes"):
        fresh.run("Q:Greece")
    model.eval()
    recwarn.clear()
    fresh.run("Q:Greece")
    assert not recwarn.list


def doubled_at(position):
    """A torch hook, as a user writes one, that changes one position."""

    def hook(module, args, output):
        x = output.logits if hasattr(output, "logits") else output
        x = (x[0] if isinstance(x, tuple) else x).clone()
        x[:, position] *= 2
        if hasattr(output, "logits"):
            output.logits = x
            return output
        return (x, *output[1:]) if isinstance(output, tuple) else x

    return hook


def hooked(path, position):
    return lambda model: model.get_submodule(path).register_forward_hook(doubled_at(position))


def with_a_forward_of_its_own(model):
    mlp = model.model.language_model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * torch.arange(1.0, 1 + x.shape[1])[:, None]


@pytest.mark.parametrize(
    "change",
    [
        hooked("model.language_model.layers.0", -1),
        hooked("model.language_model.layers.1.mlp", 0),
        hooked("", -1),
        with_a_forward_of_its_own,
    ],
    ids=["last position of a block", "first position of an mlp", "last logits", "own forward"],
)
def test_sweeps_of_a_model_with_hooks_of_others_run_whole(fresh, change):
    edits = [Ablate(f"blocks.{n}.hook_mlp_out", at=Last()) for n in range(2)]
    ask = {"measure": "logits", "progress": False}
    assert set(fresh.sweep("Q:Greece", edits, **ask).engines) == {"replay"}
    change(fresh.hf_model)
    swept = fresh.sweep("Q:Greece", edits, **ask)
    assert set(swept.engines) == {"full"}
    assert "which may go by where positions stand" in next(iter(swept.reasons))
    for edit, logits in zip(edits, swept.stack("logits"), strict=True):
        torch.testing.assert_close(logits[0], fresh.run("Q:Greece", interventions=edit)[0, -1])
    with pytest.raises(NotReplayable, match="of others|of its own"):
        fresh.sweep("Q:Greece", edits, engine="replay", **ask)

"""nnsight: its tracing under our names, and beside it, neither disturbing the other."""

from __future__ import annotations

import copy

import nnsight
import pytest
import tiny
import torch

from vlm_lens import AttentionKnockout, Find, HookedVLM, Images, Last, Steer
from vlm_lens.errors import InterventionError, PointError, PromptError

pytestmark = pytest.mark.slow  # nnsight takes seconds to import


@pytest.fixture
def vlm(load):
    """A model of its own, that nnsight may wrap."""
    shared = load("clip-llama")
    return HookedVLM(copy.deepcopy(shared.hf_model), shared.processor)


@pytest.fixture
def prompt(vlm, picture):
    return vlm.prompt("Q:<image>\nA:", [picture])


def first(value):
    return value if isinstance(value, torch.Tensor) else value[0]


def test_a_trace_saves_what_the_cache_holds(vlm, prompt):
    logits, cache = vlm.run_with_cache(prompt)
    traced = nnsight.NNsight(vlm.hf_model)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        tower = traced.model.vision_tower.encoder.layers[1].output.save()
        projected = traced.model.multi_modal_projector.output.save()
        block = traced.model.language_model.layers[0].output.save()
        q = traced.model.language_model.layers[1].self_attn.q_proj.output.save()
        normed = traced.model.language_model.norm.output.save()
        there = traced.lm_head.output.save()
    assert torch.equal(first(tower), cache["vision.blocks.1.hook_resid_post"])
    assert torch.equal(first(projected), cache["projector.hook_out"].flatten(0, 1)) or torch.equal(
        first(projected), cache["projector.hook_out"]
    )
    assert torch.equal(first(block), cache["blocks.0.hook_resid_post"])
    assert torch.equal(q, cache["blocks.1.attn.hook_q"].flatten(2))
    assert torch.equal(normed, cache["ln_final.hook_normalized"])
    assert torch.equal(there, logits)


def test_a_hooked_model_works_after_a_trace_and_the_other_way_round(vlm, prompt):
    plain, before = vlm.run_with_cache(prompt)
    traced = nnsight.NNsight(vlm.hf_model)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        traced.model.language_model.layers[0].output[:] = 0
        emptied = traced.lm_head.output.save()
    hooks = [("blocks.0.hook_resid_post", lambda x, hook: torch.zeros_like(x))]
    assert not torch.equal(emptied, plain)
    assert torch.equal(vlm.run_with_hooks(prompt, fwd_hooks=hooks), emptied)
    logits, after = vlm.run_with_cache(prompt)
    assert torch.equal(logits, plain)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in after)
    with torch.no_grad(), traced.trace(**prompt.inputs):
        there = traced.lm_head.output.save()
    assert torch.equal(there, plain)


def test_nothing_of_this_package_is_on_a_model_that_is_traced(vlm, prompt):
    vlm.run_with_cache(prompt)
    assert tiny.hook_state(vlm.hf_model) == tiny.hook_state(copy.deepcopy(vlm.hf_model))
    fresh = nnsight.NNsight(copy.deepcopy(vlm.hf_model))
    with torch.no_grad(), fresh.trace(**prompt.inputs):
        there = fresh.lm_head.output.save()
    assert torch.equal(there, vlm.run(prompt))


# ------------------------------------------------------------------ vlm.trace

READ = (
    "vision.blocks.1.attn.hook_q", "projector.hook_out", "hook_merged", "blocks.0.attn.hook_z",
    "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "ln_final.hook_normalized",
)  # fmt: skip


def test_a_trace_reads_every_kind_of_point(vlm, prompt):
    logits, cache = vlm.run_with_cache(prompt, names_filter=list(READ))
    with vlm.trace(prompt) as tr:
        values = nnsight.save({})
        for name in READ:
            values[name] = tr[name]
        there = tr.logits.save()
    assert torch.equal(there, logits)
    for name in READ:
        assert torch.equal(values[name], cache[name]), name


def test_patterns_are_read_where_the_block_names_them(vlm, prompt):
    _, cache = vlm.run_with_cache(prompt, names_filter="*blocks.*.attn.hook_pattern")
    with vlm.trace(prompt) as tr:
        tower = tr["vision.blocks.0.attn.hook_pattern"].save()
        first = tr["pattern", 0].save()
    assert torch.equal(tower, cache["vision.blocks.0.attn.hook_pattern"])
    assert torch.equal(first, cache["blocks.0.attn.hook_pattern"])
    with vlm.trace(prompt) as tr:
        kept = nnsight.save([])
        for layer in range(2):
            kept.append(tr[f"blocks.{layer}.attn.hook_pattern"])
    assert torch.equal(kept[1], cache["blocks.1.attn.hook_pattern"])
    short = "tern"
    with pytest.raises(PointError, match="write its name in the block"), vlm.trace(prompt) as tr:
        tr["blocks.0.attn.hook_pat" + short].save()


def test_writes_act_like_plain_hooks(vlm, prompt):
    plain = vlm.run(prompt)
    cases = {
        "in place": (
            "blocks.0.hook_resid_post",
            lambda x: torch.cat([x[:, :-1], x[:, -1:] * 2], 1),
        ),
        "a head": ("blocks.0.attn.hook_z", lambda x: x * torch.tensor([1, 0, 1, 1.0])[:, None]),
        "assigned": ("projector.hook_out", torch.zeros_like),
        "the tower": ("vision.blocks.0.hook_resid_post", lambda x: x + 1),
    }
    expected = {
        what: vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook, fn=fn: fn(x))])
        for what, (name, fn) in cases.items()
    }
    with vlm.trace(prompt) as tr:
        tr["blocks.0.hook_resid_post"][:, -1] *= 2
        in_place = tr.logits.save()
    with vlm.trace(prompt) as tr:
        tr["blocks.0.attn.hook_z"][:, :, 1] = 0
        head = tr.logits.save()
    with vlm.trace(prompt) as tr:
        tr["projector.hook_out"] = torch.zeros_like(tr["projector.hook_out"])
        assigned = tr.logits.save()
    with vlm.trace(prompt) as tr:
        tr["vision.blocks.0.hook_resid_post"] += 1
        tower = tr.logits.save()
    got = {"in place": in_place, "a head": head, "assigned": assigned, "the tower": tower}
    for what, logits in got.items():
        assert torch.equal(logits, expected[what]), what
        assert not torch.equal(logits, plain), what
    assert torch.equal(vlm.run(prompt), plain)


def test_positions_and_interventions_are_those_of_this_package(vlm, prompt):
    vector = torch.randn(vlm.cfg.d_model)
    edits = Steer("blocks.1.hook_resid_post", at=Find("A:"), vector=vector)
    cut = AttentionKnockout(queries=Last(), keys=Images(), layers=[0])
    expected = vlm.run(prompt, interventions=cut + edits)
    with vlm.trace(prompt, interventions=cut) as tr:
        tr["blocks.1.hook_resid_post"][tr.at(Find("A:"))] += vector
        logits = tr.logits.save()
    assert torch.equal(logits, expected)


def test_a_gradient_reaches_the_points_of_a_trace(vlm, prompt):
    logits, cache = vlm.run_with_cache(prompt, names_filter="blocks.0.attn.hook_z", grad=True)
    (expected,) = torch.autograd.grad(logits[0, -1, 7], cache["z", 0])
    with vlm.trace(prompt, grad=True) as tr:
        z = tr["blocks.0.attn.hook_z"].save()
        there = tr.logits.save()
    (gradient,) = torch.autograd.grad(there[0, -1, 7], z)
    torch.testing.assert_close(gradient, expected)


def test_a_stopped_trace_leaves_nothing_behind(vlm, prompt):
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.0.hook_resid_post")
    before = tiny.hook_state(vlm.hf_model)
    with vlm.trace(prompt) as tr:
        early = tr["blocks.0.hook_resid_post"].save()
        tr.stop()
    assert torch.equal(early, cache["resid_post", 0])
    with pytest.raises(RuntimeError, match="on purpose"), vlm.trace(prompt) as tr:
        tr["blocks.0.hook_resid_post"].save()
        raise RuntimeError("on purpose")
    assert tiny.hook_state(vlm.hf_model) == before
    vlm.run(prompt)


def test_what_cannot_be_is_said(vlm, prompt):
    with pytest.raises(PointError, match="did you mean|hook_resid_post"), vlm.trace(prompt) as tr:
        tr["blocks.0.hook_residpost"].save()
    with pytest.raises(InterventionError, match="has the shape"), vlm.trace(prompt) as tr:
        tr["blocks.0.hook_resid_post"] = torch.zeros(3)
    text = vlm.prompt("only text")
    with pytest.raises(PointError, match="does not compute it"), vlm.trace(text) as tr:
        tr["projector.hook_out"].save()
    with pytest.raises(PromptError, match="one prompt"), vlm.trace(prompt) as tr:
        tr.invoke("another")
    with pytest.raises(PromptError, match="waits for no other"), vlm.trace(prompt) as tr:
        tr.barrier(2)


def test_what_is_asked_for_too_late_is_told_after_what(vlm, prompt):
    late = "hook_resid_post was asked for after blocks.1.hook_resid_post, and the model computes it"
    with pytest.raises(PointError, match=late) as told, vlm.trace(prompt) as tr:
        tr["blocks.1.hook_resid_post"].save()
        tr["blocks.0.hook_resid_post"].save()
    assert type(told.value.__cause__).__name__ == "OutOfOrderError"
    with pytest.raises(PointError, match="vision.blocks.0.* after bl"), vlm.trace(prompt) as tr:
        tr["blocks.0.hook_resid_post"].save()
        tr["vision.blocks.0.hook_resid_post"] = torch.zeros(3)
    with pytest.raises(PointError, match="after logits"), vlm.trace(prompt) as tr:
        tr.logits.save()
        tr["blocks.0.hook_resid_post"].save()
    vlm.run(prompt)  # nothing is left behind


def test_outside_of_its_block_a_trace_says_where_it_is_read(vlm, prompt):
    opened = vlm.trace(prompt)
    for wanted in (lambda: opened["blocks.0.hook_resid_post"], lambda: opened.logits):
        with pytest.raises(PointError, match="within `with vlm.trace"):
            wanted()
    with vlm.trace(prompt) as tr:
        first = tr.logits.save()
        again = (tr.logits * 2).save()  # what is there can be asked for again
    torch.testing.assert_close(again, 2 * first)
    with pytest.raises(PointError, match="what is needed after the block"):
        tr["blocks.0.hook_resid_post"]

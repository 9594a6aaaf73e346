"""Variants in the run itself equal runs of their own, and what is not understood is refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import pytest
import tiny
import torch
from differential import assert_same, random_intervention, random_prompt
from steps import steps_of
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from vlm_lens import Ablate, ActivationPatch, HookedVLM, Images, Last, Scale, Steer
from vlm_lens.engine import further, joint
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.hooks import count_hooks
from vlm_lens.engine.joining import CountedOp
from vlm_lens.engine.joint import fitting, outline, run_jointly
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.replay import ReplayVariant
from vlm_lens.errors import InterventionError
from vlm_lens.interventions import Target
from vlm_lens.interventions.base import Intervention
from vlm_lens.prompts.prompt import Prompt


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch):
    """What earlier tests' models were refused for is forgotten."""
    monkeypatch.setattr(joint, "_refused", type(joint._refused)())


def jointly(
    vlm: HookedVLM, prompt: Prompt, edits: Sequence[Intervention], n_last: int = 1
) -> tuple[Tensor, Tensor] | None:
    """Logits of the plain run and of the variants; `None` where they do not fit."""
    target = Target(vlm.architecture.points, prompt.layouts, lambda: vlm.facts)
    ops = [edit.lower(target) for edit in edits]
    run = outline(vlm.hf_model, vlm.architecture, prompt.inputs)
    starts = fitting(run, prompt.inputs, ops, n_last)
    if starts is None:
        return None
    variants = [
        ReplayVariant([CountedOp(op, Counter(edit, op.point)) for op in mine], start)
        for edit, mine, start in zip(edits, ops, starts, strict=True)
    ]
    plain, replayed = run_jointly(run, prompt.inputs, variants, n_last=n_last)
    return plain, replayed.logits


@pytest.mark.parametrize("name", (*tiny.VLMS, *tiny.LMS))
def test_variants_in_the_run_itself_equal_runs_of_their_own(load, name):
    vlm, tried = load(name), 0
    for seed in range(12):
        source = random.Random(seed)
        prompt = random_prompt(vlm, source, pictures=name in tiny.VLMS)
        edits = [random_intervention(vlm, prompt, source) for _ in range(12)]
        edits = [edit for edit in edits if jointly(vlm, prompt, [edit]) is not None]
        for n_last in (1, 2):
            found = jointly(vlm, prompt, edits, n_last) if edits else None
            if found is None:  # too many positions together
                edits = edits[: len(edits) // 2]
                continue
            plain, changed = found
            assert_same(plain, vlm.run(prompt)[:, -n_last:])
            for edit, logits in zip(edits, changed, strict=True):
                assert_same(logits, vlm.run(prompt, interventions=edit)[:, -n_last:])
                tried += 1
    assert tried >= 20


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("name", ("clip-llama", "siglip-mistral", "qwen2"))
def test_what_is_written_where_a_variant_joins(name, attention):
    """What replaces all of a variant's positions is written as it joins, other ops after that."""
    vlm = HookedVLM(tiny.build(name, attention=attention), tiny.reader(name))
    random_numbers = torch.Generator().manual_seed(0)
    one, many = (torch.randn(n, vlm.cfg.d_model, generator=random_numbers) for n in (1, 4))
    post = "blocks.{}.hook_resid_post".format
    last = vlm.cfg.n_layers - 1
    apart = [
        (ActivationPatch(post(last), at=Last(), value=one[0]), 1),
        (ActivationPatch(post(0), at=Last(), value=one[0]), 1),
        (ActivationPatch("hook_merged", at=Last(), value=one[0]), 1),
        (ActivationPatch(post(0), at=(-2, -1), value=many.view(2, 2, -1)), 1),
        (ActivationPatch("blocks.1.hook_resid_pre", at=Last(), value=0.5), 1),
        (ActivationPatch(post(0), at=-2, value=one[0]), 0),  # what comes after is the prompt's
        (ActivationPatch(post(0), at=(-3, -1), value=many.view(2, 2, -1)), 0),
        (Steer(post(0), at=Last(), vector=one[0], scale=2.0), 0),
        (Ablate("blocks.0.attn.hook_z", at=Last(), by="zero"), 0),
    ]
    patch = apart[1][0]
    apart += [
        (patch + Scale(post(0), at=Last(), factor=-2.0), 1),
        (Scale(post(0), at=Last(), factor=-2.0) + patch, 0),
        (patch + Scale("blocks.1.hook_mlp_out", at=Last(), factor=3.0), 1),
        (Scale("blocks.0.hook_mlp_out", at=Last(), factor=3.0) + patch, 0),
    ]
    prompt = vlm.prompt(["a b c d e f g", "a b c d"])  # the second is padded
    for edits in ([edit for edit, _ in apart], *([edit] for edit, _ in apart)):
        plain, changed = jointly(vlm, prompt, edits)
        assert_same(plain, vlm.run(prompt)[:, -1:])
        for edit, logits in zip(edits, changed, strict=True):
            assert_same(logits, vlm.run(prompt, interventions=edit)[:, -1:])
    for edit, n_written in apart:
        assert written_on_joining(vlm, prompt, edit) == n_written, edit


def written_on_joining(vlm: HookedVLM, prompt: Prompt, edit: Intervention) -> int:
    """How many ops of a variant act before it joins the run."""
    run = outline(vlm.hf_model, vlm.architecture, prompt.inputs)
    ops = edit.lower(Target(vlm.architecture.points, prompt.layouts, lambda: vlm.facts))
    starts = fitting(run, prompt.inputs, [ops], 1)
    variant = ReplayVariant([CountedOp(op, Counter(edit, op.point)) for op in ops], starts[0])
    return len(joint._JointRun(run, prompt.inputs, [variant], 1)._written._handlers)


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        (ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=torch.ones(32)), 1),
        (Scale("blocks.*.hook_resid_post", at=Last(), factor=2.0), 8),
    ],
)
def test_what_a_sweep_of_layers_computes_beside_the_plain_run(edit, most):
    """One step a block joins a variant; the host waits for the device as often at any depth."""
    more, waits = {}, set()
    for n_layers in (3, 8):
        model = tiny.build("llama", num_hidden_layers=n_layers, num_key_value_heads=4)
        vlm = HookedVLM(model, tiny.reader("llama"))
        prompt = vlm.prompt("a b c d")
        plain = steps_of(partial(model, **prompt.inputs, use_cache=False))
        vlm.sweep(prompt, edit, progress=False)  # the value is looked at, once
        sweep = steps_of(partial(vlm.sweep, prompt, edit.each_layer(), progress=False))
        more[n_layers] = sweep.computed - plain.computed
        waits.add(sweep.waits - plain.waits)
    assert more[8] - more[3] <= 5 * most
    assert waits == {max(waits)} and max(waits) <= 3


def test_a_sweep_of_layers_is_one_forward_pass(clip, picture, monkeypatch):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    passes = []
    inner = type(clip.hf_model).forward

    def counted(self, *args, **kwargs):
        passes.append(1)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(type(clip.hf_model), "forward", counted)
    blocks = count_block_calls(clip, monkeypatch)
    edit = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=torch.ones(32))
    result = clip.sweep(prompt, edit.each_layer(), measure="logits", progress=False)
    assert len(passes) == 1 and len(blocks) == clip.cfg.n_layers
    assert result.engines == {"replay": clip.cfg.n_layers}
    for record, one in zip(result.records, edit.each_layer().expand(clip.points()), strict=True):
        assert_same(record["logits"], clip.run(prompt, interventions=one)[0, -1:])
    assert_same(result.baseline[0]["logits"], clip.run(prompt)[0, -1:])


def count_block_calls(vlm: HookedVLM, monkeypatch) -> list[int]:
    called: list[int] = []
    block = type(vlm.hf_model.get_decoder().layers[0])
    inner = block.forward

    def counted(self, *args, **kwargs):
        called.append(1)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(block, "forward", counted)
    return called


def test_a_model_that_takes_no_further_positions_is_replayed(load):
    """GPT-Neo hides later keys by a table of its own, and gives its output its input's shape."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=420, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
        attention_types=[[["global"], 2]],
    )  # fmt: skip
    vlm = HookedVLM(tiny.randomize(GPTNeoForCausalLM(config)).eval(), load("llama").processor)
    prompt = vlm.prompt("a b c d")
    edits = [Scale(f"blocks.{i}.hook_resid_post", at=Last(), factor=2.0) for i in range(2)]
    with pytest.raises(NotReplayable):
        jointly(vlm, prompt, edits)
    assert jointly(vlm, prompt, edits) is None  # and not tried again
    result = vlm.sweep(prompt, edits, measure="logits", progress=False)
    for record, edit in zip(result.records, edits, strict=True):
        assert_same(record["logits"], vlm.run(prompt, interventions=edit)[0, -1:])


def test_a_model_for_which_memory_was_short_once_is_tried_again(load, monkeypatch):
    vlm, edit = load("llama"), Scale("blocks.0.hook_resid_post", at=Last(), factor=2.0)
    prompt = vlm.prompt("a b c d")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as short:
        short.setattr(vlm.hf_model.model.norm, "forward", full)
        with pytest.raises(NotReplayable, match="out of memory"):
            jointly(vlm, prompt, [edit])
    _, changed = jointly(vlm, prompt, [edit])
    assert_same(changed[0], vlm.run(prompt, interventions=edit)[:, -1:])


def test_the_control_is_what_finds_it(clip, monkeypatch):
    """With masks that let a variant see the others, the control differs from the plain run."""
    inner = further.FurtherPositions._mask

    def leaking(self, mask, stream):
        made = inner(self, mask, stream).clone()
        made[..., self._length :, :] = 0.0  # is added to scores: nothing is hidden
        return made

    monkeypatch.setattr(further.FurtherPositions, "_mask", leaking)
    prompt = clip.prompt("a b c d")
    with pytest.raises(NotReplayable, match="masks and positions"):
        jointly(clip, prompt, [Scale("blocks.0.hook_resid_pre", at=Last(), factor=2.0)])


def test_what_fits(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    fit = {
        "a stream": Scale("blocks.1.hook_resid_pre", at=Last(), factor=2.0),
        "the last stream": Scale("blocks.1.hook_resid_post", at=Last(), factor=2.0),
        "a head": Ablate("blocks.0.attn.hook_z", at=Last(), by="zero", heads=[1]),
        "two": Scale("blocks.0.hook_mlp_out", at=Last(), factor=2.0)
        + Scale("blocks.1.hook_attn_out", at=-2, factor=0.5),
    }
    for what, edit in fit.items():
        assert jointly(clip, prompt, [edit]) is not None, what
    apart = {
        "a pattern": Ablate("blocks.0.attn.hook_pattern", at=Last(), by="zero"),
        "the head": Scale("ln_final.hook_normalized", at=Last(), factor=2.0),
        "the tower": Scale("vision.blocks.0.hook_resid_post", at=Images(), factor=2.0),
    }
    for what, edit in apart.items():
        assert jointly(clip, prompt, [edit]) is None, what
    assert jointly(clip, prompt, [fit["a stream"]] * 70) is None  # too many


def test_errors_reach_the_user_and_no_hook_stays(clip):
    prompt = clip.prompt("a b c d")
    before = count_hooks(clip.hf_model)
    target = Target(clip.architecture.points, prompt.layouts, lambda: clip.facts)
    good = Scale("blocks.0.hook_resid_post", at=Last(), factor=2.0)
    op = good.lower(target)[0]
    op.tensors["value"] = torch.ones(1, 31)
    run = outline(clip.hf_model, clip.architecture, prompt.inputs)
    starts = fitting(run, prompt.inputs, [[op]], 1)
    variant = ReplayVariant([CountedOp(op, Counter(good, op.point))], starts[0])
    with pytest.raises(InterventionError, match="31 entries"):
        run_jointly(run, prompt.inputs, [variant])
    assert count_hooks(clip.hf_model) == before

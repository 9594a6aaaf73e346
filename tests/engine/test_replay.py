from __future__ import annotations

import random

import pytest
import tiny
import torch
from differential import assert_captured_alike, assert_same, compare, random_prompt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_lens import Ablate, ActivationPatch, HookedVLM, Images, Last, Patches, Scale, Steer
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.hooks import count_hooks
from vlm_lens.engine.joining import CountedOp
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.pictures import Pictures
from vlm_lens.engine.recorder import record
from vlm_lens.engine.replay import ReplayVariant, replay
from vlm_lens.engine.stand_ins import standing_in
from vlm_lens.engine.start import start_of
from vlm_lens.engine.tower import TowerReplay, tower_blocks
from vlm_lens.errors import InterventionError
from vlm_lens.interventions import Target
from vlm_lens.measures import Capture
from vlm_lens.sweep import runner

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
MANY = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture
def watching(monkeypatch):
    """Lets a sweep replay though hooks of others, which only watch here, stand on the model."""
    monkeypatch.setattr(runner, "no_replay_with", lambda model: "")


@MANY
@given(seed=SEEDS)
@pytest.mark.parametrize("name", (*tiny.VLMS, *tiny.LMS))
def test_replay_equals_full_forward(load, name, seed):
    vlm = load(name)
    assert compare(vlm, seed, pictures=name in tiny.VLMS) == 8


@pytest.mark.parametrize("name", ("clip-llama", "siglip-mistral"))
def test_sliding_window_and_eager_attention(name):
    model = tiny.build(name, attention="eager")
    if name == "siglip-mistral":
        model = tiny.build(name, decoder={"sliding_window": 5})
    vlm = HookedVLM(model, tiny.reader(name))
    for seed in range(12):
        assert compare(vlm, seed, pictures=True) == 8


def test_start_is_where_the_first_op_acts(clip):
    prompt = random_prompt(clip, random.Random(0), pictures=False)
    baseline = record(clip.hf_model, clip.architecture, prompt.inputs)
    target = Target(clip.architecture.points, prompt.layouts, lambda: clip.facts)

    def start(edit):
        return start_of(edit.lower(target), baseline)

    last = prompt.length - 1
    here = start(ActivationPatch("blocks.1.hook_mlp_out", at=Last(), value=0.0))
    assert (here.layer, here.position) == (1, last)
    # what leaves a block is what enters the next one, so the block itself need not run
    for layer in range(clip.cfg.n_layers):
        left = start(ActivationPatch(f"blocks.{layer}.hook_resid_post", at=Last(), value=0.0))
        assert (left.layer, left.position) == (layer + 1, last)
    both = start(
        ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=0.0)
        + ActivationPatch("blocks.0.mlp.hook_post", at=-3, value=0.0)
    )
    assert (both.layer, both.position) == (0, last - 2)
    mean = start(Ablate("blocks.1.hook_mlp_out", at=Last(), by="mean"))
    assert mean.position == 0  # a mean over the prompt needs every position
    assert start(ActivationPatch("hook_logits", at=Last(), value=0.0)).layer == clip.cfg.n_layers


@settings(MANY, max_examples=15)
@given(seed=SEEDS)
@pytest.mark.parametrize("name", tiny.VLMS)
def test_replay_from_tower_and_projector_equals_full_forward(load, name, seed):
    assert compare(load(name), seed, pictures=True, tower=True) == 8


def test_a_tower_variant_equals_plain_hooks(clip, picture):
    """A block of the tower, its read features and the projector, against torch hooks alone."""
    prompt = clip.prompt("<image>Q:<image>\nA:", [picture, tiny.noise_picture(7)])
    vector = torch.randn(24, generator=torch.Generator().manual_seed(0))
    for point, width in (
        ("vision.blocks.0.mlp.hook_post", 36),
        ("vision.blocks.1.hook_resid_post", 24),
        ("projector.hook_out", 32),
    ):
        value = vector[:1].expand(width).clone()
        edit = ActivationPatch(point, Patches(1, rows=0), value)

        def write(x, value=value, point=point):
            x = x.clone()
            first = int(point.startswith("vision"))  # CLIP's class token
            x[1, first : first + 4] = value
            return x

        expected = tiny.plain_write(clip.hf_model, prompt.inputs, point, write)[0, -1:]
        result = clip.sweep(prompt, [edit], measure="logits", engine="replay", progress=False)
        assert result.engines == {"replay": 1}
        assert_same(result.stack("logits")[0], expected)


def test_only_what_a_tower_variant_can_change_is_computed(clip, picture, watching):
    """Blocks before the first touched, and pictures not touched, are not computed again."""
    prompt = clip.prompt("<image>Q:<image>\nA:", [picture, tiny.noise_picture(7)])
    seen: dict[str, list] = {"tower": [], "text": []}
    tower = tower_blocks(clip.hf_model, clip.architecture)
    text = clip.hf_model.get_submodule(clip.architecture.decoder.stack.path)
    handles = [
        block.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs, k=kind, i=i: seen[k].append((i, kwargs["hidden_states"].shape)),
            with_kwargs=True,
        )
        for kind, blocks in (("tower", tower), ("text", text))
        for i, block in enumerate(blocks)
    ]
    edits = [Ablate("vision.blocks.1.hook_mlp_out", Patches(1, rows=row)) for row in (0, 1)]
    try:
        clip.sweep(prompt, edits, engine="replay", progress=False)
    finally:
        for handle in handles:
            handle.remove()
    plain = [(i, (2, 17, 24)) for i in range(3)]
    # then the check that pictures can be computed apart, which runs no block; then two variants
    assert seen["tower"] == [*plain, (1, (2, 17, 24)), (2, (2, 17, 24))]
    suffix = prompt.length - prompt.layout.image[1].positions[0]
    whole = [(i, (1, prompt.length, 32)) for i in range(2)]
    assert seen["text"] == [*whole, *((i, (2, suffix, 32)) for i in range(2))]


@pytest.mark.parametrize("name", tiny.VLMS)
def test_variants_of_every_tower_block_run_together(name, watching):
    """Each joins at its block; what they write, also between attention and MLP, is as in full."""
    model = tiny.build(name, vision={"num_hidden_layers": 5})
    vlm = HookedVLM(model, tiny.reader(name))
    prompt = vlm.prompt(
        ["<image>Q:<image>\nA:", "<image><image>A:"],
        [[tiny.noise_picture(n) for n in (1, 2)], [tiny.noise_picture(n) for n in (3, 4)]],
    )
    kinds = ("hook_resid_mid", "attn.hook_z", "hook_resid_post", "hook_resid_pre")
    names = [
        f"vision.blocks.{i}.{kind}" for i in range(vlm.cfg.vision.n_layers_read) for kind in kinds
    ]
    edits = [Scale(n, Images(i % 2), -1.5) for i, n in enumerate(reversed(names))]
    edits += [Scale(names[0], Images(0), 2.0) + Scale(names[-1], Images(1), 2.0)]
    edits += [Steer("projector.hook_out", Images(1), torch.ones(vlm.cfg.d_model))]
    rows: list[tuple[int, int]] = []
    for i, block in enumerate(tower_blocks(model, vlm.architecture)):
        block.register_forward_pre_hook(
            lambda m, args, i=i: rows.append((i, len(args[0]))) if len(args[0]) > 4 else None
        )
    vlm.sweep(prompt, edits, engine="replay", measure="logits", progress=False)
    # 4 kinds a block, pictures of both rows of the prompt; the last variant but one shows all four
    n = vlm.cfg.vision.n_layers_read
    # transformers may keep what enters the first block, so that all rows pass it
    assert [r for i, r in rows if 0 < i < n] == [12 + 8 * i for i in range(1, n)]
    read = ("vision.blocks.*.hook_resid_pre", "vision.blocks.*.mlp.hook_post", "projector.hook_out")
    for measure in ("logits", Capture(read, Images(1))):
        replayed, full = (
            vlm.sweep(prompt, edits, engine=engine, measure=measure, progress=False)
            for engine in ("replay", "full")
        )
        if measure == "logits":
            assert_same(replayed.stack("logits"), full.stack("logits"))
        else:
            assert_captured_alike(replayed, full)


def test_a_tower_whose_blocks_take_more_runs_block_by_block(clip, picture, monkeypatch, watching):
    """What is not known to count rows is not cut."""
    prompt = clip.prompt("<image>A:", [picture])
    edits = [Ablate(f"vision.blocks.{i}.hook_mlp_out", Images()) for i in (1, 0, 1)]
    together = clip.sweep(prompt, edits, measure="logits", engine="replay", progress=False)
    block = type(tower_blocks(clip.hf_model, clip.architecture)[0])
    inner = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, x, *args, table=None, **kw: inner(self, x, *args, **kw)
    )
    handles = [
        one.register_forward_pre_hook(
            lambda m, args, kwargs: (args, kwargs | {"table": torch.ones(3, 4)}), with_kwargs=True
        )
        for one in tower_blocks(clip.hf_model, clip.architecture)
    ]
    calls = []
    features = Pictures.features
    monkeypatch.setattr(
        Pictures, "features", lambda self, n: calls.append(len(n)) or features(self, n)
    )
    try:
        apart = clip.sweep(prompt, edits, measure="logits", engine="replay", progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [1, 1, 2]
    assert_same(apart.stack("logits"), together.stack("logits"))


def test_the_model_is_as_it_was_after_blocks_were_skipped(clip, picture):
    prompt = clip.prompt("<image>A:", [picture])
    plain, before = clip.run(prompt), count_hooks(clip.hf_model)
    block = tower_blocks(clip.hf_model, clip.architecture)[0]
    block.forward = own = block.forward  # as offloading sets one on the instance
    try:
        with pytest.raises(RuntimeError, match="inside"), standing_in({block: lambda: None}):
            raise RuntimeError("inside")
        assert block.__dict__["forward"] == own
    finally:
        del block.forward
    clip.sweep(prompt, [Ablate("vision.blocks.1.hook_mlp_out", Images())], progress=False)
    assert not any("forward" in m.__dict__ for m in clip.hf_model.modules())
    assert count_hooks(clip.hf_model) == before and torch.equal(clip.run(prompt), plain)


def test_what_comes_before_is_refused_by_name(clip, picture):
    prompt = clip.prompt("<image>A:", [picture])
    edit = ActivationPatch("hook_embed", at=Last(), value=0.5)
    with pytest.raises(NotReplayable, match="before the language model"):
        clip.sweep(prompt, [edit], engine="replay", progress=False)
    result = clip.sweep(prompt, [edit], measure="logits", progress=False)
    assert result.engines == {"full": 1}
    assert any("hook_embed" in reason for reason in result.reasons)
    by_hand = clip.run(prompt, interventions=edit)[:, -1:]
    assert_same(result.stack("logits"), by_hand)


def test_recording_leaves_the_model_as_it_was(clip, picture):
    prompt = clip.prompt("<image>A:", [picture])
    before, plain = count_hooks(clip.hf_model), clip.run(prompt)
    baseline = record(clip.hf_model, clip.architecture, prompt.inputs)
    assert count_hooks(clip.hf_model) == before
    assert torch.equal(baseline.logits, plain)
    assert len(baseline.keys) == clip.cfg.n_layers
    assert baseline.keys[0].shape[-2] == prompt.length


def test_a_point_that_never_fires_is_an_error(clip, picture, monkeypatch):
    """As where a module is called past its hooks, which compiled code does."""
    prompt, arch = clip.prompt("<image>A:", [picture]), clip.architecture
    pictures = Pictures(clip.hf_model, clip.family, arch, prompt.inputs, prompt.layouts)
    tower = TowerReplay(clip.hf_model, arch, pictures)
    baseline = record(clip.hf_model, arch, prompt.inputs, tower=tower)
    target = Target(arch.points, prompt.layouts, lambda: clip.facts)

    def read(edit, name, cell):
        ops = [CountedOp(op, Counter(edit, op.point)) for op in edit.lower(target)]
        start = start_of([c.op for c in ops], baseline)
        return replay(baseline, [ReplayVariant(ops, start)], cells={name: [cell]}).read[0]

    cases = (
        (Ablate("blocks.0.hook_mlp_out", at=Last()), "blocks.1.mlp.hook_post", prompt.length - 1),
        (Ablate("vision.blocks.0.hook_mlp_out", at=Images()), "vision.blocks.1.mlp.hook_post", 1),
    )
    for edit, name, position in cases:
        assert (0, position) in read(edit, name, (0, position))[name]
    monkeypatch.setattr(torch.nn.Linear, "__call__", torch.nn.Linear.forward)
    for edit, name, position in cases:
        with pytest.raises(InterventionError, match=f"{name} did not fire"):
            read(edit, name, (0, position))
    with pytest.raises(InterventionError, match="touched no element"):
        read(Ablate("blocks.0.mlp.hook_post", at=Last()), "blocks.0.hook_resid_pre", (0, 1))

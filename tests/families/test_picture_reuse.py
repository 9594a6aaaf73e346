"""A picture that several prompts show is computed once, on every family, and nothing changes."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Ablate, All, HookedVLM, Last, RawPrompt
from vlm_lens.engine.tower import tower_blocks
from vlm_lens.errors import VectorError
from vlm_lens.reading.vectors import read_each

PICTURES = [tiny.noise_picture(i, (40, 36)) for i in range(2)]
PROMPTS = [
    RawPrompt("<image>\nQ:Greece\nA:", (PICTURES[0],)),
    RawPrompt("<image>\nQ:Peru\nA:", (PICTURES[1],)),
    RawPrompt("<image>\nWhat is it?", (PICTURES[0],)),
    RawPrompt("<image>\nQ:<image>\nA:", (PICTURES[1], PICTURES[0])),
    RawPrompt("<image>\nA:", (PICTURES[0],)),
]


def test_readings_equal_those_of_plain_runs(family):
    values = read_each(family, PROMPTS, at=Last(), batch_size=2)
    names = family.points().match("blocks.*.hook_resid_post")
    for value, prompt in zip(values, PROMPTS, strict=True):
        _, cache = family.run_with_cache(
            family.as_prompt(prompt), names_filter=names, positions=Last()
        )
        plain = torch.stack([cache[n][0, 0] for n in names])
        assert (value - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_logits_equal_and_pixels_are_read_once(family):
    prompt = family.as_prompt(PROMPTS[0])
    plain = family.run(prompt)
    with family.reusing_pictures():
        first, again = family.run(prompt), family.run(prompt)
        if family.family.not_separable or family.family.not_replayable:
            assert torch.equal(again, plain)
            return
        assert torch.equal(again, first)
        assert family._pictures.inputs_for(prompt)["pixel_values"] is None
    usual = plain.abs() < 1e30
    scale = plain[usual].abs().max()
    assert ((first - plain)[usual].abs() <= 1e-5 * scale).all()
    assert torch.equal(family.run(prompt), plain)


@pytest.fixture
def rows_seen(clip):
    """How many pictures the tower is given, call by call."""
    seen = []
    tower = clip.hf_model.model.vision_tower
    handle = tower.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    yield seen
    handle.remove()


def test_each_distinct_picture_is_computed_once(clip, rows_seen):
    read_each(clip, PROMPTS, at=Last(), batch_size=2)
    assert sum(rows_seen) == len(PICTURES)
    rows_seen.clear()
    with clip.reusing_pictures():
        clip.run(clip.as_prompt(PROMPTS[3]))
        clip.run(clip.as_prompt(PROMPTS[0]))
    assert sum(rows_seen) == len(PICTURES)
    clip.run(clip.as_prompt(PROMPTS[3]))
    assert sum(rows_seen) == 2 * len(PICTURES)


def test_runs_that_watch_the_tower_compute_it(clip, rows_seen):
    prompt = clip.as_prompt(PROMPTS[3])
    with clip.reusing_pictures():
        for _ in range(2):
            _, cache = clip.run_with_cache(prompt, names_filter="vision.*.hook_resid_post")
            assert len(cache["vision.blocks.0.hook_resid_post"]) == 2
        pixels = prompt.inputs["pixel_values"].requires_grad_()
        clip.run(prompt, grad=True).sum().backward()
        assert pixels.grad.abs().max() > 0
    assert rows_seen == [2, 2, 2]
    with pytest.raises(VectorError, match="positions"):
        read_each(clip, [PROMPTS[0]], at=All())


def test_old_pictures_are_forgotten(clip, rows_seen):
    from vlm_lens.engine.picture_store import PictureStore

    store = PictureStore(clip.hf_model, clip.family, clip.architecture, limit=0)
    prompt = clip.as_prompt(PROMPTS[3])
    given = store.inputs_for(prompt)["mm_encoder_outputs"]["image"]
    assert len(given.pooler_output) == 2 and not store._stored and not store._bytes
    store.inputs_for(prompt)
    assert rows_seen == [2, 2]


class _Adapted(torch.nn.Module):
    """A layer with an adapter beside it, which can be switched off, as peft has them."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer, self._disable_adapters = layer, False
        self.added = torch.nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x):
        return self.layer(x) if self._disable_adapters else self.layer(x) + self.added(x)


def test_pictures_do_not_outlive_the_weights_that_they_came_of():
    vlm = HookedVLM(tiny.build("clip-llama"), tiny.reader("clip-llama"))
    tower, projector = vlm.hf_model.model.vision_tower, vlm.hf_model.model.multi_modal_projector
    prompt = vlm.as_prompt(PROMPTS[3])
    block = tower_blocks(vlm.hf_model, vlm.architecture)[0]
    block.mlp.fc1 = adapted = _Adapted(block.mlp.fc1)

    def double(parameter):
        parameter.data = parameter.data * 2

    changes = (
        lambda: setattr(adapted, "_disable_adapters", True),
        lambda: setattr(adapted, "_disable_adapters", False),
        lambda: torch.nn.init.normal_(adapted.added.weight),
        lambda: double(projector.linear_2.weight),
        lambda: setattr(projector.linear_1, "bias", torch.nn.Parameter(torch.ones(32))),
        lambda: block.mlp.register_forward_hook(lambda module, args, out: 2 * out),
        lambda: setattr(block.layer_norm1, "eps", 1.0),
    )
    with vlm.reusing_pictures():
        before = vlm.run(prompt)
        for change in changes:
            change()
            with torch.no_grad():
                plain = vlm.hf_model(**prompt.inputs).logits
            reused = vlm.run(prompt)
            assert (plain - before).abs().max() > 1e-4  # the change makes a difference
            torch.testing.assert_close(reused, plain, rtol=1e-4, atol=1e-5)
            before = plain
    with vlm.reusing_pictures():  # nothing changes: nothing is computed again
        vlm.run(prompt)
        seen = []
        tower.register_forward_pre_hook(lambda m, args: seen.append(1))
        vlm.run(prompt)
        assert len(seen) == 1  # a hook of others may change what is computed
        vlm.run(prompt)
        vlm.run(prompt, interventions=Ablate("blocks.0.hook_mlp_out", at=Last()))
        assert len(seen) == 1

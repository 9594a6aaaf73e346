"""Idefics2: a tower at any size, latents instead of patches, pictures whole or cut into four."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_idefics2
from vlm_lens import Ablate, All, At, HookedVLM, Images, Patches
from vlm_lens.errors import PointError, PositionError, PromptError
from vlm_lens.reading.resampled import patch_weights

MODEL = "idefics2"

PATCH, LATENTS = tiny_idefics2.PATCH, tiny_idefics2.LATENTS


@pytest.fixture
def split(made) -> HookedVLM:
    return made("idefics2-split")


def test_facts(vlm):
    assert (vlm.cfg.n_layers, vlm.cfg.n_key_value_heads) == (2, 2)
    assert vlm.cfg.vision.n_layers == vlm.cfg.vision.n_layers_read == 3
    points = vlm.points()
    assert points["projector.blocks.1.attn.hook_pattern"].sizes == (None, 4, None, None)
    assert points["projector.blocks.0.attn.hook_q"].space == "projector"
    assert points["projector.blocks.0.attn.hook_k"].space == "vision"
    assert points["projector.hook_in"].space == "vision"
    assert all(p.writable for p in points.values())


def test_the_resamplers_points_are_what_its_modules_take_and_give(vlm):
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (40, 30))])
    names = ["projector.*", "vision.hook_out", "hook_merged"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    connector = vlm.hf_model.model.connector
    resampler = connector.perceiver_resampler
    with torch.no_grad():
        context = connector.modality_projection(cache["vision.hook_out"])
    assert torch.equal(cache["projector.hook_context"], context)
    first = cache["projector.blocks.0.hook_resid_pre"][0]
    assert torch.equal(first, resampler.latents)
    block = resampler.layers[1]
    latents = cache["projector.blocks.1.hook_resid_pre"]
    assert torch.equal(latents, cache["projector.blocks.0.hook_resid_post"])
    with torch.no_grad():
        normed, seen = block.input_latents_norm(latents), block.input_context_norm(context)
        keys = block.self_attn.k_proj(torch.cat([seen, normed], 1)).unflatten(-1, (2, 6))
        out = resampler.norm(cache["projector.blocks.1.hook_resid_post"])
    assert torch.equal(cache["projector.blocks.1.ln_context.hook_normalized"], seen)
    assert torch.allclose(cache["projector.blocks.1.attn.hook_k"], keys)
    assert torch.equal(cache["projector.hook_out"], out)
    text = prompt.layout.image[0].positions
    assert torch.equal(cache["hook_merged"][0, list(text)], out[0])


def test_a_position_in_the_text_has_no_patch(vlm):
    prompt = vlm.prompt("Q:<image>A:<image>", [tiny.noise_picture(i, (40, 30)) for i in range(2)])
    image = prompt.layout.image[1]
    assert len(image.positions) == LATENTS
    ids = prompt.inputs["input_ids"][0]
    assert set(ids[list(image.positions)].tolist()) == {vlm.architecture.image_token_id}
    assert image.projector.sequences == ((1, tuple(range(LATENTS))),)
    with pytest.raises(PositionError, match="resampler mixes all patches"):
        image.patch(0, 0)
    with pytest.raises(PositionError, match="resampler mixes all patches"):
        vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Patches(box=(0, 0, 9, 9))))


@pytest.mark.parametrize("size", [(17, 400), (400, 17), (64, 48), (1, 1), (40, 31)])
def test_frames_are_those_of_the_processor(vlm, size):
    """Padding of smaller pictures in a batch is no patch, and neither is a patch cut off."""
    pictures = [tiny.noise_picture(0, size), tiny.noise_picture(1, (56, 56))]
    alone = vlm.processor.image_processor(pictures[:1], return_tensors="pt")["pixel_values"]
    height, width = alone.shape[-2:]
    grid = vlm.prompt("<image><image>", pictures).layout.image[0].vision.grid()
    assert (grid.rows, grid.cols) == (height // PATCH, width // PATCH)
    assert grid.positions[grid.cols : grid.cols + 1] == ((7,) if grid.rows > 1 else ())
    x0, y0, x1, y1 = grid.pixels(grid.patch(-1, -1))
    assert x1 == pytest.approx(size[0] * grid.cols * PATCH / width)
    assert y1 == pytest.approx(size[1] * grid.rows * PATCH / height)
    assert grid.pixels(grid.patch(0, 0))[:2] == (0, 0)


def test_replay_and_generation(vlm):
    prompt = vlm.prompt("a<image>b<image>:", [tiny.noise_picture(i, (20, 16)) for i in range(2)])
    bench.check_replay(vlm, prompt)
    for name in ("hook_merged", "blocks.1.attn.hook_z", "projector.hook_out"):
        bench.check_grown(vlm, prompt, name)


def test_quarters(split):
    vision = split.prompt("a<image>", [tiny.noise_picture(0, (101, 67))]).layout.image[0].vision
    assert [g.row for g in vision.grids] == [4, 0, 1, 2, 3]
    assert vision.grids[4].pixels(vision.grids[4].patch(0, 0))[:2] == (50, 33)
    assert {row for row, _ in vision.box(60, 40, 70, 50)} == {4, 3}


def test_quarters_need_the_size_of_the_picture(split):
    prompt = split.prompt("a<image>b<image>", [tiny.noise_picture(i) for i in range(2)])
    given = split.as_prompt(prompt.inputs)
    assert [len(im.vision.grids) for im in prompt.layout.image] == [5, 5]
    assert [len(im.vision.grids) for im in given.layout.image] == [1, 1]
    for one, two in zip(prompt.layout.image, given.layout.image, strict=True):
        assert one.text == two.text
        assert one.vision.sequences == two.vision.sequences
        assert one.projector == two.projector


def test_patch_weights_are_the_mean_of_eager_attention(vlm):
    pictures = [tiny.noise_picture(0, (56, 40)), tiny.noise_picture(1, (30, 30))]
    prompt = vlm.prompt("<image><image>", pictures)
    _, cache = vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")
    twin = tiny.eager_copy(vlm.hf_model)
    seen = []
    for layer in twin.model.connector.perceiver_resampler.layers:
        layer.self_attn.register_forward_hook(lambda m, args, out: seen.append(out[1]))
    tiny.plain_logits(twin, prompt.inputs)
    for image in range(2):
        weights = patch_weights(cache, image)
        grid = prompt.layout.image[image].vision.grid()
        assert weights.shape == (LATENTS, grid.rows, grid.cols)
        mean = torch.stack([w[image].mean(0) for w in seen]).mean(0)
        expected = mean[:, list(grid.positions)].reshape(weights.shape)
        assert torch.allclose(weights, expected, atol=1e-6)
        latents = mean[:, -LATENTS:].sum(-1)
        assert torch.allclose(weights.sum((1, 2)) + latents, torch.ones(LATENTS), atol=1e-5)
    _, other = vlm.run_with_cache(prompt, names_filter="hook_merged")
    with pytest.raises(PointError, match="names_filter='projector"):
        patch_weights(other)


@pytest.mark.parametrize(
    "name",
    ["vision.blocks.1.hook_resid_post", "projector.hook_in", "projector.blocks.0.attn.hook_v"],
)
def test_a_write_at_patches_is_one_at_their_places(vlm, name):
    pictures = [tiny.noise_picture(0, (56, 40)), tiny.noise_picture(1, (30, 30))]
    prompt = vlm.prompt("<image><image>", pictures)
    at = Patches(1, rows=(0, 2), cols=1)
    changed = vlm.run(prompt, interventions=Ablate(name, at=at))

    def cut(x, hook):
        x[1, [1, 1 + 56 // PATCH]] = 0

    assert torch.equal(changed, vlm.run_with_hooks(prompt, fwd_hooks=[(name, cut)]))
    assert not torch.equal(changed, vlm.run(prompt))


def test_a_write_at_latents(vlm):
    prompt = vlm.prompt("<image><image>", [tiny.noise_picture(i) for i in range(2)])
    plain = vlm.run(prompt)
    for name in ("projector.blocks.0.hook_resid_post", "projector.hook_out"):
        changed = vlm.run(prompt, interventions=Ablate(name, at=At(3)))

        def cut(x, hook):
            x[:, 3] = 0

        assert torch.equal(changed, vlm.run_with_hooks(prompt, fwd_hooks=[(name, cut)]))
        assert not torch.equal(changed, plain)
    by_projector = vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Images(1)))
    by_text = vlm.run(prompt, interventions=Ablate("hook_merged", at=Images(1)))
    assert torch.equal(by_projector, by_text)
    assert not torch.equal(by_text, vlm.run(prompt, interventions=Ablate("hook_merged", at=All())))


def test_errors(vlm, split, no_forward):
    inputs = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()]).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
    with pytest.raises(PromptError, match=f"{LATENTS} image tokens but no pixel_values"):
        vlm.run(without)
    doubled = inputs | {k: v.repeat(1, 2, *[1] * (v.dim() - 2)) for k, v in inputs.items()
                        if k.startswith("pixel")}  # fmt: skip
    with pytest.raises(PromptError, match=f"need {2 * LATENTS} image tokens"):
        vlm.run(doubled)
    with pytest.raises(PromptError, match="cannot be cut into four"):
        split.prompt("<image>", [tiny.noise_picture(0, (1, 9))])

"""InternVL: tiles and a thumbnail, a class token, blocks that scale what they add."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_internvl
from vlm_lens import Ablate, Frames, HookedVLM, Images, Patches
from vlm_lens.errors import PointError, PositionError, PromptError
from vlm_lens.families import GivenVideo
from vlm_lens.points.sites import ScaleView

MODEL = "internvl"

CELLS = tiny_internvl.CELLS
PER_FRAME = CELLS**2


@pytest.fixture(scope="module")
def earlier() -> HookedVLM:
    """A model whose projector reads the last tower block but one."""
    model = tiny_internvl.build(use_qk_norm=False, norm_type="layer_norm")
    model.config.vision_feature_layer = -2
    return HookedVLM(model, tiny_internvl.processor())


def test_conforms_where_an_earlier_block_is_read(earlier):
    bench.check_conforms(earlier, "Q:<image>A:", [tiny.noise_picture(0, (9, 10))])
    with pytest.raises(PointError, match="the projector reads block 1"):
        name = "vision.blocks.2.hook_resid_post"
        earlier.run("a<image>", [tiny.noise_picture()], interventions=Ablate(name, at=Images()))


def test_facts(vlm):
    assert vlm.cfg.vision.n_class_tokens == 1
    assert (vlm.cfg.vision.patch_size, vlm.cfg.vision.image_size) == (4, 16)
    points = vlm.points()
    assert points["projector.hook_in"].sizes == (None, None, 4 * 24)
    assert points["projector.hook_in"].space == "projector"
    assert points["vision.hook_out"].sizes == (None, None, 24)


def test_the_towers_parts_sum_up_although_its_blocks_scale_them(vlm):
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (20, 20))])
    plain, cache = vlm.run_with_cache(prompt)
    total = cache["vision.hook_embed"]
    for i in range(3):
        total = total + cache[f"vision.blocks.{i}.hook_attn_out"]
        torch.testing.assert_close(total, cache[f"vision.blocks.{i}.hook_resid_mid"])
        total = total + cache[f"vision.blocks.{i}.hook_mlp_out"]
        torch.testing.assert_close(total, cache[f"vision.blocks.{i}.hook_resid_post"])

    def cut(x, hook):
        return x * 0

    for part, weight in (("attn", "lambda_1"), ("mlp", "lambda_2")):
        name = f"vision.blocks.1.hook_{part}_out"
        layer = vlm.hf_model.model.vision_tower.encoder.layer[1]
        changed = vlm.run_with_hooks(prompt, fwd_hooks=[(name, cut)])
        kept = getattr(layer, weight).data.clone()
        getattr(layer, weight).data.zero_()
        torch.testing.assert_close(changed, vlm.run(prompt))
        getattr(layer, weight).data.copy_(kept)
        assert not torch.equal(changed, plain)


def test_a_write_between_attention_and_mlp(vlm):
    """The block's own sum, made by hand from the written value."""
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (20, 20))])
    with vlm.hooks([("vision.blocks.0.hook_resid_mid", lambda x, hook: x.flip(-1))]):
        _, cache = vlm.run_with_cache(prompt, names_filter="vision.blocks.0.*")
    layer = vlm.hf_model.model.vision_tower.encoder.layer[0]
    mid = cache["vision.blocks.0.hook_resid_mid"]
    with torch.no_grad():
        after = layer.lambda_2 * layer.mlp(layer.layernorm_after(mid)) + mid
    assert torch.equal(cache["vision.blocks.0.hook_resid_post"], after)


def test_a_scaled_output_is_put_back_as_it_was():
    original = torch.randn(5, 7)
    view = ScaleView(torch.randn(7))
    shown = view.split(original, 1)
    assert torch.equal(view.join(shown.clone(), original), original)
    changed = shown.clone()
    changed[2] += 1
    joined = view.join(changed, original)
    torch.testing.assert_close(view.split(joined, 1), changed)
    assert torch.equal(joined[[0, 1, 3, 4]], original[[0, 1, 3, 4]])
    dead = ScaleView(torch.zeros(7))
    assert torch.equal(dead.join(changed, original), original)


@pytest.mark.parametrize("size", [(48, 32), (17, 400), (400, 17), (1, 1), (100, 61)])
def test_tiles_are_those_of_the_processor(vlm, size):
    picture = bench.noise(size)
    prompt = vlm.prompt("Q:<image>A:", [picture])
    image = prompt.layout.image[0]
    frames = vlm.processor.image_processor(picture, return_tensors="pt")
    n_frames = int(frames["num_patches"][0])
    assert len(prompt.inputs["pixel_values"]) == n_frames
    assert len(image.positions) == n_frames * PER_FRAME
    assert [g.row for g in image.vision.grids] == [n_frames - 1, *range(n_frames - 1)]
    assert all(s[0] == 0 and len(s) == 17 for _, s in image.vision.sequences)
    if n_frames > 1:
        mosaic = image.text.grid(1)
        assert mosaic.rows * mosaic.cols == (n_frames - 1) * PER_FRAME
        assert (mosaic.rows > mosaic.cols) == (size[1] > size[0])
    for grid in image.text.grids:
        assert grid.pixels(grid.patch(0, 0))[:2] == (0, 0)
        assert grid.pixels(grid.patch(-1, -1))[2:] == pytest.approx(size)


def test_replay_and_generation(vlm):
    prompt = vlm.prompt("a<image>b<image>:", [tiny.noise_picture(i, (20, 16)) for i in range(2)])
    bench.check_replay(vlm, prompt)
    for name in ("hook_merged", "blocks.1.attn.hook_z", "projector.hook_out"):
        bench.check_grown(vlm, prompt, name)


def test_without_sizes_only_the_thumbnail_is_mapped(vlm):
    pictures = [tiny.noise_picture(0, (48, 32)), tiny.noise_picture(1, (16, 16))]
    prompt = vlm.prompt("a<image>b<image>", pictures)
    given = vlm.as_prompt(prompt.inputs)
    for one, two in zip(prompt.layout.images, given.layout.images, strict=True):
        assert one.positions == two.positions
        assert one.vision.sequences == two.vision.sequences
        assert [g.positions for g in two.text.grids] == [one.text.grid().positions]
    with pytest.raises(PositionError, match="grid 1 was asked"):
        given.layout.image[0].text.grid(1)


def test_a_write_at_a_box_reaches_every_tile_that_sees_it(vlm):
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(0, (48, 32))])
    at = Patches(0, box=(0, 0, 8, 8))
    by_projector = vlm.run(prompt, interventions=Ablate("projector.hook_out", at=at))
    by_text = vlm.run(prompt, interventions=Ablate("hook_merged", at=at))
    assert torch.equal(by_projector, by_text)
    assert not torch.equal(by_text, vlm.run(prompt))


def test_errors(vlm):
    inputs = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(0, (48, 32))]).inputs
    more = inputs | {"pixel_values": inputs["pixel_values"][:-1]}
    with pytest.raises(PromptError, match=rf"6 frames .* need {6 * PER_FRAME} image tokens"):
        vlm.run(more)


def test_frames_of_a_video_are_coordinates_in_text_tower_and_projector(tmp_path):
    vlm = HookedVLM.from_pretrained(tiny_internvl.save(tmp_path))
    frames = [bench.noise((32, 24), seed=i) for i in range(3)]
    words = vlm.processor.tokenizer
    one = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    text = "\n".join(f"Frame{i + 1}: {one}" for i in range(3)) + "Q:"  # as the processor writes it

    def made(pictures):
        size = {"height": tiny_internvl.SIDE, "width": tiny_internvl.SIDE}
        reader = type(vlm.processor.image_processor)(size=size, crop_to_patches=False)
        tensors = dict(words([text], return_tensors="pt"))
        tensors["pixel_values"] = reader(pictures, return_tensors="pt")["pixel_values"]
        return vlm.prompts.from_tensors(tensors, videos=[GivenVideo((32, 24), 3, 2.0)])

    prompt = made(frames)
    video = prompt.layout.video[0]
    assert not prompt.layout.images and video.n_frames == 3 and video.at(1.2).index == 2
    assert [len(f.positions) for f in video.frames] == [4, 4, 4]
    places = [p for f in video.frames for p in f.positions]
    assert {prompt.inputs["input_ids"][0, p].item() for p in places} == {6}
    names = ["vision.hook_embed", "projector.hook_out"]
    _, before = vlm.run_with_cache(prompt, names_filter=names)
    painted = frames[1].copy()
    painted.paste((255, 255, 255), (16, 12, 32, 24))  # the last quarter: patches and one position
    _, after = vlm.run_with_cache(made([frames[0], painted, frames[2]]), names_filter=names)
    moved = (before[names[0]] != after[names[0]]).any(-1).nonzero().tolist()
    shown = video.frame(1).vision.box(16, 12, 32, 24)
    assert {row for row, _ in moved} == {1} and {tuple(m) for m in moved} >= set(shown)
    change = (before[names[1]] - after[names[1]]).norm(dim=-1)
    assert (change[1] > 0).any() and not change[0].any() and not change[2].any()
    assert Frames(0, frame=1).resolve(prompt.layout, "projector") == [(1, p) for p in range(4)]
    zero = Ablate("projector.hook_out", at=Frames(0, frame=1))
    text_zero = Ablate("hook_merged", at=Frames(0, frame=1))
    assert torch.equal(
        vlm.run(prompt, interventions=zero), vlm.run(prompt, interventions=text_zero)
    )
    with pytest.raises(PromptError, match="has either"):
        vlm.prompts.from_tensors(dict(prompt.inputs), videos=[GivenVideo((32, 24), None)])

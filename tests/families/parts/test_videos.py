"""Frames of videos are where painting a patch of one changes the text model's input."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from reach.builder import build

from families import bench, videos
from vlm_lens import Ablate, Frames, HookedVLM
from vlm_lens.errors import PositionError, PromptError
from vlm_lens.families.parts.batch import GivenVideo

PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
SIZE = (48, 32)


def read(vlm, tensors, n_frames=None, fps=None):
    """The prompt, and what its first block reads."""
    given = [GivenVideo(SIZE if n_frames else None, n_frames, fps)]
    prompt = vlm.prompts.from_tensors(tensors, videos=given)
    return prompt, vlm.run_with_cache(prompt, names_filter="hook_merged")[1]["hook_merged"][0]


def moved(before, after):
    """The position that changes most."""
    return int((before - after).norm(dim=-1).argmax())


@pytest.mark.parametrize("name", PACKED)
def test_a_painted_patch_of_a_frame_is_where_the_layout_says(name, made):
    vlm = made(name)
    frames = [bench.painted(SIZE, None) for _ in range(4)]
    apart = name in ("qwen3_vl", "qwen3_5")
    prompt, plain = read(vlm, videos.packed(vlm, frames, apart=apart), 4, fps=2.0)
    video = prompt.layout.video[0]
    assert video.n_frames == 4 and len(video.frames) == 2
    assert video.frame(0) is video.frame(1) and video.frame(3).merged == (2, 3)
    assert video.frame(3) is video.frame(-1) is video.at(1.7)
    assert video.frame(2).seconds == (1.0, 2.0)
    for number in range(4):
        frame = video.frame(number)
        for row, col in ((0, 0), (1, 2), (frame.grid.rows - 1, frame.grid.cols - 1)):
            box = frame.pixels(frame.patch(row, col))
            painted = list(frames)
            painted[number] = bench.painted(SIZE, box)
            _, changed = read(vlm, videos.packed(vlm, painted, apart=apart), 4)
            assert moved(plain, changed) == frame.patch(row, col), (number, row, col)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert frame.box(x, y, x + 0.1, y + 0.1) == [frame.patch(row, col)]


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_frames_that_are_not_merged(name, made):
    vlm = made(name) if name == "llava_onevision" else HookedVLM(build(name))
    config = vlm.hf_model.config
    vision = config.vision_config
    side = -(-(vision.image_size // vision.patch_size) // 2)
    n_tokens = 3 * side**2 + (name == "llava_onevision")
    token = getattr(config, "video_token_id", None) or config.video_token_index
    pixels = torch.zeros(3, 3, vision.image_size, vision.image_size)
    prompt, plain = read(vlm, videos.in_frames(vlm, pixels, n_tokens, token))
    video = prompt.layout.video[0]
    assert [f.merged for f in video.frames] == [(0,), (1,), (2,)]
    assert len(video.positions) == n_tokens and len(video.rest) == n_tokens - 3 * side**2
    for number in range(3):
        frame = video.frame(number)
        for row, col in ((0, 0), (side - 1, 0), (0, side - 1)):
            x0, y0, x1, y1 = (round(v) for v in frame.pixels(frame.patch(row, col)))
            painted = pixels.clone()
            painted[number, :, y0:y1, x0:x1] = 3.0
            _, changed = read(vlm, videos.in_frames(vlm, painted, n_tokens, token))
            assert moved(plain, changed) == frame.patch(row, col), (number, row, col)


def test_frames_are_positions(made):
    vlm = made("qwen2_vl")
    prompt = vlm.as_prompt(videos.packed(vlm, [bench.noise(SIZE, seed=s) for s in range(4)]))
    video = prompt.layout.video[0]
    assert [p for _, p in Frames().resolve(prompt.layout)] == list(video.positions)
    second = [p for _, p in Frames(0, frame=2).resolve(prompt.layout)]
    assert second == list(video.frame(3).positions)
    assert {prompt.layout.kinds[p] for p in second} == {"video 0"}
    plain = vlm.run(prompt)
    write = Ablate("blocks.0.hook_resid_pre", at=Frames(0, frame=2))
    assert not torch.equal(vlm.run(prompt, interventions=write), plain)
    _, cache = vlm.run_with_cache(prompt, names_filter="vision.blocks.0.hook_resid_post")
    assert cache["vision.blocks.0.hook_resid_post"].shape[1] == len(
        prompt.inputs["pixel_values_videos"]
    )
    bench.check_conforms(vlm, prompt, quick=True)


def test_what_is_wrong_is_told(made):
    vlm = made("qwen2_vl")
    tensors = videos.packed(vlm, [bench.noise(SIZE, seed=s) for s in range(2)])
    video = vlm.as_prompt(tensors).layout.video[0]
    with pytest.raises(PositionError, match="has 2 frames; frame 2 was asked"):
        video.frame(2)
    with pytest.raises(PositionError, match="fps="):
        video.at(0.5)
    with pytest.raises(PositionError, match="no video"):
        Frames().resolve(vlm.prompt("Q:").layout)
    with pytest.raises(PositionError, match="This prompt has no videos; video 0 was asked"):
        vlm.prompt("Q:").layout.video[0]
    without = {k: v for k, v in tensors.items() if "video" not in k}
    with pytest.raises(PromptError, match="video tokens but no pixel_values_videos"):
        vlm.as_prompt(without)
    frames = [Image.new("RGB", SIZE)] * 2
    with pytest.raises(PromptError, match="no part for videos"):
        vlm.prompt("<video>", videos=[frames])
    with pytest.raises(PromptError, match="0 <video> placeholders and 1 video was given"):
        vlm.prompt("Q:", videos=[frames])
    with pytest.raises(PromptError, match="a list of frames or a path"):
        vlm.prompt("<video>", videos=[[]])

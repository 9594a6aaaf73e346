"""Videos given as frames, through a processor that reads them."""

from __future__ import annotations

import pytest
import torch
from families import bench
from families.tiny_qwen2_vl import build, processor
from transformers.feature_extraction_utils import BatchFeature

from vlm_lens import HookedVLM, Last, LogitLens
from vlm_lens.errors import PromptError

SIZE = (48, 32)


class FramesOfPictures:
    """A video processor made of Qwen2-VL's for pictures: transformers' own needs torchvision."""

    merge_size, temporal_patch_size, model_input_names = 2, 2, ["pixel_values_videos"]

    def __init__(self, pictures):
        self.pictures = pictures

    def __call__(self, videos, **options):
        assert options.get("do_sample_frames") is False  # every frame given is read
        pixels, grids = [], []
        for frames in videos:
            seen = [self.pictures([f], return_tensors="pt") for f in frames]
            rows, cols = seen[0]["image_grid_thw"][0, 1:].tolist()
            parts = [s["pixel_values"].view(rows * cols, 3, 2, -1) for s in seen]
            for a, b in zip(parts[::2], parts[1::2], strict=True):
                pixels.append(torch.cat([a[:, :, :1], b[:, :, :1]], 2).flatten(1))
            grids.append([len(frames) // 2, rows, cols])
        return BatchFeature(
            {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
        )


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    reader = processor()
    reader.video_processor = FramesOfPictures(reader.image_processor)
    return HookedVLM(build(), reader)


def clip(n_frames, seed=0):
    return [bench.noise(SIZE, seed=seed + s) for s in range(n_frames)]


def test_frames_become_positions_with_pixels_and_seconds(vlm):
    prompt = vlm.prompt("Q:<video>\nA:", videos=[clip(4)], fps=4)
    video = prompt.layout.video[0]
    assert video.n_frames == 4 and [f.merged for f in video.frames] == [(0, 1), (2, 3)]
    assert video.at(0.6) is video.frame(2) and video.frame(2).seconds == (0.5, 1.0)
    grid = video.frame(0).grid
    assert grid.pixels_of.picture == SIZE
    assert video.frame(0).pixels(grid.positions[0])[:2] == (0.0, 0.0)
    assert grid.pixels(grid.positions[-1])[2:] == SIZE
    tokens = prompt.layout.token_ids
    assert {tokens[p] for p in video.positions} == {vlm.hf_model.config.video_token_id}
    assert "<video 0>" in repr(prompt.layout)


def test_figures_and_scores_take_a_video_as_one_thing(vlm):
    prompt = vlm.prompt("Q:<video> and <image>\nA:", [bench.noise((64, 48))], videos=[clip(4)])
    inside, many = prompt.layout.video[0].positions, len(prompt.layout.image[0].positions)
    html = prompt._repr_html_()
    assert html.count(f"video 0, {len(inside)} positions") == 1 and html.count("image 0, ") >= 1
    look = vlm.attention(prompt, at=Last())
    kinds = look.by_kind().values
    assert list(kinds["kind"].values[:2]) == ["image 0", "video 0"]  # then words
    torch.testing.assert_close(
        torch.tensor(kinds.sel(kind="video 0").values),
        torch.tensor(look.values.sel(position=list(inside)).sum("position").values),
    )
    assert look.of_kind("video").values.sizes["position"] == len(inside)
    assert look.of_kind("image").values.sizes["position"] == many
    ticks = LogitLens().run(vlm, prompt).plot().layout.xaxis.ticktext
    assert f"{inside[0]}..{inside[-1]}<br>video 0<br>{len(inside)} positions" in ticks


def test_pictures_and_several_videos(vlm):
    prompt = vlm.prompt(
        "<video> then <image> and <video>", [bench.noise((64, 48))], videos=[clip(2), clip(4, 9)]
    )
    layout = prompt.layout
    assert [v.n_frames for v in layout.video] == [2, 4] and len(layout.image) == 1
    first, second = (set(v.positions) for v in layout.video)
    assert not first & second and max(first) < min(layout.image[0].positions) < min(second)
    with torch.no_grad():
        plain = vlm.hf_model(**prompt.inputs, use_cache=False).logits
    assert torch.equal(vlm.run(prompt), plain)


def test_what_is_no_video(vlm):
    with pytest.raises(PromptError, match="of one size"):
        vlm.prompt("<video>", videos=[[bench.noise((40, 40)), bench.noise((48, 48))]])
    with pytest.raises(PromptError, match="videos= is a list"):
        vlm.prompt("<video>", videos="clip.mp4")
    with pytest.raises(PromptError, match="2 <video> placeholders and 1 video was given"):
        vlm.prompt("<video><video>", videos=[clip(2)])
